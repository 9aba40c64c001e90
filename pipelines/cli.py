"""The command line `beam-influence`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import sys
import typing
from collections.abc import Callable, Sequence
from typing import Any

from beam_influence.influence_ops.redact import without_secrets
from beam_influence.pipelines import runners
from beam_influence.pipelines.command_help import COMMAND_HELP, GROUP_HELP
from beam_influence.pipelines.config import InfluenceConfig, own_options
from beam_influence.pipelines.demo import DEMOS
from beam_influence.pipelines.evaluate_config import MEASURES, RETRAINING, EvaluateConfig
from beam_influence.pipelines.options.method import CURVATURE_OF_INDEX
from beam_influence.pipelines.options.option import FITTING, option_type
from beam_influence.pipelines.options.results import ONLY_CURVATURE, ONLY_INDEX
from beam_influence.pipelines.report_config import ReportConfig
from beam_influence.pipelines.unknown_options import refuse_misplaced

if typing.TYPE_CHECKING:  # when it is needed, it is imported: --help need not wait for TensorFlow
    from beam_influence.influence_ops.curvature import Curvature

_RUNNER_GROUP = "runner: where it runs (docs/runners.md)"
_PLAN_LIKE = "run"
_ONLY_OUTPUT = {"fit": ONLY_CURVATURE, "index": ONLY_INDEX}
_COMMANDS = ("run", "index", "query", "fit", "plan")
"""Those whose options are of `InfluenceConfig`."""


def parser(kind: type[Curvature] | None = None) -> argparse.ArgumentParser:
    """The parser of all commands; the options are fields of `InfluenceConfig`, and the settings of a curvature of the user's own."""
    top = argparse.ArgumentParser(
        prog="beam-influence", description="Training-data attribution by influence functions, on Apache Beam.", allow_abbrev=False
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in _COMMANDS:
        command = _add_command(commands, name)
        runners.add_options(command.add_argument_group(_RUNNER_GROUP))
        if name == "plan":
            _add_plan_options(command.add_argument_group("plan: what is asked about the run, whose options all others are"))
        like = _PLAN_LIKE if name == "plan" else name
        fields = dataclasses.fields(InfluenceConfig)
        _add_options(command, [field for field in fields if like in field.metadata["commands"]], InfluenceConfig)
        if kind is not None and like in FITTING:
            _add_options(command, list(own_options(kind).values()), kind.Settings)
        if name == "index":
            command.set_defaults(curvature=CURVATURE_OF_INDEX)
    measures = _add_command(commands, "evaluate").add_subparsers(dest="measure", required=True, metavar="MEASURE")
    for name, (summary, description) in MEASURES.items():
        command = measures.add_parser(name, help=summary, description=description, allow_abbrev=False)
        chosen = [field for field in dataclasses.fields(EvaluateConfig) if name in field.metadata.get("measures", ())]
        if name in RETRAINING:  # the others need no engine
            runners.add_options(command.add_argument_group(_RUNNER_GROUP))
        _add_options(command, chosen, EvaluateConfig)
    report = _add_command(commands, "report")
    report.add_argument("results", metavar="RESULTS", help="The folder of a finished run: its --output.")
    _add_options(report, [field for field in dataclasses.fields(ReportConfig) if "group" in field.metadata], ReportConfig)
    demo = _add_command(commands, "demo")
    named = "; ".join(f"{name}: {text}" for name, text in DEMOS.items())
    demo.add_argument("name", nargs="?", choices=DEMOS, default="digits", help=f"{named} (default: digits)")
    demo.add_argument("--output", help="Where everything goes; files of an earlier demo there are replaced (default: out/NAME).")
    return top


def _add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str) -> argparse.ArgumentParser:
    summary, description, epilog = COMMAND_HELP[name]
    kept = argparse.RawDescriptionHelpFormatter
    return commands.add_parser(name, help=summary, description=description, epilog=epilog, formatter_class=kept, allow_abbrev=False)


def _add_plan_options(group: argparse._ArgumentGroup) -> None:
    workers = "For how many workers, each like one process alone on this machine (default: the processes that --runner local works in)."
    group.add_argument("--plan_workers", type=int, metavar="INT", help=workers)
    group.add_argument("--json", action="store_true", help="All numbers as JSON on standard output, in place of the table.")


def _add_options(command: argparse.ArgumentParser, fields: list[dataclasses.Field[Any]], config: type) -> None:
    groups = {}
    for field in fields:
        name = field.metadata.get("group", "settings")
        if name not in groups:
            groups[name] = command.add_argument_group(f"{name}: {GROUP_HELP[name]}")
        required = field.default is dataclasses.MISSING
        kind = option_type(field, config)
        text = field.metadata.get("help", "").replace("%", "%%")
        choices = field.metadata.get("choices")
        if not required and kind is not bool and field.default is not None:
            text += f" (default: {field.default})"
        if kind is bool:
            groups[name].add_argument(f"--{field.name}", action=argparse.BooleanOptionalAction, default=field.default, help=text)
        else:
            groups[name].add_argument(
                f"--{field.name}",
                type=kind,
                required=required,
                default=None if required else field.default,
                choices=choices,
                metavar=None if choices else kind.__name__.upper(),
                help=text,
            )


