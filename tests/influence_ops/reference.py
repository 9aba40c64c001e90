"""The reference cases (`tests/data`): models, batches, and closed forms of them in NumPy."""

from __future__ import annotations

import pathlib

import keras
import numpy as np

from beam_influence.influence_ops.reading.example_batch import ExampleBatch

DATA = pathlib.Path(__file__).parent.parent / "data"


def dense_model(kernel: np.ndarray, bias: np.ndarray, l2: float = 0.0) -> keras.Model:
    """One Dense layer with these weights; l2 is the λ of λ/2·‖θ‖²."""
    penalty = keras.regularizers.L2(l2 / 2) if l2 else None
    inputs = keras.Input((kernel.shape[0],), name="x")
    outputs = keras.layers.Dense(kernel.shape[1], kernel_regularizer=penalty, bias_regularizer=penalty)(inputs)
    model = keras.Model(inputs, outputs)
    model.set_weights([kernel, bias])
    return model


def batches(x: np.ndarray, y: np.ndarray, size: int, prefix: str = "train") -> list[ExampleBatch]:
    """Batches of at most `size`, with ids `<prefix>:<row>` and groups by row modulo 3."""
    rows = np.arange(len(x))
    ids = np.array([f"{prefix}:{row}" for row in rows], dtype=object)
    groups = np.array([f"g{row % 3}" for row in rows], dtype=object)
    return [
        ExampleBatch(ids[s : s + size], x[s : s + size], y[s : s + size], groups=groups[s : s + size])
        for s in range(0, len(x), size)
    ]


def case_a() -> dict[str, np.ndarray]:
    """Least squares: 60 train, 12 test, P = 6."""
    return dict(np.load(DATA / "case_a.npz"))


def case_b() -> dict[str, np.ndarray]:
    """Softmax regression on digits: 300 train, 20 test, P = 650; `x_*` are pixels / 16 in float32."""
    case = dict(np.load(DATA / "case_b.npz"))
    for split in ("train", "test"):
        case[f"x_{split}"] = (case[f"x_{split}_raw"] / 16).astype(np.float32)
    return case


def softmax_closed_form(
    x: np.ndarray, labels: np.ndarray, kernel: np.ndarray, bias: np.ndarray, l2: float
) -> tuple[np.ndarray, np.ndarray]:
    """Gradients [N, P] with the L2 term inside each loss, and the mean Hessian [P, P], in float64."""
    x, kernel, bias = (array.astype(np.float64) for array in (x, kernel, bias))
    a = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    z = x @ kernel + bias
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    error = p - np.eye(kernel.shape[1])[labels]
    theta = np.concatenate([kernel.ravel(), bias])
    gradients = (a[:, :, None] * error[:, None, :]).reshape(len(x), -1) + l2 * theta
    hessian = np.zeros((theta.size, theta.size))
    for row in range(len(x)):
        hessian += np.kron(np.outer(a[row], a[row]), np.diag(p[row]) - np.outer(p[row], p[row]))
    return gradients, hessian / len(x) + l2 * np.eye(theta.size)
