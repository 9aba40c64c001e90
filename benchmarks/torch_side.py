"""A network of `benchmarks.networks` by kronfluence (1.0) or dattri (0.3), from arrays, on the CPU: a program for an environment of its
own, with torch alone.

    python benchmarks/torch_side.py kronfluence|dattri ekfac|kfac|mended_ekfac DAMPING NETWORK DATA.npz TOP_K OUTPUT
"""

# pyright: basic, reportMissingImports=false

import importlib
import json
import pathlib
import resource
import sys
import tempfile
import time

import numpy as np
import torch
from torch import nn


def dense(weights):
    """A Keras layer's kernel and bias, of any number of heads, as a linear layer."""
    kernel, bias = weights.pop(0), weights.pop(0)
    layer = nn.Linear(kernel.size // bias.size, bias.size)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(kernel.reshape(-1, bias.size).T))
        layer.bias.copy_(torch.tensor(bias.ravel()))
    return layer


def convolution(weights):
    """A Keras kernel [h, w, I, O] and bias."""
    kernel, bias = weights.pop(0), weights.pop(0)
    layer = nn.Conv2d(kernel.shape[2], kernel.shape[3], kernel.shape[:2])
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(kernel.transpose(3, 2, 0, 1).copy()))
        layer.bias.copy_(torch.tensor(bias))
    return layer


def norm(weights):
    """Keras's LayerNormalization, which kronfluence has no factors of: it is not watched."""
    scale, center = weights.pop(0), weights.pop(0)
    layer = nn.LayerNorm(len(scale), eps=1e-3)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(scale))
        layer.bias.copy_(torch.tensor(center))
    return layer


class ChannelsLast(nn.Module):
    """The order in which Keras flattens."""

    def forward(self, x):
        return x.permute(0, 2, 3, 1).flatten(1)


class ChannelsFirst(nn.Module):
    """Torch's order of an image's axes."""

    def forward(self, x):
        return x.permute(0, 3, 1, 2)


class Attention(nn.Module):
    """Keras's MultiHeadAttention of four heads."""

    def __init__(self, weights):
        super().__init__()
        self.query, self.key, self.value = dense(weights), dense(weights), dense(weights)
        self.out = dense(weights)

    def forward(self, x):
        q, k, v = (each(x).unflatten(-1, (4, -1)).transpose(1, 2) for each in (self.query, self.key, self.value))
        mixed = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, -1) @ v
        return self.out(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and two dense layers, each with its norm."""

    def __init__(self, weights):
        super().__init__()
        self.attention, self.first = Attention(weights), norm(weights)
        self.wide, self.narrow, self.second = dense(weights), dense(weights), norm(weights)

    def forward(self, x):
        x = self.first(x + self.attention(x))
        return self.second(x + self.narrow(nn.functional.gelu(self.wide(x))))


class Transformer(nn.Module):
    """`networks.make_transformer`."""

    def __init__(self, weights):
        super().__init__()
        table = weights.pop(0)
        self.embedding = nn.Embedding(*table.shape)
        with torch.no_grad():
            self.embedding.weight.copy_(torch.tensor(table))
        self.blocks = nn.Sequential(Block(weights), Block(weights))
        self.head = dense(weights)

    def forward(self, tokens):
        return self.head(self.blocks(self.embedding(tokens)).mean(1))


def network(name, weights):
    """The network with the weights of Keras's."""
    if name == "mlp":
        return nn.Sequential(nn.Flatten(), dense(weights), nn.ReLU(), dense(weights))
    if name == "cnn":
        convolutions = [part for _ in range(2) for part in (convolution(weights), nn.ReLU(), nn.MaxPool2d(2))]
        return nn.Sequential(ChannelsFirst(), *convolutions, ChannelsLast(), dense(weights), nn.ReLU(), dense(weights))
    return Transformer(weights)


def by_kronfluence(strategy, _, name, layers, train, test):
    """[T, N]; damping 0.1 × the mean eigenvalue of each layer, as ours by default, and the labels of the data."""
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.task import Task

    class Classification(Task):
        def compute_train_loss(self, batch, model, sample=False):
            return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="sum")

        def compute_measurement(self, batch, model):
            return self.compute_train_loss(batch, model)

    task = Classification()
    model = prepare_model(layers, task)
    with tempfile.TemporaryDirectory() as folder:
        analyzer = Analyzer(name, model, task, cpu=True, output_dir=folder, disable_tqdm=True)
        factors = FactorArguments(strategy=strategy, use_empirical_fisher=True)
        analyzer.fit_all_factors("factors", train, per_device_batch_size=256, factor_args=factors)
        analyzer.compute_pairwise_scores(
            "scores",
            "factors",
            test,
            train,
            per_device_query_batch_size=100,
            per_device_train_batch_size=256,
            score_args=ScoreArguments(damping_factor=None),
        )
        return analyzer.load_pairwise_scores("scores")["all_modules"]


