"""SOURCE, ensembles and their intervals beside real retraining, where training was stopped early and where it converged.

Five models of an MLP 64-12-10 on 400 digits (P = 910), each with its own seed, explain 60 test points. Retrained are random halves, each
with several seeds, and random groups of 5 % left out; see `many_trainings`.

    python -m benchmarks.segments [--optimizer adam] [--regimes early,converged] [--curvatures ekfac,source] [--members 5]
        [--passes 5] [--retrainings 40] [--repeats 4]
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable
from typing import Any

from beam_influence.influence_ops import device  # sets TensorFlow's log level before it is imported

device.configure_tensorflow()

import keras  # noqa: E402  (after the log level is set)
import numpy as np  # noqa: E402

from beam_influence.influence_ops.calculator.passes import DEFAULT_PASSES, DEFAULT_TOLERANCE, UnrolledByPasses  # noqa: E402
from beam_influence.influence_ops.curvature import curvature_by_name, fit  # noqa: E402
from beam_influence.influence_ops.curvature.base import FinishOptions  # noqa: E402
from beam_influence.influence_ops.ensemble.intervals import interval_factor  # noqa: E402
from beam_influence.influence_ops.evaluation.correlation import bootstrap_error, mean_over_columns, spearman  # noqa: E402
from beam_influence.influence_ops.evaluation.coverage import Coverage, coverage  # noqa: E402
from beam_influence.influence_ops.model.checkpoints import CheckpointSum  # noqa: E402
from beam_influence.influence_ops.model.explained_model import ExplainedModel  # noqa: E402
from beam_influence.influence_ops.model.influence_model import InfluenceModel  # noqa: E402
from beam_influence.influence_ops.reading.example_batch import ExampleBatch  # noqa: E402
from benchmarks.many_trainings import (  # noqa: E402
    BETAS,
    DECAY,
    EPSILON,
    HIDDEN,
    TRAIN,
    Digits,
    Optimizer,
    Phase,
    Point,
    load,
    losses,
    train,
)

GROUPS, GROUP_SIZE = 20, 20
REGIMES: dict[Optimizer, dict[str, list[Phase]]] = {
    "sgd": {"early": [Phase(100, 0.1), Phase(50, 0.05)], "converged": [Phase(2500, 0.3), Phase(1500, 0.05)]},
    "adam": {"early": [Phase(100, 0.003), Phase(50, 0.0015)], "converged": [Phase(2500, 0.003), Phase(1500, 0.0003)]},
}
SEGMENTS = {"early": 3, "converged": 3}
ONE_OF = {"source": "ekfac", "source_gauss_newton": "gauss_newton", "source_gauss_newton_cg": "gauss_newton"}
"""The curvatures of segments, and those of one checkpoint that they are compared with."""


@dataclasses.dataclass(frozen=True)
class Truth:
    """What retraining did.

    Attributes:
      masks, losses: of the halves: [S, N] and, the mean over seeds, [S, T].
      groups, changes: those left out [G, N], and the change of the losses for each seed [R, G, T].
    """

    masks: np.ndarray
    losses: np.ndarray
    groups: np.ndarray
    changes: np.ndarray


def retrain(data: Digits, phases: list[Phase], retrainings: int, repeats: int, optimizer: Optimizer) -> Truth:
    """All retrainings; those of a group have the seed of one on everything beside them."""
    random = np.random.default_rng(0)
    halves = np.stack([random.permutation(TRAIN) < TRAIN // 2 for _ in range(retrainings)])
    without = np.ones((GROUPS + 1, TRAIN), bool)
    for number in range(GROUPS):
        without[number, random.choice(TRAIN, GROUP_SIZE, replace=False)] = False
    end = sum(phase.steps for phase in phases)
    # A group and the base beside it share a seed, so that their difference is the group's.
    masks = np.concatenate([halves, without])
    found = []
    for repeat in range(repeats):
        seeds = [1000 * (repeat + 1) + row for row in range(retrainings)] + [1000 * (repeat + 1) + 999] * len(without)
        found.append(losses(train(data, masks, seeds, phases, [end], optimizer)[end].weights, data.test_x, data.test_y))
    all_losses = np.stack(found)
    of_groups = all_losses[:, retrainings:]
    return Truth(halves, all_losses[:, :retrainings].mean(axis=0), ~without[:GROUPS], of_groups[:, :GROUPS] - of_groups[:, GROUPS:])


def batch(x: np.ndarray, y: np.ndarray) -> ExampleBatch:
    """All examples at once."""
    return ExampleBatch(np.arange(len(x)).astype(str).astype(object), x, y)


def model_of(point: Point, member: int, step: int = 0, optimizer: Optimizer = "sgd") -> InfluenceModel:
    """One of the networks, all weights watched, in float64; trained by Adam, with Keras's own as it is after so many steps."""
    inputs = keras.Input((64,), dtype="float64")
    hidden = keras.layers.Dense(HIDDEN, activation="relu", dtype="float64")(inputs)
    network = keras.Model(inputs, keras.layers.Dense(10, dtype="float64")(hidden))
    network.set_weights([array[member] for array in point.weights])
    if optimizer == "adam":
        adam: Any = keras.optimizers.Adam(0.0, *BETAS, epsilon=EPSILON)
        network.compile(adam)
        adam.build(network.trainable_variables)
        adam.iterations.assign(step)
        for variable, squares in zip(adam._velocities, point.squares, strict=True):
            variable.assign(squares[member])
    return InfluenceModel(network, loss_function="softmax_cross_entropy", weights="all", weight_decay=DECAY)


