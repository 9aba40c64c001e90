"""The table of engines, their options on the command line, and the choice of one."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from beam_influence.pipelines.choosing.rules import AUTO
from beam_influence.pipelines.config import InfluenceConfig, own_options
from beam_influence.pipelines.runners.dataflow import Dataflow
from beam_influence.pipelines.runners.flink import Flink
from beam_influence.pipelines.runners.local import Local
from beam_influence.pipelines.runners.prism import Prism
from beam_influence.pipelines.runners.runner import Engine, Option, Request, Runner
from beam_influence.pipelines.runners.runner_of_beam import RunnerOfBeam
from beam_influence.pipelines.unknown_options import refuse_unknown

RUNNERS: dict[str, Runner] = {runner.name: runner for runner in (Local(), Prism(), Flink(), Dataflow())}
OPTIONS: dict[str, Option] = {option.name: option for runner in RUNNERS.values() for option in runner.options}


def add_options(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Adds `--runner` and the options of all engines to a parser or to a group of one."""
    names = ", ".join(RUNNERS)
    help_text = f"The engine: {names}, or a runner's name of Beam's, such as SparkRunner (default: local)."
    parser.add_argument("--runner", default="local", metavar="NAME", help=help_text)
    for option in OPTIONS.values():
        parser.add_argument(
            f"--{option.name}",
            type=option.type,
            metavar=option.metavar,
            choices=option.choices,
            nargs=None if option.without_value is None else "?",
            const=option.without_value,
            help=option.help,
        )


def as_arguments(chosen: argparse.Namespace) -> list[str]:
    """The options of `add_options` that a parser has found, as arguments again."""
    return [f"--{name}={getattr(chosen, name)}" for name in ("runner", *OPTIONS) if getattr(chosen, name, None) is not None]


def choose_engine(arguments: Iterable[str], config: InfluenceConfig | None = None) -> Engine:
    """The engine that `arguments` name, with Beam's own options among them; `config` has the paths that it must reach.

    Raises:
      ValueError: the options don't go together, or the engine is not there; the message says what to write instead.
    """
    from apache_beam.options.pipeline_options import PipelineOptions  # seconds that --help need not wait

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    add_options(parser)
    try:
        own, beam_arguments = parser.parse_known_args(list(arguments))
    except argparse.ArgumentError as error:
        raise ValueError(str(error)) from error
    runner = RUNNERS.get(own.runner.lower()) or RunnerOfBeam(own.runner, tuple(RUNNERS))
    _refuse_options_of_others(runner, own)
    beam = PipelineOptions(beam_arguments).get_all_options(drop_default=True)
    _refuse_beam_options_of_others(runner, beam)
    settings = () if config is None or config.curvature == AUTO else own_options(config.curvature_kind)
    refuse_unknown(beam_arguments, runner.knows_more_options or "job_endpoint" in beam, beam.get("job_endpoint"), settings)
    engine = runner.engine(Request(own, beam, config))
    return dataclasses.replace(engine, arguments=[*beam_arguments, *engine.arguments], time_limit=own.time_limit)


def _refuse_options_of_others(runner: Runner, own: argparse.Namespace) -> None:
    for name, option in OPTIONS.items():
        value = getattr(own, name)
        if value is None:
            continue
        if option not in runner.options:
            *others, last = (other.name for other in RUNNERS.values() if option in other.options)
            takers = f"{', '.join(others)} and {last}" if others else last
            mend = runner.instead.get(name, option.elsewhere)
            raise ValueError(f"--{name} {value} is of --runner {takers}, not {own.runner}; {mend}")
        wrong = option.refuse(value)
        if wrong is not None:
            raise ValueError(wrong)


def _refuse_beam_options_of_others(runner: Runner, beam: Mapping[str, Any]) -> None:
    if runner.name not in RUNNERS:
        return  # a runner of Beam's, which may start another
    for name, value in beam.items():
        for other in RUNNERS.values():
            if other is not runner and other.beam_prefix is not None and name.startswith(other.beam_prefix):
                raise ValueError(f"--{name} {value} has no effect with --runner {runner.name}; add --runner {other.name}")


def open_file_systems(arguments: Sequence[str]) -> None:
    """Gives Beam's file systems the options among `arguments`, such as `--s3_endpoint_url`, before a pipeline does, which is later."""
    from apache_beam.io.filesystems import FileSystems
    from apache_beam.options.pipeline_options import PipelineOptions

    FileSystems.set_options(PipelineOptions(list(arguments), save_main_session=False))
