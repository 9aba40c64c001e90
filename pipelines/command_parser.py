"""The parser of all commands: their options are fields of dataclasses, each with its help."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from beam_influence.pipelines import runners
from beam_influence.pipelines.clean_options import CleanOptions
from beam_influence.pipelines.command_help import COMMAND_HELP, GROUP_HELP, TOP_DESCRIPTION, TOP_EPILOG, WAY
from beam_influence.pipelines.config import InfluenceConfig, own_options
from beam_influence.pipelines.demo import DEMOS
from beam_influence.pipelines.ensemble_options import EnsembleOptions
from beam_influence.pipelines.evaluate_config import MEASURES, RETRAINING, EvaluateConfig
from beam_influence.pipelines.export_config import ExportConfig
from beam_influence.pipelines.layered_parser import LayeredParser, formatter_class
from beam_influence.pipelines.options.method import CURVATURE_OF_INDEX
from beam_influence.pipelines.options.option import FITTING, option_type
from beam_influence.pipelines.report_config import ReportConfig
from beam_influence.pipelines.unrolled_config import UnrolledConfig

if typing.TYPE_CHECKING:  # when it is needed, it is imported: --help need not wait for TensorFlow
    from beam_influence.influence_ops.curvature import Curvature

CONFIGURED = ("run", "index", "query", "fit", "plan")
"""The commands whose options are of `InfluenceConfig`."""
_RUNNER_GROUP = "runner: where it runs (docs/runners.md)"
_RESULTS = "The folder of a finished run: its --output."
_LIKE = {"plan": "run"}
Commands: typing.TypeAlias = "argparse._SubParsersAction[LayeredParser]"


class _TopParser(LayeredParser):
    """The program itself: its help is the way through the commands."""

    def format_layer(self, everything: bool) -> str:
        """One screen: the commands in the order in which they are met, and the first steps."""
        formatter = self._get_formatter()
        formatter.add_usage(f"{self.prog} COMMAND [option ...]", self._actions, [])
        formatter.add_text(self.description)
        for title, names in WAY.items():
            formatter.start_section(title)
            for name in names:
                formatter.add_argument(argparse.Action([], name, metavar=name, help=COMMAND_HELP[name].summary))
            formatter.end_section()
        formatter.add_text(self.epilog)
        return formatter.format_help()


def parser(kind: type[Curvature] | None = None, of_file: Mapping[str, object] | None = None) -> argparse.ArgumentParser:
    """The parser of all commands; the options are fields of `InfluenceConfig`, and the settings of a curvature of the user's own.

    Args:
      kind: that curvature.
      of_file: options of `CONFIGURED` commands that need not be given any more, with their values.
    """
    top = _TopParser(prog="beam-influence", description=TOP_DESCRIPTION, epilog=TOP_EPILOG, formatter_class=formatter_class())
    top.add_argument("--print-completion", action=_PrintCompletion, metavar="SHELL", choices=("bash", "zsh", "tcsh"))
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=LayeredParser)
    makers = {"demo": _demo, "evaluate": _evaluate, "report": _report, "inspect": _inspect, "clean": _clean, "export": _export}
    makers |= {"ensemble": _ensemble, "unrolled": _unrolled}
    for name in (name for names in WAY.values() for name in names):
        makers[name](commands) if name in makers else _configured(commands, name, kind, of_file or {})
    return top


class _PrintCompletion(argparse.Action):
    """Prints what a shell completes the commands and options from."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: object, values: object, option_string: str | None = None) -> None:
        try:
            import shtab  # of the extra cli
        except ImportError:
            parser.error("--print-completion needs the extra cli: pip install 'beam-influence[cli]'")
        parser._print_message(shtab.complete(parser, str(values)) + "\n", sys.stdout)
        parser.exit()


def _configured(commands: Commands, name: str, kind: type[Curvature] | None, of_file: Mapping[str, object]) -> None:
    command = _add_command(commands, name)
    runners.add_options(command.add_argument_group(_RUNNER_GROUP))
    if name == "plan":
        workers = "For how many workers, each like one process alone on this machine (default: the processes that --runner local works in)."
        group = command.add_argument_group("plan: what is asked about the run, whose options all others are")
        group.add_argument("--plan_workers", type=int, metavar="INT", help=workers)
    like = _LIKE.get(name, name)
    fields = dataclasses.fields(InfluenceConfig)
    _add_options(command, [field for field in fields if like in field.metadata["commands"]], InfluenceConfig)
    if kind is not None and like in FITTING:
        own = own_options(kind)
        _add_options(command, list(own.values()), kind.Settings)
        command.common += tuple(own)
    if name == "index":
        command.set_defaults(curvature=CURVATURE_OF_INDEX)
    group = command.add_argument_group("file: options from a file (docs/command_line.md)")
    group.add_argument(
        "--config",
        metavar="FILE",
        help="A YAML or JSON file with options by name, or the manifest.json of a run, which is then repeated. What is said here wins.",
    )
    group.add_argument("--set", action="append", metavar="NAME=VALUE", help="Change one option of --config; may be given several times.")
    known = {action.dest for action in command._actions}
    command.set_defaults(**{option: value for option, value in of_file.items() if option in known})
    for action in command._actions:
        action.required = action.required and action.dest not in of_file