def scores(
    model: ExplainedModel, data: Digits, name: str, settings: dict[str, Any], damping: float | str = "auto", passes: int = DEFAULT_PASSES
) -> np.ndarray:
    """Influence: [N, T]; `passes`: of each segment that is solved over the data."""
    rows, tests = batch(data.x, data.y), batch(data.test_x, data.test_y)
    curvature = curvature_by_name(name, settings=settings)
    operator = fit(model, curvature, lambda: [rows], FinishOptions(damping)).bind(model)
    if curvature.systems == "segments":
        operator = UnrolledByPasses.over(operator, model, lambda: [rows], passes, DEFAULT_TOLERANCE)
    solved = operator.apply(np.asarray(model.losses_and_gradients(tests)[1], dtype=np.float64))
    return np.asarray(model.losses_and_gradients(rows)[1], dtype=np.float64) @ solved.T


def cuts_of(phases: list[Phase], in_each: int) -> tuple[list[int], dict[str, Any]]:
    """The steps of checkpoints, the middle of each segment and the end, and the settings: `in_each` segments in each phase."""
    middles, steps, rates, start = [], [], [], 0
    for phase in phases:
        for part in np.array_split(np.arange(phase.steps), in_each):
            middles.append(start + len(part) // 2)
            steps.append(len(part))
            rates.append(phase.rate)
            start += len(part)
    counts = [1] * (len(middles) - 1) + [2]
    texts = [",".join(map(str, numbers)) for numbers in (counts, steps, rates)]
    return [*middles, start], dict(zip(("segments", "segment_steps", "segment_rates"), texts, strict=True))


def lds_of(truth: Truth, methods: list[list[np.ndarray]]) -> tuple[list[float], Callable[[Callable[[list[float]], float]], float]]:
    """The LDS of each method, the mean over its members' own; and the standard error of what is made of them."""
    sums = [[truth.masks @ member for member in members] for members in methods]

    def each(rows: np.ndarray) -> list[float]:
        actual = -truth.losses[rows]
        return [float(np.mean([mean_over_columns(spearman(s[rows], actual)) for s in members])) for members in sums]

    return each(np.arange(len(truth.masks))), lambda of: bootstrap_error(lambda rows: of(each(rows)), len(truth.masks), samples=200)


def coverage_of(truth: Truth, members: list[np.ndarray]) -> tuple[float, float, Coverage]:
    """The share of (group, test point) whose actual change, the mean over seeds, is in the ensemble's 90 % interval: of its own standard
    error alone, with that of the actual change, and with a factor learned from every second test point, at the others."""
    predicted = np.stack([truth.groups @ member for member in members]) / TRAIN
    actual, factor = truth.changes.mean(axis=0), interval_factor(len(members))
    error, of_actual = (values.std(axis=0, ddof=1) / len(values) ** 0.5 for values in (predicted, truth.changes))
    away = np.abs(predicted.mean(axis=0) - actual)
    kept = ~truth.groups
    calibrated = coverage(np.stack([kept @ member for member in members]), kept.sum(axis=1), actual)[1]
    return float((away <= factor * error).mean()), float((away <= factor * np.hypot(error, of_actual)).mean()), calibrated


def beside(members: list[np.ndarray], others: list[np.ndarray]) -> str:
    """How like the scores are: the correlation over training examples, the mean over test points and models; the error by the norm."""
    pairs = list(zip(members, others, strict=True))
    each = [np.corrcoef(own, other)[0, 1] for a, b in pairs for own, other in zip(a.T, b.T, strict=True)]
    error = np.mean([np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in pairs])
    return f"correlation {np.mean(each):.4f}, error {error:.3f}"


def measure(regime: str, options: argparse.Namespace) -> None:
    """Prints the rows of one regime."""
    optimizer, members = options.optimizer, options.members
    data, phases = load(), REGIMES[optimizer][regime]
    started = time.process_time()
    truth = retrain(data, phases, options.retrainings, options.repeats, optimizer)
    steps, settings = cuts_of(phases, SEGMENTS[regime])
    path = train(data, np.ones((members, TRAIN), bool), range(members), phases, steps, optimizer)
    print(f"\n{optimizer}, {regime}: {phases}; trainings {time.process_time() - started:.0f} CPU s", flush=True)
    found: dict[str, list[np.ndarray]] = {}
    for name in options.curvatures.split(","):
        started, found[name] = time.process_time(), []
        for member in range(members):
            models = [model_of(path[step], member, step, optimizer) for step in steps]
            is_source = name in ONE_OF
            if is_source:
                found[name].append(scores(CheckpointSum(models), data, name, settings, passes=options.passes))
            else:
                found[name].append(scores(models[-1], data, name, {}, options.damping))
        print(f"{name}: {(time.process_time() - started) / members:.1f} CPU s a model", flush=True)
    names = list(found)
    ensembles = [[np.mean(of_members, axis=0)] for of_members in found.values()]
    values, error_of = lds_of(truth, [*found.values(), *ensembles])
    heads = f"{'LDS, one model':>20}{'ensemble':>20}{'ensemble above one':>22}{'above one checkpoint':>24}"
    print(f"{'':<22}{heads}{'coverage':>20}{'calibrated':>26}")
    for place, name in enumerate(names):
        other = names.index(ONE_OF.get(name, name))
        pairs: list[Callable[[list[float]], float]] = [
            lambda lds, a=place: lds[a],
            lambda lds, a=place: lds[len(names) + a],
            lambda lds, a=place: lds[len(names) + a] - lds[a],
            lambda lds, a=place, b=other: lds[a] - lds[b],
        ]
        shown = [f"{of(values):.3f} ± {error_of(of):.3f}" for of in (pairs if name in ONE_OF else pairs[:3])]
        own, both, learned = coverage_of(truth, found[name])
        cells = f"{shown[0]:>20}{shown[1]:>20}{shown[2]:>22}{shown[3] if len(shown) > 3 else '':>24}"
        calibrated = f"{learned.share:.3f} ± {learned.standard_error:.3f} by {learned.factor:.1f}"
        print(f"{name:<22}{cells}{own:>10.3f}{both:>10.3f}{calibrated:>26}", flush=True)
    if {"source_gauss_newton", "source_gauss_newton_cg"} <= set(names):
        told = beside(found["source_gauss_newton_cg"], found["source_gauss_newton"])
        print(f"source_gauss_newton_cg, {options.passes} passes a segment, beside source_gauss_newton: {told}", flush=True)


def main() -> int:
    """Measures each regime."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimizer", default="sgd", choices=list(REGIMES))
    parser.add_argument("--regimes", default=",".join(SEGMENTS), help="early, converged")
    every = ",".join([*dict.fromkeys(ONE_OF.values()), *ONE_OF])
    parser.add_argument("--curvatures", default=every, help=f"those of segments after those of one checkpoint (default: {every})")
    number = "of those of one checkpoint, auto or a number; of those of segments it is auto"
    parser.add_argument("--damping", default="auto", type=lambda text: text if text == "auto" else float(text), help=number)
    parser.add_argument("--passes", type=int, default=DEFAULT_PASSES, help="of each segment, of source_gauss_newton_cg")
    parser.add_argument("--members", type=int, default=5, help="models that explain, each with its own seed")
    parser.add_argument("--retrainings", type=int, default=40, help="random halves")
    parser.add_argument("--repeats", type=int, default=4, help="seeds of each retraining")
    options = parser.parse_args()
    for regime in options.regimes.split(","):
        measure(regime, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
