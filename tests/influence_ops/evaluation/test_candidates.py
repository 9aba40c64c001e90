"""The choice among candidates: by the even test points, told at the odd ones, the cheaper one of equals."""

from __future__ import annotations

import numpy as np
import pytest

from beam_influence.influence_ops.evaluation.candidates import Candidate, choose_candidate
from beam_influence.influence_ops.evaluation.correlation import spearman

_RANDOM = np.random.default_rng(0)
LOSSES = _RANDOM.normal(size=(30, 12))


def candidate(curvature: str, noise: float, damping: float = 1.0) -> Candidate:
    """One that predicts the losses up to noise."""
    return Candidate(curvature, damping, damping == 1.0, -LOSSES + noise * _RANDOM.normal(size=LOSSES.shape))


def test_the_best_is_taken_by_the_even_and_told_at_the_odd_test_points() -> None:
    judged = choose_candidate([candidate("cheap", 3.0), candidate("dear", 1.0), candidate("dear", 0.2, 0.5)], LOSSES)
    assert [one.chosen for one in judged] == [False, False, True]
    for one in judged:
        even, odd = (spearman(one.candidate.predicted[:, part::2], -LOSSES[:, part::2]).mean() for part in (0, 1))
        assert (one.choosing, one.reporting.mean) == (pytest.approx(even), pytest.approx(odd))


def test_the_cheaper_of_equals_is_taken() -> None:
    dear = candidate("dear", 0.5)
    same = Candidate("cheap", 1.0, True, dear.predicted)
    judged = choose_candidate([candidate("worse", 9.0), same, dear], LOSSES)
    assert [one.candidate.curvature for one in judged if one.chosen] == ["cheap"]


def test_one_test_point_is_too_few() -> None:
    with pytest.raises(ValueError, match="at least 2 test points"):
        choose_candidate([candidate("a", 1.0)], LOSSES[:, :1])
