"""What `--precision auto` computes in: float64, or the model's own precision where the ranks of a sample are the same in it; and what a
narrower one that is asked for costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, cast

import keras
import numpy as np
import pyarrow as pa
import tensorflow as tf

from beam_influence.influence_ops.curvature import load_preconditioner
from beam_influence.influence_ops.curvature.dense import DenseCurvature
from beam_influence.influence_ops.curvature.sample import Sample
from beam_influence.influence_ops.curvature.sampled import SampleCurvature
from beam_influence.influence_ops.curvature.source_gauss_newton import SourceGaussNewton
from beam_influence.influence_ops.evaluation.score_error import ScoreError, score_error
from beam_influence.influence_ops.model.explained_model import ExplainedModel
from beam_influence.influence_ops.model.network import Precision
from beam_influence.influence_ops.model.tensor_float_32 import has_tensor_float_32
from beam_influence.influence_ops.reading.example_batch import ExampleBatch
from beam_influence.influence_ops.reading.features import FeatureSpec
from beam_influence.influence_ops.reason import reason_of
from beam_influence.influence_ops.scoring.in_memory import compute_in_memory
from beam_influence.pipelines.build import PASS_TOLERANCE
from beam_influence.pipelines.config import InfluenceConfig
from beam_influence.pipelines.planning.network_flops import network_flops
from beam_influence.pipelines.planning.sample import count_examples, spread
from beam_influence.pipelines.planning.short_plan import count_passes
from beam_influence.pipelines.prepare import PreparedRun
from beam_influence.transforms.elements import ReadLimit
from beam_influence.transforms.file_list import FileList
from beam_influence.transforms.files import BeamFiles
from beam_influence.transforms.progress import Progress
from beam_influence.transforms.read_shards import ShardReader

AUTO: Precision = "auto"
FLOAT64: Precision = "float64"
NATIVE: Precision = "native"
TF32: Precision = "tf32"
BFLOAT16: Precision = "bfloat16"
LEAST_RANK = 1 - 1e-4
"""The least rank correlation with float64 at which scores count as the same."""
_SOLVED_AS_THEY_ARE = (DenseCurvature, SampleCurvature, SourceGaussNewton)
_IN_16_BITS = ("bfloat16", "float16")
_EXAMPLES, _POINTS = 256, 16
_BATCH = 32
_FILES = 8
_COUNTED_FILES = 2
_WORTH_IT = 3e11  # operations of the run's gradients: about a minute of a processor in float64; measuring takes some seconds
_MOST_POSITIONS = 1000  # how often a weight is used for an example, at most, before operations are counted
_OF_A_GRADIENT = 3  # evaluations that it is worth


@dataclasses.dataclass(frozen=True)
class PrecisionChoice:
    """What `--precision auto` chose, or what the one that was asked for costs.

    Attributes:
      asked: the option.
      precision: what was taken: `float64`, `native`, the model's own, `tf32` or `bfloat16`.
      why: in words.
      error: of what was asked for, or of the model's own precision, on a sample; None: it was not measured.
    """

    asked: str
    precision: str
    why: str
    error: ScoreError | None = None

    @property
    def is_told(self) -> bool:
        """Whether it is printed in every run: all but float64 by rule."""
        return self.error is not None or self.precision != FLOAT64

    @property
    def text(self) -> str:
        """A line for the terminal."""
        return f"precision: {self.why}"

    def as_json(self) -> dict[str, Any]:
        """For the manifest."""
        measured = {} if self.error is None else {"error": self.error._asdict()}
        return {"asked": self.asked, "precision": self.precision, "why": self.why, **measured}


def choose_precision(config: InfluenceConfig, prepared: PreparedRun) -> PrecisionChoice | None:
    """What a run that leaves it open computes in; and what a precision that was asked for costs, where it is narrower than float32. None
    where there is nothing to say: float64 is asked for, or the model's own, of float32 or more.

    Args:
      config: the options.
      prepared: the run in float64 where there is a copy and it is left open, else in what was asked for.
    """
    model = prepared.model.session()
    native = _compute_dtype(model)
    if config.precision in (TF32, BFLOAT16) or (config.precision == NATIVE and native in _IN_16_BITS):
        return _asked_for(config, prepared, native)
    if config.precision != AUTO or native == FLOAT64:
        return None
    if prepared.dtype != FLOAT64:
        why = f": {model.network.why_native}" if model.network.why_native else ""
        return PrecisionChoice(AUTO, NATIVE, f"{native}, the model's own{why}")
    if prepared.train_features is None or prepared.curvature_path or prepared.indexed:
        return None
    why = _float64_by_rule(config, prepared, prepared.train_features)
    if why:
        return PrecisionChoice(AUTO, FLOAT64, f"float64: {why}")
    try:
        error = measure(config, prepared, FLOAT64, NATIVE)
    except ValueError as reason:
        return PrecisionChoice(AUTO, FLOAT64, f"float64: a sample can't tell what {native} would do ({_why(reason)})")
    return decide(native, error)


def _float64_by_rule(config: InfluenceConfig, prepared: PreparedRun, features: FeatureSpec) -> str:
    """Why nothing is measured; empty: it is."""
    if isinstance(config.make_curvature(), _SOLVED_AS_THEY_ARE):
        return f"the system of {config.curvature} is solved as it is, however ill-conditioned"
    if config.removal != "first_order" or config.second_order_groups:
        return "second derivatives are used"
    if _operations(config, prepared, features) < _WORTH_IT:
        return "the run is too short for measuring another to be worth it"
    return ""


def _asked_for(config: InfluenceConfig, prepared: PreparedRun, native: str) -> PrecisionChoice:
    asked = cast(Precision, config.precision)
    what = {
        NATIVE: f"{native}, as it is asked for",
        TF32: "tf32, as it is asked for: products of float32 in TensorFloat-32 where a GPU has it",
        BFLOAT16: f"bfloat16, as it is asked for: solved test points are held in it, all else is in {native}",
    }[asked]
    if asked == TF32 and not has_tensor_float_32():
        why = "there is no GPU with TensorFloat-32 here: this machine computes in float32, and the error can't be measured"
        return PrecisionChoice(asked, asked, f"{what}; {why}")
    reasons = []
    for exact in (FLOAT64, NATIVE) if asked != NATIVE else (FLOAT64,):
        try:
            error = measure(config, prepared, exact, asked)
        except (ValueError, tf.errors.OpError) as reason:
            reasons.append(_why(reason))
            continue
        beside = f"beside {native}, not float64, since {reasons[0]}: " if reasons else ""
        return PrecisionChoice(asked, asked, f"{what} ({beside}{error.text})", error)
    return PrecisionChoice(asked, asked, f"{what}; its error can't be measured ({reasons[0]})")


def _why(error: Exception) -> str:
    return reason_of(error).partition("; use precision")[0]


def decide(native: str, error: ScoreError) -> PrecisionChoice:
    """The model's own precision where its ranks are those of float64."""
    if error.rank >= LEAST_RANK:
        return PrecisionChoice(AUTO, NATIVE, f"{native}: as good as float64 ({error.text})", error)
    return PrecisionChoice(AUTO, FLOAT64, f"float64: {native} gives other ranks ({error.text})", error)


