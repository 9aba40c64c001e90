"""What each command does, and what it prints: text for people, or with `--json` an object for scripts."""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from beam_influence.influence_ops.garbage import without_collections
from beam_influence.pipelines import runners
from beam_influence.pipelines.clean_options import CleanOptions
from beam_influence.pipelines.config import InfluenceConfig
from beam_influence.pipelines.ensemble_options import EnsembleOptions
from beam_influence.pipelines.evaluate_config import RETRAINING, EvaluateConfig
from beam_influence.pipelines.export_config import ExportConfig
from beam_influence.pipelines.option_file import ONLY_OUTPUT
from beam_influence.pipelines.report_config import ReportConfig
from beam_influence.pipelines.unrolled_config import UnrolledConfig

# TensorFlow and Beam are imported in the functions: seconds that --help and wrong options need not wait.


def fields_of(config: type, known: argparse.Namespace) -> dict[str, Any]:
    """Those of the parsed options that are `config`'s, by name."""
    return {field.name: getattr(known, field.name) for field in dataclasses.fields(config) if hasattr(known, field.name)}


def make_config(known: argparse.Namespace) -> InfluenceConfig:
    """The options of a run, from the words of its command."""
    if known.command in ONLY_OUTPUT:
        known.outputs = ONLY_OUTPUT[known.command]
    return InfluenceConfig(**fields_of(InfluenceConfig, known))


def _print(known: argparse.Namespace, as_json: Callable[[], Mapping[str, Any]], as_text: Callable[[], str]) -> None:
    print(json.dumps(as_json(), indent=2) if known.json else as_text())


def _demo(known: argparse.Namespace, beam_arguments: list[str]) -> int:
    if beam_arguments:
        raise ValueError(f"{beam_arguments[0].partition('=')[0]} is not an option of demo; leave it out")
    folder = f"out/{known.name}" if known.output is None else known.output
    if not folder or "://" in folder or pathlib.Path(folder).is_file():
        raise ValueError(f"--output {folder!r} must name a folder on this machine, such as out/{known.name}; it is made if need be")
    from beam_influence.influence_ops.device import configure_tensorflow

    configure_tensorflow()  # its log level is read when it is imported
    from beam_influence.pipelines.cli import main
    from beam_influence.pipelines.demo.demo import run_demo

    return run_demo(known.name, pathlib.Path(folder), main)


def _run(known: argparse.Namespace, beam_arguments: list[str]) -> None:
    if known.command == "query" and known.index is None:
        raise ValueError("--index is needed: the OUTPUT of the command index")
    config = make_config(known)
    with without_collections():
        from beam_influence.pipelines.launch import run
        from beam_influence.pipelines.run_summary import summary_text

    summary = run(config, [*runners.as_arguments(known), *beam_arguments])
    _print(known, lambda: dataclasses.asdict(summary), lambda: summary_text(summary))


def _unrolled(known: argparse.Namespace, beam_arguments: list[str]) -> None:
    config = UnrolledConfig(**fields_of(UnrolledConfig, known))
    with without_collections():
        from beam_influence.pipelines.run_summary import summary_text
        from beam_influence.pipelines.unrolled import unroll

    summary = unroll(config, [*runners.as_arguments(known), *beam_arguments])
    _print(known, lambda: dataclasses.asdict(summary), lambda: summary_text(summary))


def _plan(known: argparse.Namespace, beam_arguments: list[str]) -> None:
    with without_collections():
        from beam_influence.pipelines.planning.plan import plan_options
        from beam_influence.pipelines.planning.run_plan import plan_text

    planned = plan_options(fields_of(InfluenceConfig, known), [*runners.as_arguments(known), *beam_arguments], known.plan_workers)
    _print(known, planned.as_json, lambda: plan_text(planned))


def _evaluate(known: argparse.Namespace, beam_arguments: list[str]) -> None:
    if beam_arguments and known.measure not in RETRAINING:
        raise ValueError(f"{beam_arguments[0].partition('=')[0]} is not an option of evaluate {known.measure}; leave it out")
    config = EvaluateConfig(**fields_of(EvaluateConfig, known))
    with without_collections():
        from beam_influence.pipelines.evaluate import evaluate
        from beam_influence.pipelines.evaluation_result import evaluation_json, evaluation_text

    evaluation = evaluate(config, [*runners.as_arguments(known), *beam_arguments])
    _print(known, lambda: evaluation_json(evaluation, dataclasses.asdict(config)), lambda: evaluation_text(evaluation))


def _report(known: argparse.Namespace, beam_arguments: list[str]) -> None:
    config = ReportConfig(**fields_of(ReportConfig, known))
    try:
        from beam_influence.pipelines.report import report_text, write_report
    except ImportError as error:
        raise ValueError(f"the report needs the extra report: pip install 'beam-influence[report]' ({error})") from error
    from beam_influence.pipelines.unknown_options import refuse_unknown

    refuse_unknown(beam_arguments)
    written = write_report(config, beam_arguments)
    _print(known, lambda: dataclasses.asdict(written), lambda: report_text(written))


def _inspect(known: argparse.Namespace, beam_arguments: list[str]) -> None:
    if known.rows < 0:
        raise ValueError(f"--rows {known.rows} must be at least 0")
    from beam_influence.pipelines.inspect_folder import inspect_folder, inspection_text
    from beam_influence.pipelines.unknown_options import refuse_unknown

    refuse_unknown(beam_arguments)
    found = inspect_folder(known.folder, known.rows, beam_arguments)
    _print(known, lambda: dataclasses.asdict(found), lambda: inspection_text(found))


def _clean(known: argparse.Namespace, beam_arguments: list[str]) -> None:
    options = CleanOptions(**fields_of(CleanOptions, known))
    with without_collections():
        from beam_influence.pipelines.clean_run import clean_run, cleaning_text

    facts = clean_run(options, [*runners.as_arguments(known), *beam_arguments])
    _print(known, lambda: facts, lambda: cleaning_text(facts, options.output))


def _export(known: argparse.Namespace, beam_arguments: list[str]) -> None:
    config = ExportConfig(**fields_of(ExportConfig, known))
    from beam_influence.pipelines.exports.export import export
    from beam_influence.pipelines.unknown_options import refuse_unknown

    refuse_unknown(beam_arguments)
    exported = export(config, beam_arguments)
    _print(known, lambda: dataclasses.asdict(exported), lambda: exported.text)


def _ensemble(known: argparse.Namespace, beam_arguments: list[str]) -> None:
    known.results = tuple(known.results)
    options = EnsembleOptions(**fields_of(EnsembleOptions, known))
    with without_collections():
        from beam_influence.pipelines.ensemble import ensemble, ensemble_text

    made = ensemble(options, [*runners.as_arguments(known), *beam_arguments])
    _print(known, lambda: dataclasses.asdict(made), lambda: ensemble_text(made))


Program = Callable[[argparse.Namespace, list[str]], int | None]
_FAILED = "the run failed: "
PROGRAMS: dict[str, tuple[Program, str]] = {
    "demo": (_demo, _FAILED),
    **dict.fromkeys(("run", "fit", "index", "query"), (_run, _FAILED)),
    "unrolled": (_unrolled, _FAILED),
    "plan": (_plan, "the run would fail: "),
    "evaluate": (_evaluate, ""),  # its message says what failed
    "report": (_report, _FAILED),
    "inspect": (_inspect, _FAILED),
    "clean": (_clean, "the cleaning failed: "),
    "export": (_export, _FAILED),
    "ensemble": (_ensemble, "the ensemble failed: "),
}
"""What each command does, and what the message of a failed one begins with."""
