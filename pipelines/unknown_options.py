"""What neither a command nor Beam knows is refused, with the name that was probably meant: no option is dropped without a word."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
from collections.abc import Iterable, Iterator, Sequence

from beam_influence.pipelines.clean_options import CleanOptions
from beam_influence.pipelines.config import InfluenceConfig
from beam_influence.pipelines.ensemble_options import EnsembleOptions
from beam_influence.pipelines.evaluate_config import EvaluateConfig
from beam_influence.pipelines.export_config import ExportConfig
from beam_influence.pipelines.options.option import COMMANDS
from beam_influence.pipelines.report_config import ReportConfig
from beam_influence.pipelines.unrolled_config import UnrolledConfig

_DESCRIBE_SECONDS = 10.0
_SURELY_MEANT = 0.8


def options_of_commands() -> dict[str, tuple[str, ...]]:
    """Each option of a command, and the commands that take it."""
    found = {field.name: field.metadata["commands"] for field in dataclasses.fields(InfluenceConfig)}
    for field in dataclasses.fields(EvaluateConfig):
        measures = tuple(f"evaluate {measure}" for measure in field.metadata.get("measures", ()))
        found[field.name] = (*found.get(field.name, ()), *measures)
    others = {"report": ReportConfig, "clean": CleanOptions, "export": ExportConfig}
    others |= {"ensemble": EnsembleOptions, "unrolled": UnrolledConfig}
    for command, config in others.items():
        for field in dataclasses.fields(config):
            found[field.name] = (*found.get(field.name, ()), command)
    for name in ("config", "set"):
        found[name] = (*COMMANDS, "plan")
    return found


def refuse_misplaced(arguments: Iterable[str], command: str) -> None:
    """Refuses what another command takes, and `command` left over: Beam has options of the same names.

    Raises:
      ValueError: the message names the option and its commands.
    """
    commands = options_of_commands()
    for name in _names(arguments):
        if commands.get(name):
            raise ValueError(f"--{name} is not an option of {command}, but of {' and '.join(commands[name])}; leave it out")


def refuse_unknown(
    arguments: Sequence[str], has_server_options: bool = False, job_endpoint: str | None = None, own: Iterable[str] = ()
) -> None:
    """Refuses what Beam does not know.

    Args:
      arguments: what is meant for Beam.
      has_server_options: whether a job server may know more; then only a slip of the pen is refused, if it can't be asked.
      job_endpoint: where it can be asked.
      own: the options that a curvature of the user's own adds.

    Raises:
      ValueError: the message names the first that is not known, and the nearest name that is.
    """
    parser = _parser_of_beam(arguments)
    rest = parser.parse_known_args(list(arguments))[1]
    if rest and job_endpoint:
        described = _described(job_endpoint)
        for name in described or ():
            if f"--{name}" not in parser._option_string_actions:
                parser.add_argument(f"--{name}", nargs="?")
        rest = parser.parse_known_args(list(arguments))[1]
        has_server_options = described is None
    known = {word.removeprefix("--") for word in parser._option_string_actions} | {*options_of_commands(), *own}
    for word in rest:
        if not word.startswith("-"):
            if has_server_options:
                continue  # the value of an option that the server may know
            raise ValueError(f"{word!r} belongs to no option; quote patterns, so that the shell leaves them alone")
        name = word.lstrip("-").partition("=")[0]
        near = difflib.get_close_matches(name, known, 1, _SURELY_MEANT if has_server_options else 0.6)
        if near or not has_server_options:
            meant = f"; did you mean --{near[0]}?" if near and near[0] != name else "; leave it out"
            raise ValueError(f"--{name} is not an option, of this command nor of Beam{meant}")


def _names(arguments: Iterable[str]) -> Iterator[str]:
    for word in arguments:
        if word.startswith("--"):
            yield word.removeprefix("--").removeprefix("no-").partition("=")[0]


def _parser_of_beam(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """Beam's parser of all its options."""
    from apache_beam.options.pipeline_options import PipelineOptions

    parsers: list[argparse.ArgumentParser] = []
    PipelineOptions(list(arguments)).get_all_options(add_extra_args_fn=parsers.append)
    return parsers[0]


def _described(job_endpoint: str) -> list[str] | None:
    """The options that a job server says it has; None: it does not say."""
    import grpc
    from apache_beam.portability.api import beam_job_api_pb2, beam_job_api_pb2_grpc

    with grpc.insecure_channel(job_endpoint) as channel:
        service = beam_job_api_pb2_grpc.JobServiceStub(channel)
        try:
            request = beam_job_api_pb2.DescribePipelineOptionsRequest()
            return [option.name for option in service.DescribePipelineOptions(request, timeout=_DESCRIBE_SECONDS).options]
        except grpc.RpcError:
            return None
