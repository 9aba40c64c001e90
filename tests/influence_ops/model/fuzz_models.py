"""Random Keras models, losses, masks and weights: what is computed is Keras's own number, or it is refused.

    python -m tests.influence_ops.model.fuzz_models --draws 500 --seed 0
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

from beam_influence import InfluenceModel
from beam_influence.influence_ops.reading.example_batch import ExampleBatch
from tests.influence_ops.model.keras_oracle import losses_and_gradients

L, losses = keras.layers, keras.losses
Rng = np.random.Generator
ROWS, LENGTH, SIDE, CLASSES = 5, 6, 8, 3
TOLERANCE = 1e-3  # of the largest value: Keras computes the other side in float32
WORDS = np.array(["the", "cat", "a", "dog", "sat", "on"])


class Doubled(L.Layer):
    """A layer of the user's."""

    def call(self, x: Any) -> Any:
        return x * 2.0


class Penalised(L.Layer):
    """Adds a loss of its own."""

    def call(self, x: Any) -> Any:
        self.add_loss(0.1 * tf.reduce_mean(tf.square(x)))
        return x


def _units(rng: Rng) -> int:
    return int(rng.integers(2, 6))


def _activation(rng: Rng) -> str | None:
    return [None, "relu", "tanh", "gelu", "sigmoid", "softplus", "elu", "swish"][rng.integers(8)]


Maker = Callable[[Rng], Any]
OF_ANY: dict[str, Maker] = {
    "Activation": lambda r: L.Activation("tanh"),
    "ActivityRegularization": lambda r: L.ActivityRegularization(l2=0.1),
    "AlphaDropout": lambda r: L.AlphaDropout(0.3),
    "BatchNormalization": lambda r: L.BatchNormalization(),
    "Dropout": lambda r: L.Dropout(0.3),
    "ELU": lambda r: L.ELU(),
    "GaussianDropout": lambda r: L.GaussianDropout(0.3),
    "GaussianNoise": lambda r: L.GaussianNoise(0.3),
    "Lambda": lambda r: L.Lambda(lambda x: x * 0.5),
    "LayerNormalization": lambda r: L.LayerNormalization(),
    "LeakyReLU": lambda r: L.LeakyReLU(),
    "PReLU": lambda r: L.PReLU(),
    "ReLU": lambda r: L.ReLU(max_value=6.0, negative_slope=0.1),
    "RMSNormalization": lambda r: L.RMSNormalization(),
    "UnitNormalization": lambda r: L.UnitNormalization(),
    "Doubled": lambda r: Doubled(),
    "Penalised": lambda r: Penalised(),
    "Rescaling": lambda r: L.Rescaling(0.5, 0.1),
}
TABLE: dict[str, dict[str, Maker]] = {
    "vector": {
        "Dense": lambda r: L.Dense(_units(r), _activation(r)),
        "Dense-regularised": lambda r: L.Dense(_units(r), _activation(r), kernel_regularizer="l2", activity_regularizer="l1"),
        "EinsumDense": lambda r: L.EinsumDense("ab,bc->ac", _units(r), bias_axes="c"),
        "Sequential": lambda r: keras.Sequential([L.Dense(3, "tanh"), L.BatchNormalization(), L.Dense(4)]),
        "SpectralNormalization": lambda r: L.SpectralNormalization(L.Dense(4)),
    },
    "sequence": {
        "Bidirectional": lambda r: L.Bidirectional(L.GRU(3, return_sequences=True)),
        "Conv1D": lambda r: L.Conv1D(_units(r), 3, padding=["same", "causal"][r.integers(2)], activation=_activation(r)),
        "Conv1DTranspose": lambda r: L.Conv1DTranspose(3, 3, padding="same"),
        "Dense": lambda r: L.Dense(_units(r), _activation(r)),
        "DepthwiseConv1D": lambda r: L.DepthwiseConv1D(3, padding="same"),
        "GRU": lambda r: L.GRU(3, return_sequences=True),
        "LSTM": lambda r: L.LSTM(3, return_sequences=True),
        "RNN": lambda r: L.RNN(L.SimpleRNNCell(3), return_sequences=True),
        "SeparableConv1D": lambda r: L.SeparableConv1D(4, 3, padding="same"),
        "SimpleRNN": lambda r: L.SimpleRNN(3, return_sequences=True),
        "SpatialDropout1D": lambda r: L.SpatialDropout1D(0.3),
        "TimeDistributed": lambda r: L.TimeDistributed(L.Dense(3, "tanh")),
    },
    "image": {
        "AveragePooling2D": lambda r: L.AveragePooling2D(2, 1, "same"),
        "Conv2D": lambda r: L.Conv2D(_units(r), 3, padding="same", activation=_activation(r)),
        "Conv2DTranspose": lambda r: L.Conv2DTranspose(3, 3, padding="same"),
        "DepthwiseConv2D": lambda r: L.DepthwiseConv2D(3, padding="same"),
        "GroupNormalization": lambda r: L.GroupNormalization(-1),
        "MaxPooling2D": lambda r: L.MaxPooling2D(2, 1, "same"),
        "RandomFlip": lambda r: L.RandomFlip(),
        "RandomRotation": lambda r: L.RandomRotation(0.1),
        "SeparableConv2D": lambda r: L.SeparableConv2D(4, 3, padding="same"),
        "SpatialDropout2D": lambda r: L.SpatialDropout2D(0.3),
        "UpSampling2D": lambda r: keras.Sequential([L.AveragePooling2D(2), L.UpSampling2D(2)]),
        "ZeroPadding2D": lambda r: keras.Sequential([L.ZeroPadding2D(1), L.Cropping2D(1)]),
    },
}
TO_VECTOR: dict[str, dict[str, Maker]] = {
    "sequence": {
        "Flatten": lambda r: L.Flatten(),
        "GlobalAveragePooling1D": lambda r: L.GlobalAveragePooling1D(),
        "GlobalMaxPooling1D": lambda r: L.GlobalMaxPooling1D(),
        "LSTM": lambda r: L.LSTM(4),
        "GRU": lambda r: L.GRU(4),
    },
    "image": {
        "Flatten": lambda r: L.Flatten(),
        "GlobalAveragePooling2D": lambda r: L.GlobalAveragePooling2D(),
        "GlobalMaxPooling2D": lambda r: L.GlobalMaxPooling2D(),
    },
}


