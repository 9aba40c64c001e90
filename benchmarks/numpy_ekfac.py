"""EK-FAC of the MLP of `networks` in NumPy, float64, and how many of the first ten this program and dattri share with it.

python -m benchmarks.numpy_ekfac --torch_python PYTHON [--examples 5000] [--folder out/speed]
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from typing import Any

import numpy as np

from benchmarks import networks
from benchmarks.speed import measure
from benchmarks.torch_answers import DATTRI_DAMPING, answer_of


def main() -> None:
    """Prints the shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch_python", required=True, help="the Python of an environment with torch and dattri")
    parser.add_argument("--examples", type=int, default=5_000, help="training examples, in steps of 2,500")
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("out/speed"), help="where the data goes")
    options = parser.parse_args()
    options.folder = options.folder.resolve()
    answers: dict[str, list[list[int]]] = {"beam-influence": measure("damped_job", pathlib.Path.cwd(), options)["top"]}
    for name, strategy in {"dattri": "ekfac", "dattri, mended": "mended_ekfac"}.items():
        found = answer_of(options.torch_python, options.folder / "mlp", options.examples, "dattri", strategy, "mlp")
        answers[name] = found["top"]
    scores = ekfac_scores(networks.arrays("mlp", options.folder / "mlp", options.examples), DATTRI_DAMPING)
    wanted = np.argsort(-scores, axis=1)[:, : networks.TOP_K]
    for name, top in answers.items():
        shared = np.mean([len(set(mine) & set(theirs.tolist())) / len(mine) for mine, theirs in zip(top, wanted, strict=True)])
        print(f"{name:<15} {shared:.1%} of the first {networks.TOP_K} are NumPy's")


def ekfac_scores(path: pathlib.Path, damping: float) -> np.ndarray:
    """[T, N] of the arrays in `path`, with the labels of the data and one damping for all layers (Grosse et al. 2023, equation 18)."""
    with np.load(path) as arrays:
        weights = [arrays[f"weight-{number}"].astype(np.float64) for number in range(sum(name.startswith("weight-") for name in arrays))]
        splits = [(arrays[f"{split}-x"].astype(np.float64), arrays[f"{split}-y"]) for split in ("train", "test")]
    train, test = (factors(weights, x.reshape(len(x), -1), y) for x, y in splits)
    scores: Any = 0.0
    for (a, g), (of_test, errors) in zip(train, test, strict=True):
        basis, beside = (np.linalg.eigh(side.T @ side / len(side))[1] for side in (a, g))
        a, g, of_test, errors = a @ basis, g @ beside, of_test @ basis, errors @ beside
        eigenvalues = np.square(a).T @ np.square(g) / len(a)
        solved = of_test[:, :, None] * errors[:, None, :] / (eigenvalues + damping)
        scores = scores + np.einsum("tin,ni->tn", np.einsum("tio,no->tin", solved, g), a)
    return scores


def factors(weights: list[np.ndarray], x: np.ndarray, labels: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Each layer's inputs, with a 1 for the bias, and the loss's derivative by its outputs."""
    inputs, z = [], x
    for kernel, bias in zip(weights[::2], weights[1::2], strict=True):
        inputs.append(np.concatenate([x, np.ones((len(x), 1))], axis=1))
        z = x @ kernel + bias
        x = np.maximum(z, 0)
    exponentials = np.exp(z - z.max(axis=1, keepdims=True))
    errors = exponentials / exponentials.sum(axis=1, keepdims=True) - np.eye(z.shape[1])[labels]
    found = [(inputs[-1], errors)]
    for kernel, later in zip(weights[-2:0:-2], inputs[:0:-1], strict=True):
        errors = (errors @ kernel.T) * (later[:, :-1] > 0)
        found.insert(0, (inputs[len(inputs) - 1 - len(found)], errors))
    return found


if __name__ == "__main__":
    sys.exit(main())
