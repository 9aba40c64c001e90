"""The component that computes the influence of training examples, on the model that the pipeline has just trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tfx.dsl.components.base.base_beam_component import BaseBeamComponent
from tfx.dsl.components.base.executor_spec import BeamExecutorSpec
from tfx.types.channel import BaseChannel, Channel
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter

from beam_influence.pipelines.tfx.artifacts import Curvature, InfluenceScores, standard_artifacts
from beam_influence.pipelines.tfx.influence_executor import InfluenceExecutor
from beam_influence.pipelines.tfx.options import code_digests, encode_options, encode_splits


class InfluenceCalculatorSpec(ComponentSpec):
    """Inputs, outputs and execution properties of `InfluenceCalculator`.

    The properties are JSON with sorted keys: `options` (every option with its value), `train_splits` and `test_splits`
    (sorted lists), `code` (the version of this package and digests of the user's functions).
    """

    PARAMETERS = {
        "options": ExecutionParameter(type=str),
        "train_splits": ExecutionParameter(type=str),
        "test_splits": ExecutionParameter(type=str),
        "code": ExecutionParameter(type=str),
    }
    INPUTS = {
        "examples": ChannelParameter(type=standard_artifacts.Examples),
        "model": ChannelParameter(type=standard_artifacts.Model),
        "schema": ChannelParameter(type=standard_artifacts.Schema, optional=True),
        "test_examples": ChannelParameter(type=standard_artifacts.Examples, optional=True),
        "saved_curvature": ChannelParameter(type=Curvature, optional=True),
    }
    OUTPUTS = {"scores": ChannelParameter(type=InfluenceScores), "curvature": ChannelParameter(type=Curvature)}


class InfluenceCalculator(BaseBeamComponent):
    """Computes the influence of training examples on test points, and on themselves.

    Args:
      examples: the Examples that the model was trained on (or several artifacts of them); tf.Example,
        tf.SequenceExample or Parquet.
      model: the Model: a SavedModel or a `.keras` file in `Format-Serving`.
      schema: the Schema of the features; without it they are inferred from the first examples.
      test_examples: other Examples with the test points; by default these are a split of `examples`.
      saved_curvature: the output `curvature` of an earlier run on the same model, used instead of fitting one.
      train_splits: the splits that the model was trained on.
      test_splits: the splits with the test points; none: only self-influence is computed.
      options: any option of `beam-influence run`, by name; see docs/tfx.md. By default `outputs` are top_k (where there
        are test points), self_influence and self_influence_top_k.

    Outputs:
      scores: `InfluenceScores`, the output folder of the run.
      curvature: `Curvature`, the curvature that was used.

    Raises:
      ValueError: an option is unknown or wrong; the message names it.
    """

    SPEC_CLASS = InfluenceCalculatorSpec
    EXECUTOR_SPEC = BeamExecutorSpec(InfluenceExecutor)

    def __init__(
        self,
        examples: BaseChannel,
        model: BaseChannel,
        schema: BaseChannel | None = None,
        test_examples: BaseChannel | None = None,
        saved_curvature: BaseChannel | None = None,
        train_splits: Sequence[str] = ("train",),
        test_splits: Sequence[str] | None = ("eval",),
        **options: Any,
    ):
        train, test = encode_splits(train_splits, "train_splits"), encode_splits(test_splits or (), "test_splits")
        if not train_splits:
            raise ValueError("train_splits [] must name the splits that the model was trained on")
        if test_examples is not None and not test_splits:
            raise ValueError("test_splits [] must name the splits of test_examples")
        encoded = encode_options(options, bool(test_splits), saved_curvature is not None)
        super().__init__(
            InfluenceCalculatorSpec(
                options=encoded,
                train_splits=train,
                test_splits=test,
                code=code_digests(encoded),
                examples=examples,
                model=model,
                schema=schema,
                test_examples=test_examples,
                saved_curvature=saved_curvature,
                scores=Channel(type=InfluenceScores),
                curvature=Channel(type=Curvature),
            )
        )
