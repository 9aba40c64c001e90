"""`beam-influence evaluate lds|leave_one_out --damping_sweep`: the saved curvatures of finished runs under many values of λ."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from beam_influence.influence_ops.curvature import Preconditioner, curvature_class, load_preconditioner, solving_passes
from beam_influence.influence_ops.curvature.cholesky import CholeskyPreconditioner
from beam_influence.influence_ops.evaluation.correlation import pearson, spearman
from beam_influence.influence_ops.evaluation.damping_sweep import GRID, SweepPoint, summed_gradients, sweep
from beam_influence.influence_ops.evaluation.ground_truth import GroundTruth
from beam_influence.influence_ops.evaluation.score_table import ScoreTable
from beam_influence.influence_ops.results.array_folder import load_meta
from beam_influence.pipelines.evaluate_config import EvaluateConfig
from beam_influence.pipelines.evaluation_result import Figures, Row
from beam_influence.pipelines.scored_data import ScoredData, check_code
from beam_influence.transforms.files import BeamFiles, join

_PLAIN = {"normalize": "none", "removal": "first_order"}


def check_sweep(config: EvaluateConfig, runs: Sequence[ScoreTable]) -> None:
    """Refuses runs whose own curvature the command line does not name (see `check_code`), or that keep no spectrum, before anything is
    retrained."""
    for run in runs:
        check_code(run.manifest["config"], config.code, run.folder, ("curvature",))
        saved, files = join(run.folder, "curvature"), BeamFiles()
        # One that is missing is told where it is opened, after the model's code was checked.
        if files.exists(join(saved, "meta.json")) and load_meta(saved, files).get("kind") == CholeskyPreconditioner.kind:
            raise ValueError(
                f"--damping_sweep needs the curvature's eigenvalues, which the run in {run.folder!r} did not keep; "
                "run it again with --spectrum"
            )


def sweep_runs(config: EvaluateConfig, runs: Sequence[ScoreTable], truth: GroundTruth) -> list[Row]:
    """A row for each run and λ: even test points choose, odd ones report.

    Raises:
      ValueError: a run's scores are not of the plain first-order kind, or its curvature keeps no spectrum.
    """
    return [row for run in runs for row in _rows(run, _sweep(config, run, truth), config.measure)]


def _sweep(config: EvaluateConfig, run: ScoreTable, truth: GroundTruth) -> list[SweepPoint]:
    _check(run)
    if run.manifest["config"].get("dropout_seed") is not None:
        raise ValueError(f"the run in {run.folder!r} has --dropout_seed; a sweep is of a whole network's curvature: leave one of them out")
    assert truth.train_ids is not None and truth.test_ids is not None
    data = ScoredData(run, config.code)
    preconditioner = load_preconditioner(join(run.folder, "curvature"), BeamFiles()).bind(data.model)
    positions = {str(name): place for place, name in enumerate(truth.train_ids)}
    train = functools.partial(summed_gradients, data.model, positions=positions)
    if config.measure == "lds":
        assert truth.subset_masks is not None and truth.subset_test_loss is not None
        gradients = train(data.batches("train"), truth.subset_masks)
        actual, correlation = -truth.subset_test_loss, spearman
    else:
        assert truth.loo_idx is not None and truth.loo_test_loss is not None
        removed = np.zeros((len(truth.loo_idx), len(positions)), dtype=bool)
        removed[np.arange(len(removed)), truth.loo_idx] = True
        gradients = train(data.batches("train"), removed)
        actual, correlation = truth.loo_test_loss - truth.base_test_loss, pearson
    queries = gradients_of(data, [str(name) for name in truth.test_ids])
    return sweep(preconditioner, queries, gradients, actual, correlation, _dampings(config, preconditioner), config.seed)


def _check(run: ScoreTable) -> None:
    stored = run.manifest["config"]
    found = next((f"--{name} {stored[name]}" for name, plain in _PLAIN.items() if stored.get(name, plain) != plain), None)
    passes = solving_passes(curvature_class(stored["curvature"]), stored.get("passes"))
    if found is None and passes:
        found = f"{passes} passes that solve the test points"
    if found is not None:
        raise ValueError(
            f"--damping_sweep is of plain first-order scores by the saved curvature alone; the run in {run.folder!r} had {found}: "
            "leave the sweep out, and make one run for each damping"
        )


def gradients_of(data: ScoredData, test_ids: list[str]) -> np.ndarray:
    """∇ℓ(t) of the test points: [T, P] float64."""
    batch = data.examples("test", test_ids)
    return np.asarray(data.model.losses_and_gradients(batch)[1], dtype=np.float64)


def _dampings(config: EvaluateConfig, preconditioner: Preconditioner) -> list[float]:
    """Those that were named, or a grid around the run's own; the run's own is always among them."""
    own = float(preconditioner.meta["damping"])
    named = config.damping_list
    if named is None and own <= 0:
        raise ValueError("--damping_sweep auto is around the run's own damping, which is 0 here; name the values, 1e-4,1e-3,1e-2")
    values = [own * factor for factor in GRID] if named is None else [*named, *([own] if own > 0 else [])]
    return sorted(set(values))


def _rows(run: ScoreTable, points: list[SweepPoint], measure: str) -> list[Row]:
    name = "lds" if measure == "lds" else "pearson"
    own = float(run.manifest["curvature"]["damping"])
    rows = []
    for point in points:
        figures: Figures = {
            "curvature": run.manifest["curvature"]["curvature"],
            "damping": point.damping,
            f"{name} (even, choosing)": point.choosing,
            f"{name} (odd)": point.reporting,
            f"{name} (odd)_error": point.reporting_error,
            "note": ", ".join(["chosen"] * point.chosen + ["the run's own"] * (point.damping == own)),
        }
        rows.append(Row(run.folder, figures))
    return rows
