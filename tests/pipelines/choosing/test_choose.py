"""`--curvature auto`: what is chosen, that a run with it is the run with what was chosen, and that it is told."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import pytest

from beam_influence.influence_ops.curvature.stopped_early import TrainingEnd
from beam_influence.pipelines.choosing import choose
from beam_influence.pipelines.choosing.choose import choose_method
from beam_influence.pipelines.choosing.rules import RULES, Situation, candidates
from beam_influence.pipelines.config import InfluenceConfig
from beam_influence.pipelines.load_influence import load_influence
from tests.pipelines.digits_job import DigitsJob, run_quietly

_GIVEN: dict[str, Any] = {"model": "m.keras", "train": "train-*", "test": "test-*", "output": "out", "curvature": "auto"}


def first(situation: Situation, **options: Any) -> InfluenceConfig:
    """What the rules take first."""
    found = candidates(InfluenceConfig(**{**_GIVEN, **options}), None, situation)
    return next(config for _, config in found if isinstance(config, InfluenceConfig))


@pytest.mark.parametrize(
    ("situation", "options", "expected"),
    [
        (Situation(500, False), {}, "gauss_newton"),
        (Situation(500, True), {}, "ekfac"),
        (Situation(50_000, False), {}, "gauss_newton_cg"),
        (Situation(50_000, False), {"outputs": "self_influence"}, "ekfac"),  # passes solve test points alone
        (Situation(500, True), {"removal": "newton", "outputs": "scores"}, "gauss_newton"),  # needs the whole matrix
        (Situation(10_000, True), {"rank": 50}, "gauss_newton"),
        (Situation(50_000, False), {"passes": 3}, "gauss_newton_cg"),
        (Situation(50_000, False), {"outputs": "index", "test": None}, "arnoldi"),
        (Situation(50_000_000, False), {"outputs": "index", "test": None}, "random_projection"),
        (Situation(500, False), {"checkpoints": "a,b", "segment_rates": "0.1,0.2", "segment_steps": "5,5"}, "source_gauss_newton"),
        (Situation(50_000, False), {"checkpoints": "a,b", "segment_rates": "0.1,0.2", "segment_steps": "5,5"}, "source"),
        (
            Situation(50_000, False),
            {"checkpoints": "a,b", "segment_rates": "0.1,0.2", "segment_steps": "5,5", "passes": 3},
            "source_gauss_newton_cg",
        ),
    ],
)
def test_the_rules_keep_what_was_given(situation: Situation, options: dict[str, Any], expected: str) -> None:
    chosen = first(situation, **options)
    assert chosen.curvature == expected
    assert {name: getattr(chosen, name) for name in options} == options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"curvature_path": "c"}, "--curvature auto chooses what is fitted, and --curvature_path uses a curvature that was fitted"),
        ({"removal": "newton", "n_samples": 5}, "--curvature auto finds no curvature that goes with the other options; --removal newton"),
        ({"damping": "small"}, "--damping='small' must be"),
        ({"outputs": "scores", "top_k": 3}, "--top_k 3 is of --outputs top_k"),
        ({"curvature": "ekfac", "weights": "auto"}, "--weights auto goes with --curvature auto"),
        ({"curvature": "ekfac", "budget_seconds": 60}, "--budget_seconds 60 is of --curvature auto, not ekfac"),
        ({"budget_seconds": 0}, "--budget_seconds 0 must be at least 1"),
        ({"train": None, "test": "t"}, "--curvature auto looks at training examples: --train is needed"),
    ],
)
def test_what_contradicts_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="^" + message.replace("(", "\\(")):
        InfluenceConfig(**{**_GIVEN, **options})


def test_every_rule_says_where_its_evidence_is() -> None:
    root = pathlib.Path(__file__).parents[3]
    for rule in RULES:
        page = rule.because.rpartition("(")[2].split(",")[0].rstrip(")")
        assert (root / page).exists(), rule.because


def test_a_run_is_the_one_with_what_was_chosen(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    asked = job.config(tmp_path / "auto", curvature="auto", weights="auto", outputs="scores")
    chosen, choice = choose_method(asked)
    assert choice is not None and choice.options["weights"] == "all" and choice.weights == 610
    summary = run_quietly(asked)
    assert summary.manifest["chosen"] == json.loads(json.dumps(choice.as_json()))
    named = {name: summary.manifest["config"][name] for name in ("curvature", "damping", "weights")}
    assert named == {name: getattr(chosen, name) for name in named} and "auto" not in (named["curvature"], named["weights"])
    run_quietly(dataclasses.replace(chosen, output=str(tmp_path / "named")))
    tables = [load_influence(str(tmp_path / name)).table("scores") for name in ("auto", "named")]
    assert tables[0].equals(tables[1])


def test_what_takes_too_long_or_too_much_is_passed_over(
    job: DigitsJob, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Planned:
        def __init__(self, config: InfluenceConfig):
            self.worker_seconds = {"gauss_newton": 90.0, "gauss_newton_cg": 50.0}.get(config.curvature, 20.0)

    monkeypatch.setattr(choose, "_plan", lambda config, arguments: Planned(config))
    monkeypatch.setattr(choose, "training_end", lambda *_: TrainingEnd(0.0, 0.1, 9))
    asked = job.config(tmp_path, curvature="auto", weights="all", outputs="top_k", budget_seconds=60)
    chosen, choice = choose_method(asked)
    assert chosen.curvature == "gauss_newton_cg" and chosen.budget_seconds is None
    assert choice is not None and choice.seconds == 50 and "it would take 90 s" in choice.text
    with pytest.raises(ValueError, match="nothing that fits; the quickest takes 20 s"):
        choose_method(dataclasses.replace(asked, budget_seconds=10))
