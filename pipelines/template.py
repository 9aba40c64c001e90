"""The Flex Template's program: its parameters are the options of `beam-influence run`, each as `--name=value`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Iterator, Sequence

from beam_influence.pipelines import runners
from beam_influence.pipelines.cli import exit_status, parse
from beam_influence.pipelines.config import InfluenceConfig
from beam_influence.pipelines.options.option import option_type
from beam_influence.pipelines.programs import make_config

_TRUE, _FALSE = ("true", "yes", "1"), ("false", "no", "0")


def as_options(parameters: Iterable[str]) -> Iterator[str]:
    """The parameters as the command line has them: a truth value is a flag, an empty value is none, Dataflow is a preset.

    Raises:
      ValueError: a truth value is neither true nor false.
    """
    flags = {field.name for field in dataclasses.fields(InfluenceConfig) if option_type(field, InfluenceConfig) is bool}
    for parameter in parameters:
        name, separator, value = parameter.removeprefix("--").partition("=")
        if separator and not value:
            continue  # a field of the console's form that was left empty
        if name in flags and separator:
            if value.lower() not in _TRUE + _FALSE:
                raise ValueError(f"--{name} {value!r} must be true or false")
            yield f"--{name}" if value.lower() in _TRUE else f"--no-{name}"
        elif name == "runner" and value == "DataflowRunner":  # as the launcher calls it
            yield "--runner=dataflow"
        else:
            yield parameter


def main(parameters: Sequence[str] | None = None) -> int:
    """Submits the job and returns without waiting for it: 0 submitted, 1 refused by the engine, 2 wrong parameters."""
    from beam_influence.pipelines.launch import submit  # TensorFlow and Beam

    def start() -> None:
        options = list(as_options(sys.argv[1:] if parameters is None else parameters))
        known, beam_arguments = parse(["run", *options])
        submit(make_config(known), [*runners.as_arguments(known), *beam_arguments])

    return exit_status(start)