def parse(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options of a command, and what is left over for Beam.

    Raises:
      ValueError: a curvature of the user's own can't be used, or an option is another command's.
    """
    first = argparse.ArgumentParser(prog="beam-influence", add_help=False, allow_abbrev=False)
    first.add_argument("--curvature", default="")
    curvature = first.parse_known_args(words)[0].curvature
    kind = None
    if ":" in curvature and words[0] in (*FITTING, "plan"):
        from beam_influence.influence_ops.curvature import curvature_class  # TensorFlow

        kind = curvature_class(curvature)
    known, beam_arguments = parser(kind).parse_known_args(words)
    refuse_misplaced(beam_arguments, known.command)
    if kind is not None:
        given = [f"{name}={value}" for name, field in own_options(kind).items() if (value := getattr(known, name)) != field.default]
        known.curvature_settings = ",".join(filter(None, [known.curvature_settings, *given])) or None
    return known, beam_arguments


def make_config(known: argparse.Namespace) -> InfluenceConfig:
    """The options of a run, from the words of its command."""
    return InfluenceConfig(**_fields_of(InfluenceConfig, known))


def _fields_of(config: type, known: argparse.Namespace) -> dict[str, Any]:
    return {field.name: getattr(known, field.name) for field in dataclasses.fields(config) if hasattr(known, field.name)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status: 0 done, 1 the run failed, 2 wrong options or input."""
    parsed: list[tuple[argparse.Namespace, list[str]]] = []
    refused = exit_status(lambda: parsed.append(parse(sys.argv[1:] if arguments is None else arguments)))
    if refused:
        return refused
    ((known, beam_arguments),) = parsed
    if known.command == "evaluate":
        return _evaluate(known, beam_arguments)
    if known.command == "report":
        return _report(known, beam_arguments)
    if known.command == "demo":
        return _demo(known, beam_arguments)
    if known.command == "plan":
        return exit_status(lambda: _plan(known, beam_arguments), failed="the run would fail: ")
    from beam_influence.pipelines.launch import run  # TensorFlow and Beam: seconds that --help need not wait
    from beam_influence.pipelines.run_summary import summary_text

    if known.command in _ONLY_OUTPUT:
        known.outputs = _ONLY_OUTPUT[known.command]
    if known.command == "query" and known.index is None:
        print("beam-influence: --index is needed: the OUTPUT of the command index", file=sys.stderr)
        return 2
    return exit_status(lambda: print(summary_text(run(make_config(known), [*runners.as_arguments(known), *beam_arguments]))))


def exit_status(program: Callable[[], object], failed: str = "the run failed: ") -> int:
    """Runs a program and tells on stderr why it ended, if not well: 0 done, 1 the run failed, 2 wrong options or input."""
    try:
        program()
    except ValueError as error:
        print(f"beam-influence: {without_secrets(str(error))}", file=sys.stderr)
        return 2
    except Exception as error:
        from beam_influence.pipelines.run_pipeline import RunFailedError  # TensorFlow and Beam: seconds that wrong options need not wait

        if not isinstance(error, RunFailedError):
            raise
        print(f"beam-influence: {failed}{without_secrets(str(error))}", file=sys.stderr)
        return 1
    return 0


def _plan(known: argparse.Namespace, beam_arguments: list[str]) -> None:
    from beam_influence.pipelines.planning.plan import plan_options
    from beam_influence.pipelines.planning.run_plan import plan_text

    planned = plan_options(_fields_of(InfluenceConfig, known), [*runners.as_arguments(known), *beam_arguments], known.plan_workers)
    print(json.dumps(planned.as_json(), indent=2) if known.json else plan_text(planned))


def _evaluate(known: argparse.Namespace, beam_arguments: list[str]) -> int:
    def program() -> None:
        if beam_arguments and known.measure not in RETRAINING:
            raise ValueError(f"{beam_arguments[0].partition('=')[0]} is not an option of evaluate {known.measure}; leave it out")
        config = EvaluateConfig(**_fields_of(EvaluateConfig, known))  # before the imports that take seconds
        from beam_influence.pipelines.evaluate import evaluate
        from beam_influence.pipelines.evaluation_result import evaluation_text

        print(evaluation_text(evaluate(config, [*runners.as_arguments(known), *beam_arguments])))

    return exit_status(program, failed="")  # its message says what failed


def _report(known: argparse.Namespace, beam_arguments: list[str]) -> int:
    def program() -> None:
        config = ReportConfig(**_fields_of(ReportConfig, known))  # before the imports that take seconds
        try:
            from beam_influence.pipelines.report import report_text, write_report
        except ImportError as error:
            raise ValueError(f"the report needs the extra report: pip install 'beam-influence[report]' ({error})") from error
        from beam_influence.pipelines.unknown_options import refuse_unknown

        refuse_unknown(beam_arguments)
        print(report_text(write_report(config, beam_arguments)))

    return exit_status(program)


def _demo(known: argparse.Namespace, beam_arguments: list[str]) -> int:
    status: list[int] = []

    def program() -> None:
        if beam_arguments:
            raise ValueError(f"{beam_arguments[0].partition('=')[0]} is not an option of demo; leave it out")
        folder = f"out/{known.name}" if known.output is None else known.output
        if not folder or "://" in folder or pathlib.Path(folder).is_file():
            raise ValueError(f"--output {folder!r} must name a folder on this machine, such as out/{known.name}; it is made if need be")
        from beam_influence.influence_ops.device import configure_tensorflow

        configure_tensorflow()  # its log level is read when it is imported
        from beam_influence.pipelines.demo.demo import run_demo

        status.append(run_demo(known.name, pathlib.Path(folder), main))

    return exit_status(program) or status[0]


if __name__ == "__main__":
    sys.exit(main())
