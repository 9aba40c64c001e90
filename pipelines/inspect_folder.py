"""`beam-influence inspect`: what a folder of this program is, in words, and the command that makes it again."""

from __future__ import annotations

import dataclasses
import json
import posixpath
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow.parquet as pq

from beam_influence.influence_ops.ensemble.intervals import interval_factor
from beam_influence.influence_ops.results import schemas
from beam_influence.influence_ops.results.result_files import MANIFEST, naming_listed, read_manifest, table_files
from beam_influence.pipelines.clean import FACTS
from beam_influence.pipelines.config import InfluenceConfig
from beam_influence.pipelines.ensemble import MEMBERS
from beam_influence.pipelines.evaluate_config import MEASURES
from beam_influence.pipelines.named_code import MAY_BE_CODE, names_code
from beam_influence.pipelines.option_file import ONLY_OUTPUT
from beam_influence.pipelines.options.method import CURVATURE_OF_INDEX
from beam_influence.pipelines.run_summary import curvature_lines
from beam_influence.pipelines.runners import open_file_systems
from beam_influence.pipelines.unrolled_config import UnrolledConfig
from beam_influence.transforms.files import BeamFiles, join

_LONGEST = 60
_MOST_VALUES = 6


@dataclasses.dataclass(frozen=True)
class TableFacts:
    """A table: its columns with their types, how much there is of it, and its first rows."""

    name: str
    columns: dict[str, str]
    rows: int
    files: int
    bytes: int
    first: list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What a folder is.

    Attributes:
      folder: where it is.
      kind: `results`, `curvature`, `index`, `operator` (a saved curvature's own folder), `cleaned`, `evaluation`, `ensemble` or
        `unfinished`.
      what: that in words.
      facts: what must be known about it, by name.
      tables: those in it.
      command: what makes it again, from the folder where it was made; None: it is not known.
      code: the options that name code, as words: they must be given beside `--config`.
    """

    folder: str
    kind: str
    what: str
    facts: dict[str, Any]
    tables: list[TableFacts]
    command: str | None
    code: list[str] = dataclasses.field(default_factory=list)


def inspect_folder(folder: str, rows: int = 3, beam_arguments: Sequence[str] = ()) -> Inspection:
    """Finds out what a folder is.

    Args:
      folder: its path, or that of the manifest in it, on any file system of Beam's.
      rows: how many first rows of each table are wanted.
      beam_arguments: options of the file system.

    Raises:
      ValueError: it is not of this program, or damaged.
    """
    if beam_arguments:
        open_file_systems(beam_arguments)
    folder = folder.removesuffix(MANIFEST).rstrip("/") or "."
    try:
        return _known(folder, rows)
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{folder!r} is damaged, or of another program: {error!r}") from error


def _known(folder: str, rows: int) -> Inspection:
    files = BeamFiles()
    if files.exists(join(folder, MANIFEST)):
        return _of_manifest(folder, rows)
    if files.exists(join(folder, FACTS)):
        return _of_cleaned(folder)
    if files.exists(join(folder, "meta.json")):
        meta = json.loads(files.read(join(folder, "meta.json")))
        what = "a saved curvature: use it as beam-influence run --curvature_path " + shlex.quote(folder)
        return Inspection(folder, "operator", what, {name: value for name, value in meta.items() if name != "arrays"}, [], None)
    evaluated = [measure for measure in MEASURES if files.exists(join(folder, f"{measure}.json"))]
    if evaluated:
        return _of_evaluation(folder, evaluated)
    if files.exists(join(folder, ".work")):
        what = "a run that has not finished, or failed: the command that began it goes on where it was"
        return Inspection(folder, "unfinished", what, {}, [], None)
    raise ValueError(
        f"{folder!r} is no folder of this program: it has no {MANIFEST} (run, fit, index), no {FACTS} (clean), no meta.json (a saved "
        "curvature) and no result of evaluate"
    )


def _of_manifest(folder: str, rows: int) -> Inspection:
    manifest = read_manifest(folder, BeamFiles())
    config, curvature = manifest["config"], manifest["curvature"]
    of_candidates = config.get("candidates") is not None
    facts: dict[str, Any] = {"curvature and weights": list(curvature_lines(manifest))}
    kind = {"curvature": "curvature", "index": "index"}.get(str(config["outputs"]).strip(), "results")
    if kind == "results":
        known = schemas.facts(curvature, config["normalize"], config["removal"], of_candidates)
        facts = {"sign": known["sign"], "unit": known["unit"], "n": known["n"], **facts}
    facts |= {"counts": manifest["counts"], "model": config["model"], "model fingerprint": curvature["fingerprint"]}
    facts["versions"] = manifest.get("versions", {})
    tables = [_table(folder, name, total, rows) for name, total in sorted(manifest["tables"].items())]
    quoted = shlex.quote(folder)
    what = {
        "results": f"the results of a finished run; a page of them: beam-influence report {quoted} --output report.html",
        "curvature": f"a fitted curvature; use it: beam-influence run --curvature_path {shlex.quote(join(folder, 'curvature'))}",
        "index": f"an index of training examples; ask it: beam-influence query --index {quoted}",
    }[kind]
    if MEMBERS in manifest:
        of = [member["folder"] for member in manifest[MEMBERS]["members"]]
        facts |= {"members": manifest[MEMBERS]["members"], "90 % interval": f"± {manifest[MEMBERS]['interval_factor']:.3g} standard errors"}
        words = ["beam-influence", "ensemble", *of, "--output", config["output"], "--top_k", str(config["top_k"])]
        words = words if "top_k" in manifest["tables"] else words[:-2]
        if (factor := manifest[MEMBERS]["interval_factor"]) != interval_factor(len(of)):
            words += ["--interval_factor", f"{factor:.17g}"]
        what = f"the mean of {len(of)} runs' scores; a page of it: beam-influence report {quoted} --output report.html"
        return Inspection(folder, "ensemble", what, facts, tables, shlex.join(words))
    code = [word for name in MAY_BE_CODE if names_code(name, str(config.get(name) or "")) for word in (f"--{name}", config[name])]
    if "unrolled" in manifest:
        return Inspection(folder, "unrolled", what, facts, tables, _unrolled_command(manifest["unrolled"]), [])
    return Inspection(folder, kind, what, facts, tables, _command(config), code)


def _table(folder: str, name: str, total: Mapping[str, int], rows: int) -> TableFacts:
    path = next(table_files(folder, name, BeamFiles()), None)
    columns: dict[str, str] = {}
    first: list[dict[str, Any]] = []
    if path is not None:
        with naming_listed(path), BeamFiles().open_read(path) as file:
            parquet = pq.ParquetFile(file)
            columns = {field.name: str(field.type) for field in parquet.schema_arrow}
            batch = next(parquet.iter_batches(rows), None) if rows else None
            first = [] if batch is None else [_plain(row) for row in batch.to_pylist()]
    return TableFacts(name, columns, total["rows"], total["files"], total["bytes"], first)


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as JSON takes it."""
    return {name: value.hex() if isinstance(value, bytes) else value for name, value in row.items()}


def _command(config: Mapping[str, Any]) -> str:
    """The command whose options these are, those left out that it has anyway."""
    alone = {value: name for name, value in ONLY_OUTPUT.items()}
    outputs = str(config["outputs"]).strip()
    command = alone.get(outputs, "run")
    defaults = {field.name: field.default for field in dataclasses.fields(InfluenceConfig)}
    if command == "index":
        defaults["curvature"] = CURVATURE_OF_INDEX
    if command != "run":
        defaults["outputs"] = outputs
    return _words(command, config, defaults)


def _unrolled_command(options: Mapping[str, Any]) -> str:
    return _words("unrolled", options, {field.name: field.default for field in dataclasses.fields(UnrolledConfig)})


def _words(command: str, options: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    words = ["beam-influence", command]
    for name in (name for name in defaults if name in options):
        value = options[name]
        if value == defaults[name] or value is None:
            continue
        words += [f"--{name}" if value else f"--no-{name}"] if isinstance(value, bool) else [f"--{name}", str(value)]
    return shlex.join(words)


def _of_cleaned(folder: str) -> Inspection:
    facts = json.loads(BeamFiles().read(join(folder, FACTS)))
    done = "dropped" if facts.get("weight") is None else f"given {facts['weight']:g} times their weight"
    what = (
        f"a cleaned training set: of {facts['examples']:,} examples in {facts['files']:,} files, {facts['suspicious']:,} were {done}; "
        f"{facts['files_copied']:,} files copied as they were"
    )
    options = facts.pop("options", None)
    return Inspection(folder, "cleaned", what, facts, [], options and _clean_command(options | facts))


def _clean_command(options: Mapping[str, Any]) -> str:
    words = ["beam-influence", "clean", options["scores"]]
    for name in ("share", "ids", "weight", "source", "output"):
        words += [] if options[name] is None else [f"--{name}", str(options[name])]
    words += ["--weight_feature", options["weight_feature"]] if options["weight"] is not None else []
    return shlex.join([*words, *(["--others", ",".join(options["others"])] if options["others"] else [])])


def _of_evaluation(folder: str, measures: Sequence[str]) -> Inspection:
    found = {measure: json.loads(BeamFiles().read(join(folder, f"{measure}.json"))) for measure in measures}
    tables = []
    for measure in measures:
        path = join(folder, f"{measure}.parquet")
        if BeamFiles().exists(path):
            with BeamFiles().open_read(path) as file:
                parquet = pq.ParquetFile(file)
                columns = {field.name: str(field.type) for field in parquet.schema_arrow}
                tables.append(TableFacts(measure, columns, parquet.metadata.num_rows, 1, file.seek(0, 2), []))
    commands = []
    for measure, content in found.items():
        options = {name: value for name, value in content["options"].items() if name != "measure" and value not in (None, False)}
        words = [word for name, value in options.items() for word in ([f"--{name}"] if value is True else [f"--{name}", str(value)])]
        commands.append(shlex.join(["beam-influence", "evaluate", measure, *words]))
    facts = {measure: content["rows"] for measure, content in found.items()}
    return Inspection(folder, "evaluation", f"how good scores are: {', '.join(measures)}", facts, tables, "\n".join(commands))


def inspection_text(found: Inspection) -> str:
    """What is told on the terminal."""
    return "\n".join([f"{found.folder}: {found.what}", "", *_fact_lines(found.facts), *_table_lines(found.tables), *_command_lines(found)])


def _fact_lines(facts: Mapping[str, Any]) -> Iterator[str]:
    width = max(map(len, facts), default=0) + 2
    for name, value in facts.items():
        if isinstance(value, Mapping) and all(isinstance(part, Mapping) for part in value.values()):
            lines = [f"{key}: {_amounts(part)}" for key, part in value.items()]
        elif isinstance(value, Mapping):
            lines = [", ".join(f"{key} {part}" for key, part in value.items())]
        elif isinstance(value, list):
            lines = [one if isinstance(one, str) else _amounts(one) for one in value]
        else:
            lines = [f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)]
        for number, line in enumerate(lines or ["none"]):
            yield f"{'' if number else name:<{width}}{line}"


def _amounts(part: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value:,}" if isinstance(value, int) else f"{key} {value}" for key, value in part.items())


def _table_lines(tables: Sequence[TableFacts]) -> Iterator[str]:
    for table in tables:
        yield ""
        yield f"table {table.name}: {table.rows:,} rows in {table.files:,} files, {table.bytes / 1024:,.1f} KiB"
        shown = [{name: _short(value) for name, value in row.items()} for row in table.first]
        widths = {name: max([len(name), len(kind), *(len(row[name]) for row in shown)]) for name, kind in table.columns.items()}
        for line in ({name: name for name in widths}, table.columns, *shown):
            yield "  " + "  ".join(line[name].ljust(width) for name, width in widths.items()).rstrip()


def _short(value: object) -> str:
    if isinstance(value, list):
        values = ", ".join(_short(one) for one in value[:_MOST_VALUES])
        return f"[{values}{', …' if len(value) > _MOST_VALUES else ''}] ({len(value):,})"
    text = f"{value:.6g}" if isinstance(value, float) else "–" if value is None else str(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _command_lines(found: Inspection) -> Iterator[str]:
    if found.command is not None:
        yield ""
        yield "made by, from the folder where it was run (give another --output, or --overwrite):"
        yield from (f"  {line}" for line in found.command.splitlines())
    if found.kind in ("results", "curvature", "index"):
        command = {"curvature": "fit", "index": "index"}.get(found.kind, "run")
        words = ["beam-influence", command, "--config", posixpath.join(found.folder, MANIFEST), "--set", "output=again"]
        yield f"or {shlex.join([*words, *found.code])}"