STARTS = (  # and what `_start`, `_head` and `draw` put around them
    "Normalization", "Discretization", "Embedding", "Masking", "TextVectorization", "StringLookup", "Hashing", "Softmax", "Add"
)  # fmt: skip


def _pick(rng: Rng, table: dict[str, Maker], used: list[str]) -> Any:
    name = list(table)[rng.integers(len(table))]
    used.append(name)
    return table[name](rng)


def _start(rng: Rng, used: list[str]) -> tuple[Any, Any, str, np.ndarray]:
    """An input, what comes of it, its kind, and data."""
    kind = ["vector", "normalised", "sequence", "masked", "tokens", "image", "text", "lookup", "bins", "integers"][rng.integers(10)]
    used.append(kind)
    if kind in ("vector", "normalised", "bins"):
        x = rng.normal(1, 2, (ROWS, 4)).astype(np.float32)
        inputs = keras.Input((4,))
        if kind == "vector":
            return inputs, inputs, "vector", x
        layer: Any = L.Normalization() if kind == "normalised" else L.Discretization(num_bins=4)
        layer.adapt(x)
        return (inputs, layer(inputs), "vector", x) if kind == "normalised" else (inputs, L.Embedding(6, 3)(layer(inputs)), "sequence", x)
    if kind in ("sequence", "masked"):
        x = rng.normal(0, 1, (ROWS, LENGTH, 3)).astype(np.float32)
        inputs = keras.Input((LENGTH, 3))
        if kind == "masked":
            for row in range(ROWS):
                x[row, rng.integers(1, LENGTH + 1) :] = 0
        return inputs, L.Masking()(inputs) if kind == "masked" else inputs, "sequence", x
    if kind == "tokens":
        x = rng.integers(1, 7, (ROWS, LENGTH)).astype(np.int32)
        masked = bool(rng.integers(2))
        for row in range(ROWS):
            x[row, rng.integers(1, LENGTH + 1) :] = 0
        inputs = keras.Input((LENGTH,), dtype="int32")
        return inputs, L.Embedding(7, 3, mask_zero=masked)(inputs), "sequence", x
    if kind == "image":
        inputs = keras.Input((SIDE, SIDE, 2))
        return inputs, inputs, "image", rng.normal(0, 1, (ROWS, SIDE, SIDE, 2)).astype(np.float32)
    if kind == "integers":
        inputs = keras.Input((4,), dtype="int32")
        return inputs, inputs, "vector", rng.integers(0, 4, (ROWS, 4)).astype(np.int32)
    x = np.array([[" ".join(rng.choice(WORDS, 3))] for _ in range(ROWS)], dtype=object)
    inputs = keras.Input((1,), dtype="string")
    layer = L.TextVectorization(output_sequence_length=4) if kind == "text" else [L.StringLookup(), L.Hashing(5)][rng.integers(2)]
    if not isinstance(layer, L.Hashing):
        layer.adapt(tf.constant(x.tolist()))
    return inputs, L.Embedding(12, 3)(layer(inputs)), "sequence", x


