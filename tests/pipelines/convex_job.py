"""A convex model whose retraining is exact: softmax regression on small digits, trained by Newton steps in NumPy."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

from tests.pipelines.digits_job import floats, framed, ints

CLASSES, SIZE = 3, 16
TRAIN, TEST = 120, 15
LAM = 1e-2
CALLS = "CALLS_OF_THE_TRAIN_FUNCTION"
"""The environment variable that names the file in which each retraining leaves a line."""


def network() -> keras.Model:
    """64 pixels as 16 means, to 3 logits: P = 51, λ/2·‖θ‖² on all of them, in float64."""
    penalty = keras.regularizers.L2(LAM / 2)
    inputs = keras.Input((SIZE,), name="image", dtype="float64")
    dense = keras.layers.Dense(CLASSES, dtype="float64", kernel_regularizer=penalty, bias_regularizer=penalty, name="logits")
    model = keras.Model(inputs, dense(inputs))
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def train(examples: tf.data.Dataset, seed: int) -> keras.Model:
    """The optimum of mean cross-entropy + λ/2·‖θ‖²: |gradient| < 1e-12 by Newton's method."""
    if os.environ.get(CALLS):
        with open(os.environ[CALLS], "a") as file:
            file.write(f"{int(examples.cardinality())} {seed}\n")
    x, y = next(iter(examples.batch(int(examples.cardinality()))))
    weights = optimum(x.numpy().astype(np.float64), y.numpy())
    model = network()
    model.set_weights([weights[:-1], weights[-1]])
    return model


def optimum(x: np.ndarray, y: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """The weights [17, 3], the last row the bias; `weights` of the examples' losses, 1/n where none are given."""
    w = np.full(len(x), 1 / len(x)) if weights is None else weights
    a, one_hot = np.concatenate([x, np.ones((len(x), 1))], axis=1), np.eye(CLASSES)[y]
    theta = np.zeros((a.shape[1], CLASSES))
    for _ in range(50):
        z = a @ theta
        p = np.exp(z - z.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        gradient = a.T @ (w[:, None] * (p - one_hot)) + LAM * theta
        if np.linalg.norm(gradient) < 1e-12:
            return theta
        middle = (p[:, :, None] * np.eye(CLASSES) - p[:, :, None] * p[:, None, :]) * w[:, None, None]
        hessian = np.einsum("nd,ncb,ne->dceb", a, middle, a).reshape(theta.size, theta.size) + LAM * np.eye(theta.size)
        theta = theta - np.linalg.solve(hessian, gradient.ravel()).reshape(theta.shape)
    raise AssertionError("not converged")


def train_with_noise(examples: tf.data.Dataset, seed: int) -> keras.Model:
    """The optimum, moved at random by the seed."""
    model = train(examples, seed)
    generator = np.random.default_rng(seed)
    model.set_weights([w + 0.01 * generator.normal(size=w.shape) for w in model.get_weights()])
    return model


def train_another_shape(examples: tf.data.Dataset, seed: int) -> keras.Model:
    inputs = keras.Input((SIZE,), name="image")
    return keras.Model(inputs, keras.layers.Dense(CLASSES + 1)(inputs))


def train_nothing(examples: tf.data.Dataset, seed: int) -> None:
    return None


def takes_too_little(examples: tf.data.Dataset) -> None:
    return None


class ConvexJob:
    """Files of examples and the trained model below a folder; `flipped` training examples have a wrong label."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        digits: Any = load_digits(n_class=CLASSES)
        order = np.random.default_rng(5).permutation(len(digits.target))[: TRAIN + TEST]
        images = digits.images[order].reshape(-1, 4, 2, 4, 2).mean(axis=(2, 4)).reshape(-1, SIZE) / 16
        self.x, self.y = images.astype(np.float32), digits.target[order].astype(np.int64)
        self.flipped = np.random.default_rng(6).choice(TRAIN, 12, replace=False)
        self.y[self.flipped] = (self.y[self.flipped] + 1) % CLASSES
        parts = {"train-0": range(0, 50), "train-1": range(50, TRAIN), "test-0": range(TRAIN, TRAIN + TEST)}
        for name, rows in parts.items():
            data = framed(self._example(row) for row in rows)
            (folder / f"{name}.tfrecord").write_bytes(data)
        self.model = folder / "model.keras"
        weights = optimum(self.x[:TRAIN].astype(np.float64), self.y[:TRAIN])
        model = network()
        model.set_weights([weights[:-1], weights[-1]])
        model.save(self.model)

    def _example(self, row: int) -> bytes:
        feature = {"image": floats(self.x[row]), "label": ints([self.y[row]])}
        return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()

    def train_ids(self) -> list[str]:
        return [f"train-0.tfrecord:{row}" for row in range(50)] + [f"train-1.tfrecord:{row}" for row in range(TRAIN - 50)]
