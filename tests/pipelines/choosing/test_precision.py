"""`--precision auto` takes the model's own precision where a sample has the same ranks, tells the error, and stays in float64 else."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
import pytest
import scipy.stats

from beam_influence.influence_ops.evaluation.score_error import ScoreError, score_error
from beam_influence.pipelines.choosing import precision
from beam_influence.pipelines.choosing.choose import choose_and_prepare
from tests.pipelines.digits_job import DigitsJob

ALL: dict[str, Any] = {"weights": "all", "curvature": "ekfac", "damping": "0.1", "outputs": "scores"}


def test_the_error_is_that_of_ranks() -> None:
    generator = np.random.default_rng(0)
    exact = generator.normal(size=(3, 40))
    other = exact + 0.3 * generator.normal(size=exact.shape)
    other[1] = exact[1]
    found = score_error(exact, other, 5)
    rank: Any = scipy.stats.rankdata
    wanted = [np.corrcoef(rank(one), rank(two))[0, 1] for one, two in zip(exact, other, strict=True)]
    assert found.rank == pytest.approx(np.min(wanted), abs=1e-12) and (found.points, found.examples, found.k) == (3, 40, 5)
    same = [len(set(np.argsort(one)[-5:]) & set(np.argsort(two)[-5:])) for one, two in zip(exact, other, strict=True)]
    assert found.top == pytest.approx(sum(same) / 15) and same[1] == 5 and found.top < 1
    assert found.relative == pytest.approx(np.sqrt(((other - exact) ** 2).sum() / (exact**2).sum()))
    assert score_error(exact, np.zeros_like(exact), 5).rank == 0


def test_the_narrower_one_is_taken_where_ranks_are_the_same() -> None:
    good = ScoreError(16, 256, 1 - 0.9e-4, 1.0, 10, 1e-6)
    assert precision.decide("float32", good).precision == "native"
    assert precision.decide("bfloat16", good._replace(rank=1 - 1.1e-4)).precision == "float64"
    assert precision.decide("float32", good._replace(rank=float("nan"))).precision == "float64"


def test_a_network_is_computed_in_its_own_precision(job: DigitsJob, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_and_prepare(job.config(tmp_path / "short", **ALL))[1].dtype == "float64"  # too short a run to measure another
    monkeypatch.setattr(precision, "_WORTH_IT", 0.0)
    chosen, prepared = choose_and_prepare(job.config(tmp_path / "out", **ALL))
    assert chosen.precision == "native" and prepared.dtype == "float32" and prepared.model.session().dtype == "float32"
    told = json.loads(json.dumps(prepared.choice_facts["precision"]))
    assert told["asked"] == "auto" and 1 - 1e-4 <= told["error"]["rank"] <= 1 and 0 < told["error"]["relative"] < 1e-4
    assert prepared.precision is not None
    assert prepared.precision.text.startswith("precision: float32: as good as float64 (of 256 training examples × 16 test points, ")


def test_what_is_ill_conditioned_stays_in_float64(job: DigitsJob, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_WORTH_IT", 0.0)
    dense = choose_and_prepare(job.config(tmp_path / "dense", outputs="scores"))[1].precision
    assert dense is not None and dense.error is None and dense.precision == "float64" and "however ill-conditioned" in dense.why
    bad = ScoreError(16, 256, 0.9, 0.5, 10, 0.8)
    monkeypatch.setattr(precision, "measure", lambda *_: bad)
    chosen, prepared = choose_and_prepare(job.config(tmp_path / "bad", **ALL))
    found = prepared.precision
    assert (chosen.precision, prepared.dtype) == ("auto", "float64") and found is not None and found.error == bad
    assert found.text == f"precision: float64: float32 gives other ranks ({bad.text})"
    assert choose_and_prepare(dataclasses.replace(chosen, precision="native"))[1].precision is None
