"""`beam-influence export`: finished results in the form that another program takes."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence

from beam_influence.pipelines.export_config import ExportConfig
from beam_influence.pipelines.exports.duckdb_file import write_database
from beam_influence.pipelines.exports.frame import write_frame
from beam_influence.pipelines.exports.issues import write_ids, write_issues
from beam_influence.pipelines.load_influence import Influence, load_influence
from beam_influence.transforms.files import BeamFiles


@dataclasses.dataclass(frozen=True)
class Exported:
    """What was written: for what, where, the rows of each table in it, and what is told on the terminal."""

    to: str
    output: str
    rows: dict[str, int]
    text: str


def export(config: ExportConfig, beam_arguments: Sequence[str] = ()) -> Exported:
    """Writes the file.

    Args:
      config: the options.
      beam_arguments: options of the file systems that the run and its sources are on.

    Raises:
      ValueError: there is no such run, it lacks a table, or the file is there already.
    """
    influence = load_influence(config.results, beam_arguments)
    if influence.manifest["config"].get("candidates") is not None:
        raise ValueError(f"the run in {config.results!r} scored --candidates; export takes one that scored the training set")
    if BeamFiles().exists(config.output) and not config.overwrite:
        raise ValueError(f"--output {config.output!r} is there already; give another name, or --overwrite")
    return _WRITERS[config.to](influence, config)


def _duckdb(influence: Influence, config: ExportConfig) -> Exported:
    rows = write_database(influence, config.feature_names, config.output)
    lines = [f"{name:<34}{count:>14,} rows" for name, count in rows.items()]
    return Exported("duckdb", config.output, rows, "\n".join([*lines, f"database in {config.output}; facts has sign, unit and options"]))


def _frame(influence: Influence, config: ExportConfig) -> Exported:
    for_spotlight = config.to == "spotlight"
    name, rows = write_frame(influence, config.table, config.feature_names, for_spotlight, config.output)
    opened = f"spotlight {shlex.quote(config.output)}" if for_spotlight else f"pandas.read_parquet({config.output!r})"
    return Exported(config.to, config.output, {name: rows}, f"{rows:,} rows of {name} with their training examples; open it: {opened}")


def _issues(influence: Influence, config: ExportConfig) -> Exported:
    assert config.share is not None
    write = write_issues if config.to == "cleanlab" else write_ids
    rows, issues, threshold = write(influence, config.share, config.output)
    text = f"{issues:,} of {rows:,} training examples, of self-influence {threshold:.6g} or more; in {config.output}"
    counts = {"examples": rows, "issues": issues} if config.to == "cleanlab" else {"ids": issues}
    return Exported(config.to, config.output, counts, text)


_WRITERS = {"duckdb": _duckdb, "pandas": _frame, "spotlight": _frame, "cleanlab": _issues, "ids": _issues}