def measure(config: InfluenceConfig, prepared: PreparedRun, exact: Precision, other: Precision) -> ScoreError:
    """How far the scores in one precision are from those in another, by the curvature of a sample of the run's training examples, or by the
    saved one that the run uses.

    Raises:
      ValueError: the run reads no training examples, or too few; one of both can't evaluate all of them or is not the user's model, or the
        curvature can't be inverted.
    """
    features, files = prepared.train_features, prepared.train
    if features is None:
        features, files = prepared.candidate_features, prepared.candidates
    if features is None:
        raise ValueError("the run reads no training examples")
    train = _some(config, features, files, _EXAMPLES)
    test = _some(config, prepared.test_features, prepared.test, _POINTS) if prepared.test else train[:1]
    wanted, found = (_scores(config, prepared, _opened(prepared, precision), train, test) for precision in (exact, other))
    if wanted.shape != found.shape or not wanted.size:
        raise ValueError(f"it has {list(wanted.shape)} finite scores in {exact}, {list(found.shape)} in the other precision")
    return score_error(wanted, found, min(config.top_k, max(1, wanted.shape[1] // 4)))


def _opened(prepared: PreparedRun, precision: Precision) -> ExplainedModel:
    """The run's model in a precision."""
    session = prepared.model.session()
    is_float64 = precision == FLOAT64 and session.dtype == session.query_dtype == FLOAT64
    if is_float64 or prepared.model.precision == precision:
        return session
    return dataclasses.replace(prepared.model, precision=precision, agreement=None).open()


def _scores(
    config: InfluenceConfig, prepared: PreparedRun, model: ExplainedModel, train: Sequence[ExampleBatch], test: Sequence[ExampleBatch]
) -> np.ndarray:
    """[T, N], both by id."""
    finish, saved = config.finish_options(), prepared.curvature_path
    result = compute_in_memory(
        model,
        config.make_curvature() if saved is None else load_preconditioner(saved, BeamFiles()),
        train,
        test,
        damping=finish.damping,
        rcond=finish.rcond,
        rank=finish.rank,
        options=config.score_options(),
        outputs=("scores",),
        passes=config.solver_passes if saved is None else 0,
        tolerance=config.tolerance or PASS_TOLERANCE,
    )
    rows: pa.Table = result.tables["scores"].sort_by([("test_id", "ascending"), ("train_id", "ascending")])
    points = len(set(rows["test_id"].to_pylist()))
    return rows["influence"].to_numpy().astype(np.float64).reshape(points, -1) if points else np.zeros((0, 0))


def _some(config: InfluenceConfig, features: FeatureSpec | None, files: FileList, most: int) -> list[ExampleBatch]:
    """So many examples at most, drawn by their ids from twice as many of the first of some files."""
    assert features is not None
    reader, sample = ShardReader("choose", features, _BATCH, Progress(None)), Sample(most, config.seed)
    chosen = spread(files, _FILES)
    limit = ReadLimit(-(-2 * most // len(chosen)), 1 << 62, 0.0)
    for shard in chosen:
        for batch, _ in reader.read(dataclasses.replace(shard, limit=limit)):
            if len(batch):
                sample.add(batch)
    return list(sample.batches(_BATCH))


def _operations(config: InfluenceConfig, prepared: PreparedRun, features: FeatureSpec) -> float:
    """Of the gradients of all passes, about; a bound from the weights where that is little enough."""
    examples = count_examples(prepared.train, features, _COUNTED_FILES).count * count_passes(config, prepared)
    bound = _OF_A_GRADIENT * 2.0 * prepared.total * _MOST_POSITIONS * examples
    return bound if bound < _WORTH_IT else _OF_A_GRADIENT * network_flops(prepared) * examples


def _compute_dtype(model: ExplainedModel) -> str:
    """What the user's own model computes in: the narrowest of its layers with weights."""
    layers = [layer for part in model.parts for layer in _layers(part.network.original) if layer.weights]
    dtypes = {layer.compute_dtype for layer in layers} or {model.dtype}
    return min(dtypes, key=lambda dtype: tf.as_dtype(dtype).size)


def _layers(model: Any) -> Sequence[keras.layers.Layer]:
    return [layer for layer in model._flatten_layers() if not isinstance(layer, keras.Model)] if isinstance(model, keras.Model) else []