def _head(rng: Rng, x: Any, positions: tuple[int, ...]) -> tuple[Any, Any, np.ndarray]:
    """An output with a loss and labels that fit: for each of `positions`."""
    form = ["sparse", "sparse-logits", "softmax-layer", "dense", "smoothed", "ignored", "binary", "binary-logits", "regression", "named"][
        rng.integers(10)
    ]
    labels = rng.integers(0, CLASSES, (ROWS, *positions))
    if form in ("sparse", "sparse-logits", "softmax-layer", "ignored"):
        outputs = L.Dense(CLASSES, "softmax" if form in ("sparse", "ignored") else None)(x)
        outputs = L.Softmax()(outputs) if form == "softmax-layer" else outputs
        reduction = ["sum_over_batch_size", "sum", "mean_with_sample_weight"][rng.integers(3)]
        ignored = 0 if form == "ignored" else None
        loss: Any = losses.SparseCategoricalCrossentropy(form == "sparse-logits", ignored, reduction)
        return outputs, "sparse_categorical_crossentropy" if form == "sparse" else loss, labels
    if form in ("dense", "smoothed"):
        loss = losses.CategoricalCrossentropy(label_smoothing=0.1 if form == "smoothed" else 0.0)
        return L.Dense(CLASSES, "softmax")(x), loss, np.eye(CLASSES, dtype=np.float32)[labels]
    if form in ("binary", "binary-logits"):
        outputs = L.Dense(1, "sigmoid" if form == "binary" else None)(x)
        loss = "binary_crossentropy" if form == "binary" else losses.BinaryCrossentropy(from_logits=True)
        return outputs, loss, rng.integers(0, 2, (ROWS, *positions)).astype(np.float32)
    names = ["mse", "mae", "huber", "log_cosh", "poisson", "kl_divergence", "squared_hinge", "hinge", "msle", "cosine_similarity"]
    loss = "mse" if form == "regression" else names[rng.integers(len(names))]
    width = int(rng.integers(1, 3))
    outputs = L.Dense(width, "softplus")(x)
    y = rng.uniform(0.1, 2, (ROWS, *positions, width)).astype(np.float32)
    if "hinge" in loss:
        y = rng.integers(0, 2, y.shape).astype(np.float32)
    return outputs, loss, y[..., 0] if width == 1 and rng.integers(2) else y


@dataclasses.dataclass
class Draw:
    """A random model with its data."""

    model: keras.Model
    x: Any
    y: Any
    weights: np.ndarray | None
    precision: str
    used: list[str]


