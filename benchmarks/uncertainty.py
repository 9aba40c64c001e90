"""Do the 90 % intervals of one run's standard errors (`--uncertainty`) hold the answer of the whole matrix?

An MLP 64-12-10 on 400 digits, all its 910 weights, after 150 steps of SGD; 60 test points. For each curvature and λ, of all pairs and of
the first ten of each test point: the share whose score by the whole Gauss–Newton matrix, inverted in float64 with the same λ, is in the
interval; the correlation with these scores; the median standard error over the median error, 1.48 where errors are normal; and of the rows
that are called stable, the share that the whole matrix has among its first ten too.

    .venv/bin/python -m benchmarks.uncertainty
"""

from __future__ import annotations

import os
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np  # noqa: E402

from beam_influence.influence_ops.curvature import curvature_by_name  # noqa: E402
from beam_influence.influence_ops.ensemble.intervals import interval_factor  # noqa: E402
from beam_influence.influence_ops.model.influence_model import InfluenceModel  # noqa: E402
from beam_influence.influence_ops.reading.example_batch import ExampleBatch  # noqa: E402
from beam_influence.influence_ops.scoring.in_memory import compute_in_memory  # noqa: E402
from benchmarks.many_trainings import DECAY, TEST, TRAIN, load, train  # noqa: E402
from benchmarks.segments import REGIMES, batch, model_of  # noqa: E402

K = 10
CASES: list[tuple[str, int, dict[str, int | str]]] = [
    *(("random_projection", 0, {"projection": "hadamard", "projection_dim": dim}) for dim in (64, 128, 256)),
    *(("gauss_newton_cg", passes, {}) for passes in (1, 2, 3)),
]


def exact_scores(model: InfluenceModel, examples: ExampleBatch, tests: ExampleBatch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of both [N, P] and [T, P], and the whole matrix [P, P]."""
    of_both = [np.asarray(model.losses_and_gradients(each)[1], dtype=np.float64) for each in (examples, tests)]
    matrix = model.gauss_newton_products(examples, np.eye(model.size)) / len(examples) + DECAY * np.eye(model.size)
    return of_both[0], of_both[1], matrix


def main() -> int:
    """Prints a row for each case."""
    data, phases = load(), REGIMES["sgd"]["early"]
    end = sum(phase.steps for phase in phases)
    model = model_of(train(data, np.ones((1, TRAIN), bool), [0], phases, [end])[end], 0)
    examples, tests = batch(data.x, data.y), batch(data.test_x, data.test_y)
    gradients, right, matrix = exact_scores(model, examples, tests)
    mean = 0.1 * float(np.trace(matrix)) / model.size
    heads = f"{'r':>8}{'hold':>8}{'of first':>10}{'error ratio':>13}{'stable':>8}{'right':>8}{'others':>8}{'CPU s':>7}"
    print(f"{'curvature':<50}{'λ':>10}{heads}")
    for damping in (mean, 0.1 * mean):
        exact = gradients @ np.linalg.solve(matrix + damping * np.eye(model.size), right.T)
        for name, passes, settings in CASES:
            curvature, started = curvature_by_name(name, settings=settings), time.process_time()
            how = {"damping": damping, "passes": passes, "top_k": K, "outputs": ("scores", "top_k"), "uncertainty": True}
            found = compute_in_memory(model, curvature, [examples], [tests], **how).tables  # type: ignore[arg-type]
            seconds, factor = time.process_time() - started, interval_factor(curvature.error_draws)
            scores, errors = (found["scores"][column].to_numpy().reshape(TRAIN, TEST) for column in ("influence", "standard_error"))
            away = np.abs(scores - exact)
            pairs = found["top_k"]["train_id"].to_numpy().astype(int), found["top_k"]["test_id"].to_numpy().astype(int)
            stable, right_ones = found["top_k"]["stable"].to_numpy(), exact[pairs] >= np.sort(exact, axis=0)[-K][pairs[1]]
            shares = [f"{right_ones[of].mean():.3f}" if of.any() else "–" for of in (stable, ~stable)]
            what = ", ".join([name, *map(str, settings.values()), *([f"{passes} passes"] if passes else [])])
            cells = f"{np.corrcoef(scores.ravel(), exact.ravel())[0, 1]:>8.3f}{(away <= factor * errors).mean():>8.3f}"
            cells += f"{(away <= factor * errors)[pairs].mean():>10.3f}{np.median(errors) / np.median(away):>13.2f}{stable.mean():>8.3f}"
            print(f"{what:<50}{damping:>10.2e}{cells}{shares[0]:>8}{shares[1]:>8}{seconds:>7.1f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
