"""What `benchmarks.speed` has beside the job of `wide`: softmax regression in NumPy, all examples in memory."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from benchmarks import networks, scale


def answer(arrays: pathlib.Path) -> dict[str, Any]:
    """The best training examples of each test point by (H + λI)⁻¹, λ = 0.1 × the mean eigenvalue, H the Gauss–Newton matrix."""
    usage = scale.Usage()
    with np.load(arrays) as file:
        kernel, bias = (file[f"weight-{number}"].astype(np.float64) for number in (0, 1))
        (x, probabilities, errors), (tests, _, test_errors) = (
            _evaluated(file[f"{split}-x"], file[f"{split}-y"], np.concatenate([kernel, bias[None]])) for split in ("train", "test")
        )
    width, classes = x.shape[1], errors.shape[1]
    curvature = np.zeros((width, classes, width, classes))
    for a in range(classes):
        for b in range(a, classes):
            weight = probabilities[:, a] * (float(a == b) - probabilities[:, b])
            curvature[:, a, :, b] = curvature[:, b, :, a] = (x * weight[:, None]).T @ x / len(x)
    matrix = curvature.reshape(width * classes, -1)
    matrix[np.diag_indices_from(matrix)] += 0.1 * matrix.trace() / len(matrix)
    solved = np.linalg.solve(matrix, (tests[:, :, None] * test_errors[:, None, :]).reshape(len(tests), -1).T).T
    products = x @ solved.reshape(len(tests), width, classes).transpose(1, 0, 2).reshape(width, -1)
    scores = np.einsum("ntc,nc->tn", products.reshape(len(x), len(tests), classes), errors)
    return {**usage.read(), "top": np.argsort(-scores, axis=1)[:, : networks.TOP_K].tolist()}


def _evaluated(images: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features with a 1 for the bias, probabilities, and the loss's derivatives by the outputs."""
    flat = images.reshape(len(images), -1).astype(np.float64)
    x = np.concatenate([flat, np.ones((len(flat), 1))], axis=1)
    logits = x @ weights
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    return x, probabilities, probabilities - np.eye(weights.shape[1])[labels]