def draw(seed: int) -> Draw:
    rng = np.random.default_rng(seed)
    keras.utils.set_random_seed(seed)
    keras.backend.clear_session()
    used: list[str] = []
    inputs, x, kind, data = _start(rng, used)
    for _ in range(rng.integers(0, 4)):
        integers = "int" in str(x.dtype)
        x = _pick(rng, TABLE[kind] if integers or rng.integers(2) else OF_ANY, used)(x)
    if kind != "vector" and rng.integers(2):
        x, kind = _pick(rng, TO_VECTOR[kind], used)(x), "vector"
    if kind == "vector" and len(x.shape) == 2 and rng.integers(4) == 0:
        x = L.Add()([L.Dense(3)(x), L.Dense(3, "tanh")(x)])
    positions = tuple(x.shape[1:-1])
    outputs, loss, y = _head(rng, x, positions)
    if rng.integers(6) == 0:  # several outputs
        second, other_loss, other_y = _head(rng, x, positions)
        used.append("outputs")
        first_name, second_name = outputs._keras_history.operation.name, second._keras_history.operation.name
        if rng.integers(2):
            model = keras.Model(inputs, {"a": outputs, "b": second})
            model.compile(loss={"a": loss, "b": other_loss}, loss_weights={"a": 0.5, "b": 2.0})
            y = {"a": y, "b": other_y}
        else:
            model = keras.Model(inputs, [outputs, second])
            model.compile(loss=[loss, other_loss])
            y = {first_name: y, second_name: other_y}
    else:
        model = keras.Model(inputs, outputs)
        model.compile(loss=loss)
    used.append(f"loss {loss if isinstance(loss, str) else type(loss).__name__}")
    for variable in model.trainable_variables:  # zeros hide mistakes
        variable.assign(variable + 0.1 * rng.normal(size=variable.shape))
    for variable in model.non_trainable_variables:
        if "moving" in variable.path:
            variable.assign(rng.uniform(0.5, 2, variable.shape))
    kinds: list[tuple[int, ...]] = [(), (), (ROWS,), *([(ROWS, *positions)] if len(positions) == 1 else [])]
    shape = kinds[rng.integers(len(kinds))]
    weights = rng.uniform(0.2, 2, shape).astype(np.float32) if shape else None
    return Draw(model, data, y, weights, ["auto", "native"][rng.integers(2)], used)


def outcome(seed: int) -> tuple[str, str]:
    """`equal`, `refused`, `wrong` or `failed`, and what was drawn or said."""
    try:
        drawn = draw(seed)
        wanted_losses, wanted = losses_and_gradients(drawn.model, drawn.x, drawn.y, drawn.weights)
    except Exception as error:  # Keras itself can't train it
        return "not a model", f"{type(error).__name__}: {str(error).splitlines()[0][:150] if str(error) else ''}"
    if not (np.isfinite(wanted_losses).all() and np.isfinite(wanted).all()):
        return "not a model", "its loss is not finite"
    told = f"seed {seed} {drawn.precision} {drawn.used} weights {None if drawn.weights is None else drawn.weights.shape}"
    try:
        batch = ExampleBatch(np.arange(ROWS).astype(str).astype(object), drawn.x, drawn.y, drawn.weights)
        model = InfluenceModel(drawn.model, weights="all", precision=drawn.precision)  # type: ignore[arg-type]
        model.check(batch)
        found_losses, gradients = model.losses_and_gradients(batch)
        found = np.asarray(gradients)
    except ValueError as error:
        return "refused", f"{told}: {str(error)[:300]}"
    except Exception as error:
        return "failed", f"{told}: {type(error).__name__} {str(error)[:300]}"
    off = np.abs(found_losses - wanted_losses).max() / max(np.abs(wanted_losses).max(), 1e-6)
    off_gradient = np.abs(found - wanted).max() / max(np.abs(wanted).max(), 1e-6)
    if max(off, off_gradient) > TOLERANCE:
        return "wrong", f"{told}: losses off by {off:.2g}, gradients by {off_gradient:.2g}"
    return "equal", told


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started, counts = time.monotonic(), Counter[str]()
    for seed in range(options.seed, options.seed + options.draws):
        kind, told = outcome(seed)
        counts[kind] += 1
        if kind != "equal":
            print(kind, told, flush=True)
    layers = {*OF_ANY, *(name for table in (*TABLE.values(), *TO_VECTOR.values()) for name in table), *STARTS}
    print(f"{options.draws} draws from {len(layers)} layers in {time.monotonic() - started:.0f} s: {dict(counts)}")
    return int(bool(counts["wrong"] or counts["failed"]))


if __name__ == "__main__":
    raise SystemExit(main())
