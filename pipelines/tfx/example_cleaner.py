"""The component that closes the loop: the training set without its most suspicious examples, or with less weight on them."""

from __future__ import annotations

from tfx.dsl.components.base.base_beam_component import BaseBeamComponent
from tfx.dsl.components.base.executor_spec import BeamExecutorSpec
from tfx.types.channel import BaseChannel, Channel
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter

from beam_influence.influence_ops.reading.clean_files import Cleaning
from beam_influence.pipelines.clean_options import check_share
from beam_influence.pipelines.tfx.artifacts import InfluenceScores, standard_artifacts
from beam_influence.pipelines.tfx.cleaner_executor import CleanerExecutor
from beam_influence.pipelines.tfx.options import code_digests, to_json


class ExampleCleanerSpec(ComponentSpec):
    """Inputs, outputs and execution properties of `ExampleCleaner`; these are JSON with sorted keys."""

    PARAMETERS = {"options": ExecutionParameter(type=str), "code": ExecutionParameter(type=str)}
    INPUTS = {
        "examples": ChannelParameter(type=standard_artifacts.Examples),
        "scores": ChannelParameter(type=InfluenceScores),
    }
    OUTPUTS = {"cleaned_examples": ChannelParameter(type=standard_artifacts.Examples)}


class ExampleCleaner(BaseBeamComponent):
    """Drops the training examples of the largest self-influence, or gives them less weight.

    The splits that were scored are cleaned, file by file, in their own format and compression; the others are copied.

    Args:
      examples: the Examples that were scored.
      scores: the output `scores` of `InfluenceCalculator`, with the table self_influence.
      share: the part of the scored examples that is suspicious, above 0 and below 1.
      weight: None drops them; a number from 0 to 1 multiplies their weight instead.
      weight_feature: with `weight`: the float feature with the weights (a column, a context feature); examples without
        it get 1, times `weight` where they are suspicious.

    Outputs:
      cleaned_examples: Examples with the same splits; custom properties tell what was done: `share`, `threshold` (text;
        null when no example is suspicious), `scored_examples`, `suspicious_examples`, `damaged_records` (which can't be kept).

    Raises:
      ValueError: an option is wrong; the message names it.
    """

    SPEC_CLASS = ExampleCleanerSpec
    EXECUTOR_SPEC = BeamExecutorSpec(CleanerExecutor)

    def __init__(
        self, examples: BaseChannel, scores: BaseChannel, share: float, weight: float | None = None, weight_feature: str = "weight"
    ):
        check_share(share)
        Cleaning(weight, weight_feature)
        weight = None if weight is None else float(weight)
        options = to_json({"share": float(share), "weight": weight, "weight_feature": weight_feature})
        super().__init__(
            ExampleCleanerSpec(
                options=options,
                code=code_digests(options),
                examples=examples,
                scores=scores,
                cleaned_examples=Channel(type=standard_artifacts.Examples),
            )
        )
