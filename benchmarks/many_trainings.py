"""Many trainings of one small network at once, in NumPy: scikit-learn's digits, an MLP 64-12-10, SGD or Adam with batches of 40.

A retraining has the batches of its own seed, drawn from the examples that it keeps, and as many steps as the model that is explained.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

HIDDEN, CLASSES, FEATURES, BATCH = 12, 10, 64, 40
DECAY = 2e-3
TRAIN, TEST = 400, 60

BETAS, EPSILON = (0.9, 0.999), 1e-7  # Keras's own of Adam

Weights = list[np.ndarray]
"""Of R networks: [R, 64, 12], [R, 12], [R, 12, 10], [R, 10]."""
Optimizer = Literal["sgd", "adam"]


class Point(NamedTuple):
    """Where trainings are after some steps.

    Attributes:
      weights: of the networks.
      squares: v of Adam; of SGD 0.
    """

    weights: Weights
    squares: Weights


@dataclasses.dataclass(frozen=True)
class Phase:
    """So many steps with one learning rate."""

    steps: int
    rate: float


@dataclasses.dataclass(frozen=True)
class Digits:
    """Images [N, 64] from 0 to 1 and labels [N], for training and as test points."""

    x: np.ndarray
    y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray


def load() -> Digits:
    """The examples, the same in each run."""
    from benchmarks.lds import load as load_reference

    data = load_reference()
    return Digits(data["X_train"][:TRAIN], data["y_train"][:TRAIN], data["X_test"][:TEST], data["y_test"][:TEST])


def train(
    data: Digits, masks: np.ndarray, seeds: Sequence[int], phases: Sequence[Phase], at: Sequence[int], optimizer: Optimizer = "sgd"
) -> dict[int, Point]:
    """Trains a network on each row of `masks` with the seed beside it; returns where it is after each step in `at`.

    Args:
      masks: [R, N] bool, the examples that are kept.
      seeds: R; of the first weights and of the batches.
    """
    generators = [np.random.default_rng(seed) for seed in seeds]
    kept = [np.flatnonzero(mask) for mask in masks]
    orders = [np.empty(0, np.int64) for _ in seeds]
    weights = _first(generators)
    means, squares = ([np.zeros_like(w) for w in weights] for _ in range(2))
    found: dict[int, Point] = {}
    step = 0
    for phase in phases:
        for _ in range(phase.steps):
            for number, generator in enumerate(generators):
                if len(orders[number]) < BATCH:
                    orders[number] = np.concatenate([orders[number], generator.permutation(kept[number])])
            rows = np.stack([order[:BATCH] for order in orders])
            orders = [order[BATCH:] for order in orders]
            of_batch = _gradients(weights, data.x[rows], data.y[rows])
            gradients = [g + DECAY * w for w, g in zip(weights, of_batch, strict=True)]
            step += 1
            if optimizer == "adam":
                means = [m + (1 - BETAS[0]) * (g - m) for m, g in zip(means, gradients, strict=True)]
                squares = [v + (1 - BETAS[1]) * (g**2 - v) for v, g in zip(squares, gradients, strict=True)]
                alpha = (1 - BETAS[1] ** step) ** 0.5 / (1 - BETAS[0] ** step)
                gradients = [alpha * m / (np.sqrt(v) + EPSILON) for m, v in zip(means, squares, strict=True)]
            weights = [w - phase.rate * g for w, g in zip(weights, gradients, strict=True)]
            if step in at:
                found[step] = Point(weights, squares)
    return found


def losses(weights: Weights, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Cross-entropy of each network on each example: [R, N]."""
    w1, b1, w2, b2 = weights
    z = np.maximum(x[None] @ w1 + b1[:, None], 0) @ w2 + b2[:, None]
    z -= z.max(axis=2, keepdims=True)
    return np.log(np.exp(z).sum(axis=2)) - np.take_along_axis(z, np.broadcast_to(y, z.shape[:2])[:, :, None], axis=2)[:, :, 0]


def _first(generators: Sequence[np.random.Generator]) -> Weights:
    drawn = [
        (g.normal(0, FEATURES**-0.5, (FEATURES, HIDDEN)), g.normal(0, HIDDEN**-0.5, (HIDDEN, CLASSES))) for g in generators
    ]
    count = len(generators)
    return [np.stack([w for w, _ in drawn]), np.zeros((count, HIDDEN)), np.stack([w for _, w in drawn]), np.zeros((count, CLASSES))]


def _gradients(weights: Weights, x: np.ndarray, y: np.ndarray) -> Weights:
    w1, b1, w2, b2 = weights
    hidden = np.maximum(x @ w1 + b1[:, None], 0)
    z = hidden @ w2 + b2[:, None]
    p = np.exp(z - z.max(axis=2, keepdims=True))
    p /= p.sum(axis=2, keepdims=True)
    p[np.arange(len(y))[:, None], np.arange(y.shape[1])[None], y] -= 1
    p /= y.shape[1]
    back = (p @ w2.transpose(0, 2, 1)) * (hidden > 0)
    return [x.transpose(0, 2, 1) @ back, back.sum(axis=1), hidden.transpose(0, 2, 1) @ p, p.sum(axis=1)]
