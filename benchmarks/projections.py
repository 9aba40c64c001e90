"""What does a random projection of a gradient cost, and how far are its inner products off? `sjlt` beside the others and a dense Gaussian.

Two layouts: the network 784-32-10 of `benchmarks.scale` (P = 25,450, one position), and a transformer's block (P = 197,760, 32
positions), with random factors. Milliseconds of CPU for each example, from the layers' factors on, in batches of 64; a Gaussian matrix
multiplies gradients that are built first, in float32. The error is that of inner products of 64 gradients with 64 others, over 3
seeds: its root mean square beside √((‖x‖²‖y‖² + ⟨x, y⟩²)/k), which is a Gaussian's own.

    python -m benchmarks.projections [--dims 512,2048]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

from beam_influence.influence_ops import device  # sets TensorFlow's log level before it is imported

device.configure_tensorflow()

import numpy as np  # noqa: E402  (after the log level is set)
import tensorflow as tf  # noqa: E402

from beam_influence.influence_ops.curvature.projections import make_projection  # noqa: E402
from beam_influence.influence_ops.curvature.sparse_projection import SparseProjection  # noqa: E402
from beam_influence.influence_ops.model.gradients import BlockLayout, Factored, Gradients, Layout, Piece  # noqa: E402

NETWORKS = {
    "784-32-10": (((785, 32), (33, 10)), 1),
    "transformer": ((*((129, 128),) * 4, (129, 512), (513, 128)), 32),
}
EXAMPLES = 64
SEEDS = 3

Project = Callable[[Gradients, int], np.ndarray]
"""The gradients' projections [B, k], with the projection of a seed."""


def main() -> int:
    """Prints a row for each network, k and projection."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dims", default="512,2048", help="k, separated by commas (default: 512,2048)")
    arguments = parser.parse_args()
    print(f"{'network':<14}{'P':>9}{'k':>7}  {'projection':<18}{'CPU ms/example':>16}{'error / Gaussian':>18}")
    for name, (shapes, positions) in NETWORKS.items():
        layout = layout_of(shapes)
        gradients = gradients_of(layout, positions)
        for dim in map(int, arguments.dims.split(",")):
            for kind, project in projections(layout, dim).items():
                seconds, error = measure(gradients, dim, project)
                print(f"{name:<14}{layout.size:>9,}{dim:>7,}  {kind:<18}{1000 * seconds:>16.3f}{error:>18.2f}", flush=True)
    return 0


def layout_of(shapes: tuple[tuple[int, int], ...]) -> Layout:
    """Layers of these matrices, one after the other."""
    blocks, start = [], 0
    for number, (rows, columns) in enumerate(shapes):
        blocks.append(BlockLayout(str(number), "factored", rows, columns, (Piece(start, (rows, columns), (0, 1), 0, rows),)))
        start += rows * columns
    return Layout(tuple(blocks), start)


def gradients_of(layout: Layout, positions: int) -> Gradients:
    """Twice `EXAMPLES` gradients whose inputs are positive, as behind a ReLU, so that they are not orthogonal."""
    random = np.random.default_rng(0)

    def factors(size: int) -> np.ndarray:
        return random.standard_normal((2 * EXAMPLES, positions, size)).astype(np.float32)

    blocks = tuple(Factored(tf.constant(np.maximum(factors(b.rows), 0)), tf.constant(factors(b.columns))) for b in layout.blocks)
    return Gradients(layout, blocks)


def projections(layout: Layout, dim: int) -> dict[str, Project]:
    """Each projection by its name."""
    known: dict[int, np.ndarray] = {}

    def gaussian(gradients: Gradients, seed: int) -> np.ndarray:
        if seed not in known:
            known.clear()
            known[seed] = np.random.default_rng(seed).standard_normal((layout.size, dim), dtype=np.float32) * np.float32(dim**-0.5)
        return np.asarray(gradients, dtype=np.float32) @ known[seed]

    found: dict[str, Project] = {"dense Gaussian": gaussian}
    for kind in ("hadamard", "two_sided", "sjlt"):
        found[kind] = lambda gradients, seed, kind=kind: make_projection(kind, layout, dim, seed).of_gradients(gradients)  # type: ignore[arg-type]
    found["sjlt, 4 entries"] = lambda gradients, seed: SparseProjection(layout, dim, seed, 4).of_gradients(gradients)
    return found


def measure(gradients: Gradients, dim: int, project: Project) -> tuple[float, float]:
    """CPU seconds for each example, and the error of inner products over a Gaussian's."""
    whole = np.asarray(gradients, dtype=np.float64)
    first, second = whole[:EXAMPLES], whole[EXAMPLES:]
    exact = first @ second.T
    bound = np.sqrt((np.outer((first**2).sum(axis=1), (second**2).sum(axis=1)) + exact**2) / dim)
    seconds, errors = [], []
    for seed in range(SEEDS):
        project(gradients.select(np.arange(1)), seed)  # what is made once
        started = time.process_time()
        projected = project(gradients, seed)
        seconds.append(time.process_time() - started)
        errors.append((projected[:EXAMPLES] @ projected[EXAMPLES:].T - exact) / bound)
    return min(seconds) / len(whole), float(np.sqrt(np.mean(np.square(errors))))


if __name__ == "__main__":
    sys.exit(main())
