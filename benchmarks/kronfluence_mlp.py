"""EK-FAC of an MLP by kronfluence (1.0), from arrays, on the CPU: a program for an environment of its own, with torch alone.

    python benchmarks/kronfluence_mlp.py DATA.npz TOP_K OUTPUT
"""

# pyright: basic, reportMissingImports=false

import json
import pathlib
import resource
import sys
import tempfile
import time

import numpy as np
import torch
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from torch import nn


class Classification(Task):
    """The softmax cross-entropy, with the labels of the data."""

    def compute_train_loss(self, batch, model, sample=False):
        return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="sum")

    def compute_measurement(self, batch, model):
        return self.compute_train_loss(batch, model)


def main(path: str, top_k: int, output: str) -> None:
    """Fits, scores, and prints what it took after the imports and which training examples come first."""
    cpu, wall, start = time.process_time(), time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    arrays = np.load(path)
    layers = nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))
    with torch.no_grad():
        for place in (1, 3):
            layers[place].weight.copy_(torch.tensor(arrays[f"kernel-{place}"].T))
            layers[place].bias.copy_(torch.tensor(arrays[f"bias-{place}"]))
    tensors = [[torch.tensor(arrays[f"{split}-{part}"]) for part in "xy"] for split in ("train", "test")]
    train, test = (torch.utils.data.TensorDataset(*pair) for pair in tensors)
    task = Classification()
    model = prepare_model(layers, task)
    with tempfile.TemporaryDirectory() as folder:
        analyzer = Analyzer("mlp", model, task, cpu=True, output_dir=folder, disable_tqdm=True)
        factors = FactorArguments(strategy="ekfac", use_empirical_fisher=True)
        analyzer.fit_all_factors("ekfac", train, per_device_batch_size=256, factor_args=factors)
        # None: 0.1 × the mean eigenvalue of each layer, as ours by default.
        scores = analyzer.compute_pairwise_scores(
            "scores",
            "ekfac",
            test,
            train,
            per_device_query_batch_size=100,
            per_device_train_batch_size=256,
            score_args=ScoreArguments(damping_factor=None),
        )
    top = torch.topk(scores["all_modules"], top_k, dim=1).indices.tolist()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {"cpu": time.process_time() - cpu, "wall": time.monotonic() - wall, "peak": peak / 1024, "over": (peak - start) / 1024}
    pathlib.Path(output).write_text(json.dumps({**found, "top": top}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
