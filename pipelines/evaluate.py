"""`beam-influence evaluate`: how good are the scores of finished runs, by the measures of the field, side by side."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TextIO

import numpy as np
import pyarrow.parquet as pq

from beam_influence.influence_ops.evaluation.brittleness import effect
from beam_influence.influence_ops.evaluation.choices import are_numbers, nearest_examples, random_examples
from beam_influence.influence_ops.evaluation.ground_truth import GroundTruth, load_ground_truth
from beam_influence.influence_ops.evaluation.lds import lds_difference, linear_datamodelling_score
from beam_influence.influence_ops.evaluation.leave_one_out import leave_one_out
from beam_influence.influence_ops.evaluation.mislabelled import by_chance, detection
from beam_influence.influence_ops.evaluation.retraining import load_train_function
from beam_influence.influence_ops.evaluation.score_table import ScoreTable
from beam_influence.influence_ops.evaluation.tail_patch import loss_changes, mean_gradients
from beam_influence.pipelines.damping_sweep import check_sweep, sweep_runs
from beam_influence.pipelines.evaluate_config import EvaluateConfig
from beam_influence.pipelines.evaluation_result import Evaluation, Row, write_evaluation
from beam_influence.pipelines.retrainings import Retrainer
from beam_influence.pipelines.runners import choose_engine, open_file_systems
from beam_influence.pipelines.scored_data import ScoredData
from beam_influence.transforms.files import BeamFiles, join

_RANDOM_DRAWS = 3
GROUND_TRUTH = "ground_truth.npz"


def evaluate(config: EvaluateConfig, beam_arguments: Sequence[str] = (), stream: TextIO | None = None) -> Evaluation:
    """Evaluates, and writes `MEASURE.json` and `MEASURE.parquet` to the output folder.

    Args:
      config: the options.
      beam_arguments: Beam's options, for retraining.
      stream: where progress is drawn.

    Raises:
      ValueError: wrong options or input.
      RunFailedError: a retraining failed.
    """
    choose_engine(beam_arguments)  # before anything is read: an engine or an option that is not there
    open_file_systems(beam_arguments)
    path = join(config.output, f"{config.measure}.json")
    if BeamFiles().exists(path) and not config.overwrite:
        raise ValueError(f"{path!r} is there already; give another --output, or --overwrite")
    runs = [ScoreTable(folder, BeamFiles()) for folder in config.runs]
    if config.damping_sweep is not None:
        check_sweep(config, runs)
    if config.train_fn is not None:
        load_train_function(config.train_fn)
    facts, rows = _MEASURES[config.measure](config, runs, _Retraining(beam_arguments, stream))
    evaluation = Evaluation(config.measure, config.output, facts, rows)
    write_evaluation(evaluation, dataclasses.asdict(config))
    return evaluation


@dataclasses.dataclass(frozen=True)
class _Retraining:
    beam_arguments: Sequence[str]
    stream: TextIO | None

    def of(self, config: EvaluateConfig, data: ScoredData, train_ids: Sequence[str]) -> Retrainer:
        assert config.train_fn is not None
        seeds = range(config.seed, config.seed + config.repeats)
        return Retrainer(data, config.train_fn, train_ids, config.output, seeds, self.beam_arguments, self.stream)


_Result = tuple[dict[str, Any], list[Row]]


def _described(run: ScoreTable) -> dict[str, Any]:
    curvature = run.manifest["curvature"]
    return {"curvature": curvature["curvature"], "damping": curvature["damping"]}


def _lds(config: EvaluateConfig, runs: list[ScoreTable], retraining: _Retraining) -> _Result:
    truth = _ground_truth(config, runs[0], retraining, lambda r, tests: r.subsets(config.retrainings, config.fraction, config.seed, tests))
    masks, losses, train_ids, test_ids = truth.subset_masks, truth.subset_test_loss, truth.train_ids, truth.test_ids
    if masks is None or losses is None:
        raise ValueError(f"the ground truth {config.ground_truth!r} has no subset_masks and subset_test_loss, which lds needs")
    assert train_ids is not None and test_ids is not None
    facts = {"retrainings": len(masks), "training_examples": len(train_ids), "test_points": len(test_ids)}
    if config.damping_sweep is not None:
        return facts, sweep_runs(config, runs, truth)
    rows: list[Row] = []
    first = None
    for run in runs:
        sums = run.subset_sums(masks, list(train_ids), list(test_ids))
        found = linear_datamodelling_score(sums, losses, config.seed)
        figures = {**_described(run), "lds": found.mean, "lds_error": found.standard_error}
        if first is not None:
            figures["above the first"], figures["above the first_error"] = lds_difference(sums, first, losses, config.seed)
        first = sums if first is None else first
        rows.append(Row(run.folder, figures, dict(zip(test_ids, found.per_test, strict=True))))
    return facts, rows


def _leave_one_out(config: EvaluateConfig, runs: list[ScoreTable], retraining: _Retraining) -> _Result:
    truth = _ground_truth(config, runs[0], retraining, lambda r, tests: r.removals(config.retrainings, config.seed, tests))
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
        figures = {
            **_described(run),
            "pearson": found.pearson,
            "pearson_error": found.pearson_error,
            "spearman": found.spearman,
            "spearman_error": found.spearman_error,
            "pooled_pearson": found.pooled_pearson,
            "pooled_spearman": found.pooled_spearman,
            "slope": found.slope if has_unit else None,
        }
        rows.append(Row(run.folder, figures, dict(zip(test_ids, found.per_test, strict=True))))
    return named, rows


def _ground_truth(
    config: EvaluateConfig, run: ScoreTable, retraining: _Retraining, retrain: Callable[[Retrainer, Sequence[str]], GroundTruth]
) -> GroundTruth:
    """The saved one, or a new one, which is saved."""
    if config.ground_truth is not None:
        truth = load_ground_truth(config.ground_truth, BeamFiles())
        if truth.train_ids is not None and truth.test_ids is not None:
            return truth.with_ids((), ())
        return truth.with_ids(*_ids(config, run))
    train_ids, test_ids = _ids(config, run)
    truth = retrain(retraining.of(config, ScoredData(run, config.code), train_ids), test_ids)
    truth.save(join(config.output, f"{config.measure}-{GROUND_TRUTH}"), BeamFiles())
    return truth


def _ids(config: EvaluateConfig, run: ScoreTable) -> tuple[list[str], list[str]]:
    """Training and test ids, of the scores; a damping sweep needs no scores."""
    if config.damping_sweep is None:
        return run.ids()
    data = ScoredData(run, config.code)
    return data.ids("train"), data.ids("test")


def _mislabelled(config: EvaluateConfig, runs: list[ScoreTable], _: _Retraining) -> _Result:
    assert config.mislabelled is not None
    wrong = read_ids(config.mislabelled)
    data = ScoredData(runs[0], config.code)
    losses = {str(name): loss for batch in data.batches("train") for name, loss in zip(batch.ids, data.model.losses(batch), strict=True)}
    rows: list[Row] = []
    for run in runs:
        ids, values = run.self_influence()
        unknown = wrong - set(ids)
        if unknown:
            raise ValueError(f"--mislabelled {config.mislabelled!r} has {min(unknown)!r}, which is no training example of {run.folder!r}")
        rows.append(Row(run.folder, {**_described(run), **_detected(values, ids, wrong, config)}))
    ids = np.array([name for name in losses if np.isfinite(losses[name])], dtype=object)
    plain = np.array([losses[name] for name in ids])
    rows.append(Row("plain loss", _detected(plain, ids, wrong, config)))
    chance = by_chance(np.isin(ids, list(wrong)), config.share_list)
    rows.append(Row("random", {"auc": chance.auc, **_found(chance.found, config)}))
    return {"training_examples": len(ids), "mislabelled": len(wrong)}, rows


def _detected(values: np.ndarray, ids: np.ndarray, wrong: set[str], config: EvaluateConfig) -> dict[str, Any]:
    found = detection(values, np.array([name in wrong for name in ids]), config.share_list)
    return {"auc": found.auc, "auc_error": found.auc_error, **_found(found.found, config)}


def _found(found: Sequence[float], config: EvaluateConfig) -> dict[str, float]:
    return {f"found in {100 * share:g} %": value for share, value in zip(config.share_list, found, strict=True)}


@dataclasses.dataclass(frozen=True)
class _Sets:
    """Sets of training examples for some test points: (method, k) -> one set for each draw and test point."""

    test_ids: list[str]
    of: dict[tuple[str, int], list[list[list[str]]]]


def _choose(config: EvaluateConfig, runs: list[ScoreTable], data: ScoredData, train_ids: list[str]) -> _Sets:
    """The most helpful examples by each run, the nearest, and random ones: for every k, of every chosen test point."""
    every = data.ids("test")
    if not every:
        raise ValueError("the run had no test points")
    if max(config.k_list) >= len(train_ids):
        raise ValueError(f"--k {config.k!r}: there are only {len(train_ids):,} training examples")
    test_ids = [every[place] for place in np.unique(np.linspace(0, len(every) - 1, config.test_points).round().astype(int))]
    largest = max(config.k_list)
    best = {run.folder: [run.top_k(largest, test_ids)] for run in runs}
    queries = data.examples("test", test_ids)
    if are_numbers(queries.inputs):
        best["nearest"] = [nearest_examples(data.batches("train"), queries, largest)]
    best["random"] = [
        [random_examples(train_ids, largest, seed)] * len(test_ids) for seed in range(config.seed, config.seed + _RANDOM_DRAWS)
    ]
    sets = {
        (method, k): [[names[:k] for names in draw] for draw in draws]
        for k in sorted(set(config.k_list))
        for method, draws in best.items()
    }
    return _Sets(test_ids, sets)


def _brittleness(config: EvaluateConfig, runs: list[ScoreTable], retraining: _Retraining) -> _Result:
    data = ScoredData(runs[0], config.code)
    train_ids = data.ids("train")
    places = {name: place for place, name in enumerate(train_ids)}
    sets = _choose(config, runs, data, train_ids)
    # A random set is the same for all test points: one retraining serves them all.
    wanted = {tuple(sorted(names)): None for draws in sets.of.values() for draw in draws for names in draw}
    masks = [np.ones(len(train_ids), dtype=bool)]
    for names in wanted:
        masks.append(np.ones(len(train_ids), dtype=bool))
        masks[-1][[places[name] for name in names]] = False
    losses, classes = retraining.of(config, data, train_ids).outcomes(masks, sets.test_ids)
    number = {names: place for place, names in enumerate(wanted, start=1)}
    tests = np.arange(len(sets.test_ids))

    def after(draw: list[list[str]], of: np.ndarray) -> np.ndarray:  # [R, T]: each test point after its own removal
        return of[[number[tuple(sorted(names))] for names in draw], :, tests].T

    rows = []
    for (method, k), draws in sets.of.items():
        found = effect(
            np.concatenate([losses[0]] * len(draws)),
            np.concatenate([after(draw, losses) for draw in draws]),
            np.concatenate([classes[0]] * len(draws)),
            np.concatenate([after(draw, classes) for draw in draws]),
        )
        figures = {
            "k": k, "loss_rise": found.rise, "loss_rise_error": found.rise_error,
            "flipped": found.flipped, "flipped_error": found.flipped_error,
        }  # fmt: skip
        rows.append(Row(method, figures, dict(zip(sets.test_ids, found.per_test, strict=True))))
    return {"training_examples": len(train_ids), "test_points": len(sets.test_ids), "retrainings": len(masks) * config.repeats}, rows


def _tail_patch(config: EvaluateConfig, runs: list[ScoreTable], _: _Retraining) -> _Result:
    data = ScoredData(runs[0], config.code)
    train_ids = data.ids("train")
    sets = _choose(config, runs, data, train_ids)
    tests = data.examples("test", sets.test_ids)
    rows = []
    for (method, k), draws in sets.of.items():
        gradients = mean_gradients(data.model, data.batches("train"), [names for draw in draws for names in draw])
        steps = gradients.reshape(len(draws), len(tests), -1)
        changes = np.stack([loss_changes(data.model, step, tests, config.learning_rate) for step in steps])
        found = effect(np.zeros_like(changes), changes)
        figures = {
            "k": k, "loss_change": found.rise, "loss_change_error": found.rise_error, "lowered": float((found.per_test < 0).mean()),
        }  # fmt: skip
        rows.append(Row(method, figures, dict(zip(sets.test_ids, found.per_test, strict=True))))
    return {"training_examples": len(train_ids), "test_points": len(tests), "learning_rate": config.learning_rate}, rows


_MEASURES: dict[str, Callable[[EvaluateConfig, list[ScoreTable], _Retraining], _Result]] = {
    "lds": _lds,
    "leave_one_out": _leave_one_out,
    "mislabelled": _mislabelled,
    "brittleness": _brittleness,
    "tail_patch": _tail_patch,
}


def read_ids(path: str) -> set[str]:
    """The ids in a text file (one a line), or in the column train_id of a Parquet or CSV file.

    Raises:
      ValueError: there is no such file, column or id.
    """
    if not BeamFiles().exists(path):
        raise ValueError(f"there is no file {path!r} with the ids of mislabelled examples")
    content = BeamFiles().read(path)
    ids: Iterable[str]
    if content[:4] == b"PAR1":
        table = pq.read_table(io.BytesIO(content))
        if "train_id" not in table.column_names:
            raise ValueError(f"{path!r} has no column train_id, but {', '.join(table.column_names)}")
        ids = table.column("train_id").to_pylist()
    else:
        lines = content.decode().splitlines()
        header = next(csv.reader(lines[:1]), [])
        if "train_id" in header:
            ids = [record["train_id"] for record in csv.DictReader(lines)]
        else:
            ids = [line.strip() for line in lines if line.strip()]
    found = {str(name) for name in ids}
    if not found:
        raise ValueError(f"{path!r} has no ids; give one a line")
    return found