def by_dattri(strategy, damping, name, layers, train, test):
    """[T, N]; one damping for all layers, since it finds none by itself."""
    from dattri.algorithm.influence_function import IFAttributorEKFAC
    from dattri.task import AttributionTask

    assert strategy in ("ekfac", "mended_ekfac")
    if strategy == "mended_ekfac":
        mend_dattri(IFAttributorEKFAC)

    def loss(params, data):
        return nn.functional.cross_entropy(torch.func.functional_call(layers, params, data[0]), data[1])

    attributor = IFAttributorEKFAC(AttributionTask(loss, layers, layers.state_dict()), damping=damping)
    batches, points = (torch.utils.data.DataLoader(rows, batch_size=256) for rows in (train, test))
    attributor.cache(batches)
    with torch.no_grad():
        return attributor.attribute(batches, points).T


def mend_dattri(attributor):
    """dattri 0.3 multiplies by the matrix of eigenvectors where its transpose is meant, and takes a layer's kernel and bias, one behind the
    other, for the rows of [O, I + 1]."""
    from dattri.func import fisher

    of_columns, of_rows = fisher.estimate_eigenvector, attributor.transform_test_rep
    fisher.estimate_eigenvector = lambda sums: {name: (a.T, s.T) for name, (a, s) in of_columns(sums).items()}

    def transform(self, ckpt_idx, test_rep):
        shapes = [(module.out_features, module.in_features) for module in self.name_to_module.values()]
        return in_parts(of_rows(self, ckpt_idx, in_parts(test_rep, shapes, False)), shapes, True)

    attributor.transform_test_rep = transform


def in_parts(points, shapes, apart):
    """[T, P] with a layer's kernel and bias apart, or together as rows of [O, I + 1], from the other."""
    found = []
    for part, (outputs, inputs) in zip(points.split([outputs * (inputs + 1) for outputs, inputs in shapes], dim=1), shapes, strict=True):
        if apart:
            rows = part.reshape(-1, outputs, inputs + 1)
            found += [rows[:, :, :-1].flatten(1), rows[:, :, -1]]
        else:
            kernel, bias = part.split([outputs * inputs, outputs], dim=1)
            found.append(torch.cat([kernel.reshape(-1, outputs, inputs), bias[:, :, None]], dim=2).flatten(1))
    return torch.cat(found, dim=1)


def main(system: str, strategy: str, damping: float, name: str, path: str, top_k: int, output: str) -> None:
    """Fits, scores, and writes what it took after the imports and which training examples come first."""
    by = {"kronfluence": by_kronfluence, "dattri": by_dattri}[system]
    importlib.import_module({"kronfluence": "kronfluence.analyzer", "dattri": "dattri.algorithm.influence_function"}[system])
    cpu, wall, start = time.process_time(), time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    arrays = np.load(path)
    layers = network(name, [arrays[f"weight-{number}"] for number in range(sum(key.startswith("weight-") for key in arrays))])
    tensors = [[torch.tensor(arrays[f"{split}-{part}"]) for part in "xy"] for split in ("train", "test")]
    with torch.no_grad():
        difference = float((layers(tensors[1][0]) - torch.tensor(arrays["logits"])).abs().max())
    assert difference < 1e-4, difference
    train, test = (torch.utils.data.TensorDataset(*pair) for pair in tensors)
    top = torch.topk(by(strategy, damping, name, layers, train, test), top_k, dim=1).indices.tolist()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {"cpu": time.process_time() - cpu, "wall": time.monotonic() - wall, "peak": peak / 1024, "over": (peak - start) / 1024}
    pathlib.Path(output).write_text(json.dumps({**found, "top": top}))


if __name__ == "__main__":
    of, way, damped, named, data, first, answer = sys.argv[1:]
    main(of, way, float(damped), named, data, int(first), answer)
