"""Intervals of simulated ensembles, whose error is known, and the factor written out as a loop."""

from __future__ import annotations

import math

import numpy as np
import pytest

from beam_influence.influence_ops.ensemble.intervals import interval_factor
from beam_influence.influence_ops.evaluation.coverage import coverage

MEMBERS, RETRAININGS, TESTS = 4, 40, 60
KEPT = np.full(RETRAININGS, 95)


def simulated(common: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Sums of members whose spread is 0.1, and the losses of retrainings that differ from all of them by `common`, too."""
    random = np.random.default_rng(seed)
    truth = random.normal(size=(RETRAININGS, TESTS))
    members = truth + random.normal(size=(MEMBERS, RETRAININGS, TESTS)) * 0.1
    return -members * KEPT[:, None], truth + common * random.normal(size=truth.shape) + 5 * random.normal(size=TESTS)


def test_students_t_holds_where_members_differ_by_noise_alone() -> None:
    students, calibrated = coverage(*(simulated(0)[0], KEPT, simulated(0)[1]))
    assert students.factor == interval_factor(MEMBERS) and students.share == pytest.approx(0.9, abs=0.02)
    assert calibrated.factor == pytest.approx(students.factor, rel=0.1)


def test_what_members_share_is_in_the_calibrated_interval_alone() -> None:
    sums, losses = simulated(0.5)
    students, calibrated = coverage(sums, KEPT, losses)
    assert students.share < 0.4
    assert calibrated.share == pytest.approx(0.9, abs=0.02) and 0 < calibrated.standard_error < 0.03
    predicted = -sums / KEPT[:, None]
    ratios = []
    for s in range(RETRAININGS):
        for t in range(0, TESTS, 2):
            of_members = [predicted[m, s, t] - predicted[m, :, t].mean() for m in range(MEMBERS)]
            actual = losses[s, t] - losses[:, t].mean()
            ratios.append(abs(actual - np.mean(of_members)) / (np.std(of_members, ddof=1) / math.sqrt(MEMBERS)))
    assert calibrated.factor == pytest.approx(sorted(ratios)[math.ceil(0.9 * (len(ratios) + 1)) - 1], rel=1e-9)


def test_what_tells_nothing_is_refused() -> None:
    sums, losses = simulated(0)
    with pytest.raises(ValueError, match="2 retrainings and 60 test points"):
        coverage(sums[:, :2], KEPT[:2], losses[:2])
    with pytest.raises(ValueError, match="1 member has no standard error"):
        coverage(sums[:1], KEPT, losses)
    with pytest.raises(ValueError, match="predict the same to the last digit"):
        coverage(np.stack([sums[0]] * 2), KEPT, losses)
    with pytest.raises(ValueError, match="must be finite"):
        coverage(sums, KEPT, losses * np.nan)