def _demo(commands: Commands) -> None:
    summary, description, epilog, *_ = COMMAND_HELP["demo"]
    command = commands.add_parser("demo", help=summary, description=description, epilog=epilog, formatter_class=formatter_class())
    named = "; ".join(f"{name}: {text}" for name, text in DEMOS.items())
    command.add_argument("name", nargs="?", choices=list(DEMOS), default="digits", help=f"{named} (default: digits)")
    command.add_argument("--output", help="Where everything goes; files of an earlier demo there are replaced (default: out/NAME).")


def _evaluate(commands: Commands) -> None:
    summary, description, epilog, *_ = COMMAND_HELP["evaluate"]
    command = commands.add_parser("evaluate", help=summary, description=description, epilog=epilog, formatter_class=formatter_class())
    measures = command.add_subparsers(dest="measure", required=True, metavar="MEASURE", parser_class=LayeredParser)
    for name, (summary, description) in MEASURES.items():
        measure = measures.add_parser(name, help=summary, description=description, formatter_class=formatter_class())
        chosen = [field for field in dataclasses.fields(EvaluateConfig) if name in field.metadata.get("measures", ())]
        if name in RETRAINING:  # the others need no engine
            runners.add_options(measure.add_argument_group(_RUNNER_GROUP))
        _add_options(measure, chosen, EvaluateConfig)
        _add_json(measure)


def _report(commands: Commands) -> None:
    _of_results(_add_command(commands, "report"), ReportConfig)


def _export(commands: Commands) -> None:
    _of_results(_add_command(commands, "export"), ExportConfig)


def _clean(commands: Commands) -> None:
    command = _add_command(commands, "clean")
    runners.add_options(command.add_argument_group(_RUNNER_GROUP))
    _of_results(command, CleanOptions)


def _ensemble(commands: Commands) -> None:
    command = _add_command(commands, "ensemble")
    runners.add_options(command.add_argument_group(_RUNNER_GROUP))
    command.add_argument("results", nargs="+", metavar="RESULTS", help="The folders of finished runs, each its --output: the members.")
    fields = [field for field in dataclasses.fields(EnsembleOptions) if "group" in field.metadata]
    _add_options(command, fields, EnsembleOptions)


def _unrolled(commands: Commands) -> None:
    command = _add_command(commands, "unrolled")
    runners.add_options(command.add_argument_group(_RUNNER_GROUP))
    _add_options(command, list(dataclasses.fields(UnrolledConfig)), UnrolledConfig)


def _inspect(commands: Commands) -> None:
    command = _add_command(commands, "inspect")
    command.add_argument("folder", metavar="FOLDER", help="The folder, or the manifest.json in it.")
    command.add_argument("--rows", type=int, default=3, metavar="INT", help="How many rows of each table (default: 3).")


def _of_results(command: argparse.ArgumentParser, config: type) -> None:
    command.add_argument("results", metavar="RESULTS", help=_RESULTS)
    _add_options(command, [field for field in dataclasses.fields(config) if "group" in field.metadata], config)


def _add_command(commands: Commands, name: str) -> LayeredParser:
    summary, description, epilog, needed, common = COMMAND_HELP[name]
    texts: dict[str, Any] = {"help": summary, "description": description, "epilog": epilog}
    command = commands.add_parser(name, **texts, formatter_class=formatter_class(), needed=needed, common=common)
    _add_json(command)
    return command


def _add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="Print JSON on standard output, in place of text.")


def _add_options(command: argparse.ArgumentParser, fields: Sequence[dataclasses.Field[Any]], config: type) -> None:
    groups = {}
    for field in fields:
        name = field.metadata.get("group", "settings")
        if name not in groups:
            groups[name] = command.add_argument_group(f"{name}: {GROUP_HELP[name]}")
        _add_option(groups[name].add_argument, field, option_type(field, config))


def _add_option(add: Callable[..., argparse.Action], field: dataclasses.Field[Any], kind: type) -> None:
    required = field.default is dataclasses.MISSING
    default = None if required else field.default
    text = field.metadata.get("help", "").replace("%", "%%")
    choices = field.metadata.get("choices")
    if not required and kind is not bool and default is not None:
        text += f" (default: {default})"
    if kind is bool:
        add(f"--{field.name}", action=argparse.BooleanOptionalAction, default=default, help=text)
        return
    metavar = None if choices else kind.__name__.upper()
    add(f"--{field.name}", type=kind, required=required, default=default, choices=choices, metavar=metavar, help=text)
