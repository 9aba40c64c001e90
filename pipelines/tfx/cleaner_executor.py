"""The executor of `ExampleCleaner`: artifacts to options, one Beam pipeline over all splits, its facts to the artifact."""

from __future__ import annotations

import json
from typing import Any

from tfx.types.artifact import Artifact

from beam_influence.pipelines.clean import CleanConfig, clean
from beam_influence.pipelines.tfx.beam_executor import BeamExecutor
from beam_influence.pipelines.tfx.options import to_json
from beam_influence.pipelines.tfx.resolve_artifacts import (
    CUSTOM_SPLIT_PATTERN,
    FILE_FORMAT,
    PAYLOAD_FORMAT,
    data_format,
    single,
    split_names,
    split_patterns,
)

Artifacts = dict[str, list[Artifact]]


class CleanerExecutor(BeamExecutor):
    """Runs `beam_influence.pipelines.clean` on the splits that were scored."""

    def Do(self, input_dict: Artifacts, output_dict: Artifacts, exec_properties: dict[str, Any]) -> None:
        """Writes all splits below the uri of the output.

        Raises:
          ValueError: the scores are not of these Examples; nothing was written.
          RunFailedError: the Beam pipeline failed.
        """
        self._log_startup(input_dict, output_dict, exec_properties)
        examples, scores = single(input_dict["examples"], "examples"), single(input_dict["scores"], "scores")
        output = single(output_dict["cleaned_examples"], "cleaned_examples")
        scored = json.loads(scores.get_string_custom_property("train_splits"))
        others = [split for split in split_names(examples) if split not in scored]
        config = CleanConfig(
            scores=scores.uri,
            source=examples.uri,
            train=split_patterns([examples], scored),
            others=split_patterns([examples], others),
            output=output.uri,
            data_format=data_format([examples]),
            **json.loads(exec_properties["options"]),
        )
        facts = clean(config, self.beam_arguments, self.make_pipeline)
        _copy_properties(examples, output)
        _describe(facts, output)


def _copy_properties(examples: Artifact, output: Artifact) -> None:
    """What readers of Examples must know; the rest tells where the first ones came from."""
    output.split_names, output.span, output.version = examples.split_names, examples.span, examples.version
    for name in (PAYLOAD_FORMAT, FILE_FORMAT, CUSTOM_SPLIT_PATTERN):
        value = examples.get_custom_property(name)
        if isinstance(value, int):
            output.set_int_custom_property(name, value)
        elif value is not None:
            output.set_string_custom_property(name, str(value))


def _describe(facts: dict[str, Any], output: Artifact) -> None:
    for name in ("share", "threshold"):
        output.set_string_custom_property(name, to_json(facts[name]))  # as text: the store rounds numbers to 6 decimals
    output.set_int_custom_property("scored_examples", facts["scored"])
    output.set_int_custom_property("suspicious_examples", facts["suspicious"])
    output.set_int_custom_property("damaged_records", facts["damaged"])
