"""How many passes does `gauss_newton_cg` need? LDS and residual after each, on the MLP of dattri's table.

The test points are every eighth of the 500 from the second on, all of them such as `dattri_table` tells; the random halves are its own.

    python -m benchmarks.dattri_passes [--dampings 0.01,0.001] [--passes 12] [--epochs 50]
"""

from __future__ import annotations

import argparse
import pathlib
import sys

from beam_influence.influence_ops import device  # sets TensorFlow's log level before it is imported

device.configure_tensorflow()

import numpy as np  # noqa: E402  (after the log level is set)

from beam_influence.influence_ops.evaluation.correlation import mean_over_columns, spearman  # noqa: E402
from beam_influence.influence_ops.evaluation.damping_sweep import summed_gradients  # noqa: E402
from beam_influence.influence_ops.model.influence_model import InfluenceModel  # noqa: E402
from beam_influence.influence_ops.reading.example_batch import ExampleBatch  # noqa: E402
from beam_influence.influence_ops.scoring import query_solver  # noqa: E402
from beam_influence.influence_ops.scoring.in_memory import fit_curvature  # noqa: E402
from benchmarks.dattri_training import TRAIN, ground_truth, mnist, trained  # noqa: E402
from benchmarks.lds import batches, configuration  # noqa: E402

EVERY, TOLERANCE = 8, 1e-6


def main() -> int:
    """Prints a line for each λ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dampings", default="1e-1,1e-2,1e-3,1e-4", help="λ")
    parser.add_argument("--passes", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=50, help="after which the training is looked at")
    parser.add_argument("--retrainings", type=int, default=100, help="random halves, and removals, of dattri_table")
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("out/dattri"))
    options = parser.parse_args()
    data = mnist(options.folder)
    truth = ground_truth("mlp", data, options.retrainings, options.retrainings, options.folder)
    network = trained("mlp", data, options.folder, 0, options.epochs)
    model = InfluenceModel(network, loss_function="softmax_cross_entropy", weights="all", precision="native")
    train, chosen = batches(data, "train"), np.arange(1, len(data["X_test"]), EVERY)
    of_halves = summed_gradients(model, train, truth["halves"], {str(row): row for row in range(TRAIN)})
    tests = ExampleBatch(chosen.astype(str).astype(object), data["X_test"][chosen], data["y_test"][chosen])
    right = np.asarray(model.losses_and_gradients(tests)[1], dtype=np.float64)

    def lds(solved: np.ndarray) -> float:
        return mean_over_columns(spearman(of_halves @ solved.T, -truth["half_losses"][:, chosen]))

    for damping in options.dampings.split(","):
        config = configuration("gauss_newton_cg", damping)
        operator = fit_curvature(model, config.make_curvature(), train, config.finish_options()).bind(model)
        solved, opened = operator.apply(right), lambda operator=operator: (model, operator)
        print(f"λ {damping}: EK-FAC {lds(solved):.3f}; after a pass: its LDS (its median residual)", flush=True)
        state = query_solver.begin("gauss_newton", right, solved, options.passes, TOLERANCE, opened)
        for number in range(1, options.passes + 1):
            vectors = np.ascontiguousarray(query_solver.to_multiply(state))
            summed = sum((model.gauss_newton_products(batch, vectors) for batch in train), np.zeros_like(vectors))
            state = query_solver.step("gauss_newton", state, summed, TOLERANCE, opened)
            best, residuals, left = query_solver.solutions(state)
            print(f"  {number}: {lds(best):.3f} ({np.median(residuals):.2g})", flush=True)
            if not left:
                break
    return 0


if __name__ == "__main__":
    sys.exit(main())
