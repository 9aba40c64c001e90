"""`beam-influence evaluate choose`: the curvature and λ that predict retraining best, found within some seconds of retraining."""

from __future__ import annotations

import dataclasses
import shlex
import time
from collections.abc import Iterator, Sequence

import numpy as np

from beam_influence.influence_ops.evaluation.candidates import Judged, choose_candidate
from beam_influence.influence_ops.evaluation.damping_sweep import summed_gradients
from beam_influence.influence_ops.evaluation.ground_truth import GroundTruth
from beam_influence.influence_ops.evaluation.lds import Lds, linear_datamodelling_score
from beam_influence.influence_ops.evaluation.score_table import ScoreTable
from beam_influence.pipelines.damping_sweep import gradients_of
from beam_influence.pipelines.evaluate_config import EvaluateConfig
from beam_influence.pipelines.evaluation_result import Row
from beam_influence.pipelines.machine_memory import machine_memory, size_text
from beam_influence.pipelines.measures.baselines import baseline_sums
from beam_influence.pipelines.measures.candidate_maker import CandidateMaker
from beam_influence.pipelines.measures.measurement import Measured, Measurement
from beam_influence.pipelines.measures.retrained import ground_truth
from beam_influence.pipelines.options.method import MethodOptions
from beam_influence.pipelines.retrainings import Retrainer
from beam_influence.pipelines.scored_data import ScoredData

_OF_A_CURVATURE = (
    "fisher", "n_samples", "passes", "tolerance", "max_iterations", "rcond", "rank", "spectrum", "matrix", "projection_dim", "projection",
    "block_size", "curvature_settings", "removal",
)  # fmt: skip
_FIRST = 4  # new retrainings, from which the time of one is known


def choose(measurement: Measurement) -> Measured:
    """Judges curvatures and λ by the LDS over random parts; a row for each curvature's own λ and its best one."""
    config, run = measurement.config, measurement.runs[0]
    _refuse_other_options(run)
    truth = ground_truth(measurement, lambda retrainer, tests: _within(config, retrainer, tests))
    masks, losses, train_ids, test_ids = truth.subset_masks, truth.subset_test_loss, truth.train_ids, truth.test_ids
    if masks is None or losses is None:
        raise ValueError(f"the ground truth {config.ground_truth!r} has no subset_masks and subset_test_loss, which choose needs")
    assert train_ids is not None and test_ids is not None
    data = measurement.data()
    _refuse_memory(data, len(masks) + len(test_ids))
    positions = {str(name): place for place, name in enumerate(train_ids)}
    sums = summed_gradients(data.model, data.batches("train"), masks, positions)
    queries = gradients_of(data, [str(name) for name in test_ids])
    found, refused = CandidateMaker(data, sums, queries).all()
    judged = choose_candidate(found, losses, config.seed)
    taken = next(one.candidate for one in judged if one.chosen)
    damping = "auto" if taken.is_auto else f"{taken.damping:.6g}"
    words = ["--curvature", taken.curvature, "--damping", damping, "--output", f"{run.folder}-chosen"]
    command = shlex.join(["beam-influence", "run", "--config", f"{run.folder}/manifest.json", *words])
    facts = {"retrainings": len(masks), "training_examples": len(train_ids), "test_points": len(test_ids), "run it": command}
    baselines, why = baseline_sums(measurement, masks, list(train_ids), list(test_ids))
    rows = [_row(one) for one in _shown(judged)]
    for name, of_baseline in baselines.items():
        choosing, reporting = (linear_datamodelling_score(of_baseline[:, part::2], losses[:, part::2], config.seed) for part in (0, 1))
        rows.append(Row(name, _figures(choosing.mean, reporting)))
    return {**facts, **refused, **why}, rows


def _within(config: EvaluateConfig, retrainer: Retrainer, test_ids: Sequence[str]) -> GroundTruth:
    """As many random parts as there is time for."""
    assert config.budget is not None
    parts = (config.fraction, config.seed)
    new = np.cumsum(~np.array(retrainer.is_finished(config.retrainings, *parts)))  # of a part and those before it
    first = min(int(np.searchsorted(new, _FIRST)) + 1, config.retrainings)
    started = time.monotonic()
    found = retrainer.subsets(first, *parts, test_ids)
    spent, done = time.monotonic() - started, int(new[first - 1])
    more = int(min(done * max(config.budget - spent, 0.0) / spent, config.retrainings))
    count = int(np.searchsorted(new, done + more, side="right"))  # with what costs nothing after them
    return found if count <= first else retrainer.subsets(count, *parts, test_ids)


def _refuse_other_options(run: ScoreTable) -> None:
    """Refuses a run whose curvature has options that are not judged here, but that a command from its manifest would repeat."""
    stored = run.manifest["config"]
    for field in dataclasses.fields(MethodOptions):
        value = stored.get(field.name)
        if field.name in _OF_A_CURVATURE and value not in (None, field.default):
            _refuse(run, field.name, value)
    for name in ("dropout_seed", "uncertainty"):
        if (value := stored.get(name)) not in (None, False):
            _refuse(run, name, value)


def _refuse(run: ScoreTable, name: str, value: object) -> None:
    raise ValueError(f"the run in {run.folder!r} has --{name} {value}, and choose judges curvatures without it; evaluate a run without it")


def _refuse_memory(data: ScoredData, rows: int) -> None:
    size = data.model.size
    needed, memory = 8 * size * rows * 2, machine_memory()
    if needed > memory:
        raise ValueError(
            f"choose holds gradients of {rows:,} retrainings and test points × {size:,} weights, {size_text(needed)}, more than this "
            f"machine's {size_text(memory)}; evaluate a run with fewer test points, or with fewer --weights"
        )


def _shown(judged: Sequence[Judged]) -> Iterator[Judged]:
    """Of each curvature its own λ, and the best one."""
    for name in dict.fromkeys(one.candidate.curvature for one in judged):
        of_name = [one for one in judged if one.candidate.curvature == name]
        best = next((one for one in of_name if one.chosen), max(of_name, key=lambda one: one.choosing))
        yield from (one for one in of_name if one.candidate.is_auto or one is best)


def _row(one: Judged) -> Row:
    candidate = one.candidate
    note = ", ".join(["auto"] * candidate.is_auto + ["chosen"] * one.chosen)
    return Row(candidate.curvature, {"damping": candidate.damping, **_figures(one.choosing, one.reporting), "note": note})


def _figures(choosing: float, reporting: Lds) -> dict[str, float]:
    return {"lds (even, choosing)": choosing, "lds (odd)": reporting.mean, "lds (odd)_error": reporting.standard_error}
