"""`--curvature auto` beside the best choice by hand, on thirteen workloads.

    digits      MLP 64-16-10 on 600 digits, stopped after 6 epochs of SGD
    cancer      MLP 30-16-1 on 400 rows of breast cancer, Adam, with a penalty
    pictures    a small convolutional network on 600 digits, Adam
    diabetes    regression 10-16-1 on 340 rows, SGD with momentum
    concrete    regression 8-32-16-1 on 800 mixtures of UCI's concrete, Adam
    moons       tanh 2-16-8-1 on 400 points of two half circles, SGD with momentum
    noisy       tanh 30-12-1 on 400 rows of breast cancer with 15 % wrong labels, SGD with momentum
    impedance   regression, tanh 4-16-1, on 400 rows of Friedman's third problem, Adam
    wide        tanh 64-32-10 on 600 digits, Adam
    wine        MLP 13-12-3 on 120 wines, Adam
    friedman    regression 10-24-1 on 400 rows of Friedman's first problem, Adam
    parity      odd or even? tanh 64-16-8-1 on 600 digits, SGD with momentum
    rows        a recurrent network, pixel row by pixel row, on 600 digits, Adam

Each is trained on all and on `--retrainings` random halves, `--repeats` seeds each, whose mean loss is taken; LDS at the odd test points,
all weights watched. By hand: every curvature with its own damping and with λ from 10⁻⁴ to 10, and the best of them at those same odd
points, with all retrainings in sight, so that it flatters itself. `--curvature auto` sees the model and its training examples alone,
`evaluate choose` the even test points of 20 of the retrainings, and of all. `default` is gauss_newton with its own damping. The first
nine had a part in the rules, the last four none. `--each` prints instead each curvature with its own λ and with the best at the even test
points, told at the odd ones.

    python -m benchmarks.choices [--workloads digits,diabetes] [--retrainings 50] [--repeats 2] [--each]
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from beam_influence.influence_ops.curvature import FinishOptions, Preconditioner, curvature_by_name, fit
from beam_influence.influence_ops.curvature.stopped_early import TrainingEnd, training_end
from beam_influence.influence_ops.evaluation.candidates import Candidate, choose_candidate
from beam_influence.influence_ops.evaluation.correlation import mean_over_columns, spearman
from beam_influence.influence_ops.evaluation.lds import linear_datamodelling_score
from beam_influence.influence_ops.model.influence_model import InfluenceModel
from beam_influence.influence_ops.reading.example_batch import ExampleBatch
from beam_influence.pipelines.choosing.choose import damped
from beam_influence.pipelines.choosing.rules import Situation, candidates
from beam_influence.pipelines.config import InfluenceConfig
from benchmarks.choice_workloads import WORKLOADS, ground_truth
from benchmarks.lds import batches, configuration

GRID = [10 ** (step / 2) for step in range(-8, 3)]


class Found(NamedTuple):
    """A curvature with its λ, its LDS at the odd test points, and the sums of its scores over each half [S, T]."""

    curvature: str
    damping: float
    lds: float
    sums: np.ndarray

    @property
    def text(self) -> str:
        """In a few words."""
        return f"{self.curvature} {self.damping:.2g}: {self.lds:.3f}"


@dataclasses.dataclass
class Case:
    """A trained model and its retrainings, for many λ."""

    model: InfluenceModel
    train: list[ExampleBatch]
    gradients: np.ndarray
    queries: np.ndarray
    halves: np.ndarray
    losses: np.ndarray

    def operator(self, curvature: str, damping: float | str) -> Preconditioner:
        """Fitted on all training examples, with its eigenvalues."""
        options = FinishOptions(damping, spectrum=curvature in ("gauss_newton", "exact"))
        return fit(self.model, curvature_by_name(curvature), lambda: self.train, options).bind(self.model)

    def found(self, operator: Preconditioner) -> Found:
        """Its LDS at the odd test points."""
        sums = self.halves @ (self.gradients @ operator.apply(self.queries).T)
        return Found(str(operator.meta["curvature"]), float(operator.meta["damping"]), self.lds(sums, 1), sums)

    def lds(self, sums: np.ndarray, part: int) -> float:
        """The LDS at the even (0) or the odd (1) test points."""
        return mean_over_columns(spearman(sums[:, part::2], -self.losses[:, part::2]))

    def by_hand(self) -> Iterator[Found]:
        """Every curvature with every λ of the grid that it takes."""
        yield self.found(self.operator("identity", "auto"))
        for curvature in ("kfac", "ekfac", "gauss_newton", "exact"):
            try:
                fitted = self.operator(curvature, 10.0 if curvature == "exact" else "auto")
            except ValueError:
                continue  # a Hessian with an eigenvalue below −10
            yield self.found(fitted)
            for damping in GRID:
                try:
                    other = fitted.with_damping(damping)
                except ValueError:
                    continue  # the Hessian has a smaller eigenvalue
                yield self.found(other)

    def by_retraining(self, hand: Sequence[Found], retrainings: int) -> Found:
        """What `evaluate choose` takes by the even test points of some of the retrainings."""
        judged = choose_candidate([Candidate(*found[:2], False, found.sums[:retrainings]) for found in hand], self.losses[:retrainings])
        return next(found for found, one in zip(hand, judged, strict=True) if one.chosen)

    def by_rules(self) -> tuple[Found, TrainingEnd]:
        """What `--curvature auto` takes."""
        end = training_end(self.model, self.train, is_whole=True)
        found = candidates(configuration("auto", "auto"), None, Situation(self.model.size, end.is_early))
        chosen = damped(next(config for _, config in found if isinstance(config, InfluenceConfig)), end)[0]
        value = chosen.finish_options().damping
        return self.found(self.operator(chosen.curvature, value)), end


def case_of(name: str, retrainings: int, repeats: int, folder: pathlib.Path) -> Case:
    """A workload, trained and retrained."""
    data = WORKLOADS[name].split()
    halves, found, network = ground_truth(name, retrainings, repeats, folder)
    model = InfluenceModel(network, loss_function=WORKLOADS[name].loss, weights="all")
    arrays = {"X_train": data.x, "y_train": data.y, "X_test": data.test_x, "y_test": data.test_y}
    train, test = ([batch for whole in batches(arrays, split) for batch in _parts(whole)] for split in ("train", "test"))
    gradients, queries = (
        np.concatenate([np.asarray(model.losses_and_gradients(batch)[1], np.float64) for batch in some]) for some in (train, test)
    )
    return Case(model, train, gradients, queries, halves, found)


def print_each(case: Case, hand: Sequence[Found]) -> None:
    """A row for each curvature: by its own λ, and by the best at the even test points."""
    for name in dict.fromkeys(found.curvature for found in hand):
        of_name = [found for found in hand if found.curvature == name]
        best = max(of_name, key=lambda found: case.lds(found.sums, 0))
        told = [linear_datamodelling_score(found.sums[:, 1::2], case.losses[:, 1::2]) for found in (of_name[0], best)]
        dampings = (of_name[0].damping, best.damping)
        own, chosen = (f"{value:>10.3g}{lds.mean:>8.3f} ± {lds.standard_error:.3f}" for value, lds in zip(dampings, told, strict=True))
        print(f"    {name:<14}own λ {own if name != 'exact' else '':<26}   best λ {chosen}", flush=True)


def _parts(batch: ExampleBatch) -> list[ExampleBatch]:
    return [batch.select(np.arange(start, min(start + 32, len(batch)))) for start in range(0, len(batch), 32)]


def main() -> int:
    """Prints one row for each workload."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", default=",".join(WORKLOADS), help="names, separated by commas")
    parser.add_argument("--retrainings", type=int, default=50, help="random halves")
    parser.add_argument("--repeats", type=int, default=2, help="seeds of each")
    parser.add_argument("--each", action="store_true", help="each curvature, and not what is chosen")
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("out/choices"))
    options = parser.parse_args()
    titles = "".join(f"{title:<28}" for title in ("by the rules", "by 20 retrainings", "by all", "best by hand"))
    print(f"{'':<10}{'P':>6}{'ratio':>7}{'default':>8}   {titles}", flush=True)
    for name in options.workloads.split(","):
        case = case_of(name, options.retrainings, options.repeats, options.folder)
        if options.each:
            print(name)
            print_each(case, list(case.by_hand()))
            continue
        hand, (rules, end) = list(case.by_hand()), case.by_rules()
        best = max(hand, key=lambda found: found.lds)
        own = case.found(case.operator("gauss_newton", "auto")).lds
        judged = [case.by_retraining(hand, count) for count in (20, options.retrainings)]
        texts = "".join(f"{found.text:<28}" for found in (rules, *judged, best))
        print(f"{name:<10}{case.model.size:>6}{end.damping / end.automatic:>7.1f}{own:>8.3f}   {texts}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
