"""`beam-influence evaluate`: how good are the scores of finished runs, by the measures of the field, side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TextIO

from beam_influence.influence_ops.evaluation.retraining import load_train_function
from beam_influence.influence_ops.evaluation.score_table import ScoreTable
from beam_influence.pipelines.damping_sweep import check_sweep
from beam_influence.pipelines.evaluate_config import EvaluateConfig
from beam_influence.pipelines.evaluation_result import Evaluation, write_evaluation
from beam_influence.pipelines.measures.choose import choose
from beam_influence.pipelines.measures.class_detection import class_detection
from beam_influence.pipelines.measures.measurement import Measured, Measurement
from beam_influence.pipelines.measures.mislabelled import mislabelled
from beam_influence.pipelines.measures.retrained import intervals, lds, removals
from beam_influence.pipelines.measures.retrieval import retrieval
from beam_influence.pipelines.measures.same_examples import different_examples, randomised
from beam_influence.pipelines.measures.top_examples import brittleness, tail_patch
from beam_influence.pipelines.runners import choose_engine, open_file_systems
from beam_influence.transforms.files import BeamFiles, join

_MEASURES: dict[str, Callable[[Measurement], Measured]] = {
    "lds": lds,
    "coverage": intervals,
    "leave_one_out": removals,
    "mislabelled": mislabelled,
    "brittleness": brittleness,
    "tail_patch": tail_patch,
    "class_detection": class_detection,
    "retrieval": retrieval,
    "shortcut": retrieval,
    "cardinality": different_examples,
    "randomised": randomised,
    "choose": choose,
}


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
    facts, rows = _MEASURES[config.measure](Measurement(config, runs, beam_arguments, stream))
    evaluation = Evaluation(config.measure, config.output, facts, rows)
    write_evaluation(evaluation, dataclasses.asdict(config))
    return evaluation
