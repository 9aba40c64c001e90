"""Scores beside retraining on parts of the training set: `lds`, `coverage` and `leave_one_out`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from beam_influence.influence_ops.evaluation.coverage import coverage
from beam_influence.influence_ops.evaluation.ground_truth import GroundTruth, load_ground_truth
from beam_influence.influence_ops.evaluation.lds import lds_difference, linear_datamodelling_score
from beam_influence.influence_ops.evaluation.leave_one_out import LeaveOneOut, leave_one_out
from beam_influence.pipelines.damping_sweep import sweep_runs
from beam_influence.pipelines.evaluation_result import Figures, Row
from beam_influence.pipelines.measures.baselines import baseline_sums
from beam_influence.pipelines.measures.measurement import Measured, Measurement, curvature_of
from beam_influence.pipelines.retrainings import Retrainer
from beam_influence.transforms.files import BeamFiles, join

GROUND_TRUTH = "ground_truth.npz"


def lds(measurement: Measurement) -> Measured:
    """The linear datamodelling score: predicted beside retrained losses over random parts of the training set."""
    config, runs = measurement.config, measurement.runs
    truth, masks, losses, train_ids, test_ids, facts = _parts(measurement)
    if config.damping_sweep is not None:
        return facts, sweep_runs(config, runs, truth)
    rows: list[Row] = []
    first = None
    for run in runs:
        sums = run.subset_sums(masks, train_ids, test_ids)
        found = linear_datamodelling_score(sums, losses, config.seed)
        figures = {**curvature_of(run), "lds": found.mean, "lds_error": found.standard_error}
        if first is not None:
            figures["above the first"], figures["above the first_error"] = lds_difference(sums, first, losses, config.seed)
        first = sums if first is None else first
        rows.append(Row(run.folder, figures, dict(zip(test_ids, found.per_test, strict=True))))
    baselines, why = baseline_sums(measurement, masks, list(train_ids), list(test_ids))
    for name, sums in baselines.items():
        found = linear_datamodelling_score(sums, losses, config.seed)
        figures = {"lds": found.mean, "lds_error": found.standard_error}
        if first is not None:
            figures["above the first"], figures["above the first_error"] = lds_difference(sums, first, losses, config.seed)
        rows.append(Row(name, figures, dict(zip(test_ids, found.per_test, strict=True))))
    return {**facts, **why}, rows


def intervals(measurement: Measurement) -> Measured:
    """How many of an ensemble's 90 % intervals hold what retraining shows: by Student's t, and by a factor learned from half of it."""
    _, masks, losses, train_ids, test_ids, facts = _parts(measurement)
    for run in measurement.runs:
        if (kind := run.facts().get("normalize")) != "none" or not run.facts().get("n"):
            raise ValueError(f"the scores in {run.folder!r} predict no change of a loss ({kind=}, n={run.facts().get('n')}); give others")
    sums = np.stack([run.subset_sums(masks, train_ids, test_ids) for run in measurement.runs])
    found = coverage(sums, masks.sum(axis=1), losses, measurement.config.seed)
    rows = []
    for name, one in zip(("Student's t", "calibrated"), found, strict=True):
        share = {"coverage": one.share, "coverage_error": one.standard_error}
        figures = {"interval_factor": one.factor, **share, "half_width": one.half_width}
        rows.append(Row(name, figures, dict(zip(test_ids, one.per_test.tolist(), strict=True))))
    members = " ".join(run.folder for run in measurement.runs)
    told = f"beam-influence ensemble {members} --interval_factor {found[1].factor:.4g} --output FOLDER"
    return {**facts, "take the calibrated one": told}, rows


def _parts(measurement: Measurement) -> tuple[GroundTruth, np.ndarray, np.ndarray, list[str], list[str], dict[str, int]]:
    """Retrainings on parts of the training set: which examples each kept [S, N], the losses after it [S, T], ids, and their numbers."""
    config = measurement.config
    truth = ground_truth(measurement, lambda r, tests: r.subsets(config.retrainings, config.fraction, config.seed, tests))
    masks, losses, train_ids, test_ids = truth.subset_masks, truth.subset_test_loss, truth.train_ids, truth.test_ids
    if masks is None or losses is None:
        what = f"the ground truth {config.ground_truth!r} has no subset_masks and subset_test_loss"
        raise ValueError(f"{what}, which {config.measure} needs")
    assert train_ids is not None and test_ids is not None
    facts = {"retrainings": len(masks), "training_examples": len(train_ids), "test_points": len(test_ids)}
    return truth, masks, losses, list(train_ids), list(test_ids), facts


def removals(measurement: Measurement) -> Measured:
    """Predicted beside retrained losses without one example."""
    config, runs = measurement.config, measurement.runs
    truth = ground_truth(measurement, lambda r, tests: r.removals(config.retrainings, config.seed, tests))
    removed, losses, base, train_ids, test_ids = (
        truth.loo_idx, truth.loo_test_loss, truth.base_test_loss, truth.train_ids, truth.test_ids,
    )  # fmt: skip
    if removed is None or losses is None or base is None:
        raise ValueError(f"the ground truth {config.ground_truth!r} has no loo_idx and loo_test_loss, which leave_one_out needs")
    assert train_ids is not None and test_ids is not None
    named = {"removals": len(removed), "training_examples": len(train_ids), "test_points": len(test_ids)}
    if config.damping_sweep is not None:
        return named, sweep_runs(config, runs, truth)
    rows = []
    for run in runs:
        scores = run.columns([str(train_ids[place]) for place in removed], list(test_ids))
        facts = run.facts()
        has_unit = facts.get("n") and facts.get("normalize") == "none"
        found = leave_one_out(scores / facts["n"] if has_unit else scores, losses - base, config.seed)
        figures = {**curvature_of(run), **_agreement(found), "slope": found.slope if has_unit else None}
        rows.append(Row(run.folder, figures, dict(zip(test_ids, found.per_test, strict=True))))
    single = np.zeros((len(removed), len(train_ids)), dtype=bool)
    single[np.arange(len(removed)), removed] = True
    baselines, why = baseline_sums(measurement, single, list(train_ids), list(test_ids))
    for name, of_removed in baselines.items():
        found = leave_one_out(of_removed, losses - base, config.seed)
        rows.append(Row(name, _agreement(found), dict(zip(test_ids, found.per_test, strict=True))))
    return {**named, **why}, rows


def _agreement(found: LeaveOneOut) -> Figures:
    """All but the slope, which only influence in its unit has."""
    values = dataclasses.asdict(found)
    return {name: value for name, value in values.items() if name not in ("slope", "per_test")}


def ground_truth(measurement: Measurement, retrain: Callable[[Retrainer, Sequence[str]], GroundTruth]) -> GroundTruth:
    """The saved one, or a new one, which is saved."""
    config = measurement.config
    if config.ground_truth is not None:
        truth = load_ground_truth(config.ground_truth, BeamFiles())
        if truth.train_ids is not None and truth.test_ids is not None:
            return truth.with_ids((), ())
        return truth.with_ids(*_ids(measurement))
    train_ids, test_ids = _ids(measurement)
    truth = retrain(measurement.retrainer(measurement.data(), train_ids), test_ids)
    truth.save(join(config.output, f"{config.measure}-{GROUND_TRUTH}"), BeamFiles())
    return truth


def _ids(measurement: Measurement) -> tuple[list[str], list[str]]:
    """Training and test ids, of the scores; a damping sweep and a choice need no scores."""
    if measurement.config.damping_sweep is None and measurement.config.measure != "choose":
        return measurement.runs[0].ids()
    data = measurement.data()
    return data.ids("train"), data.ids("test")
