"""The result of an evaluation: a table on the terminal, JSON, and Parquet with a row for each test point."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from beam_influence.transforms.files import BeamFiles, join

Figures = Mapping[str, Any]
"""Numbers, words and None by name; `NAME_error` is the standard error of `NAME`."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the result: what was evaluated (`method`), its figures, and those of each test point or example."""

    method: str
    figures: Figures
    each: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A finished evaluation; `rows` in the order in which they are shown."""

    measure: str
    output: str
    facts: Figures
    rows: list[Row]


def write_evaluation(evaluation: Evaluation, options: Mapping[str, object]) -> None:
    """Writes MEASURE.parquet, each test point's own figure, then MEASURE.json."""
    pairs = [(row.method, row.figures.get("k"), name, value) for row in evaluation.rows for name, value in row.each.items()]
    if pairs:
        columns = [list(column) for column in zip(*pairs, strict=True)]
        types = (pa.string(), pa.int64(), pa.string(), pa.float64())
        arrays = [pa.array(column, kind) for column, kind in zip(columns, types, strict=True)]
        table = pa.Table.from_arrays(arrays, names=["method", "k", "test_id", "value"])
        with BeamFiles().open_write(join(evaluation.output, f"{evaluation.measure}.parquet")) as file:
            pq.write_table(table, pa.PythonFile(file, mode="w"), compression="zstd")
    content = evaluation_json(evaluation, options)
    BeamFiles().write(join(evaluation.output, f"{evaluation.measure}.json"), json.dumps(content, indent=1).encode())


def evaluation_json(evaluation: Evaluation, options: Mapping[str, object]) -> dict[str, Any]:
    """The content of MEASURE.json."""
    return {
        "measure": evaluation.measure,
        "options": options,
        **evaluation.facts,
        "rows": [{"method": row.method, **{key: _plain(value) for key, value in row.figures.items()}} for row in evaluation.rows],
    }


def _plain(value: float | str | None) -> float | str | None:
    """JSON has no NaN."""
    return None if isinstance(value, float) and not np.isfinite(value) else value


def evaluation_text(evaluation: Evaluation) -> str:
    """The result as a table: a figure and its standard error (key and key_error) as one column."""
    names = list(dict.fromkeys(key for row in evaluation.rows for key in row.figures if not key.endswith("_error")))
    lines = [["", *(name.replace("_", " ") for name in names)]]
    lines += [[row.method, *(_shown(row.figures, name) for name in names)] for row in evaluation.rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(names) + 1)]
    text = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines]
    numbers = {key: value for key, value in evaluation.facts.items() if not isinstance(value, str)}
    said = [f"{key}: {value}" for key, value in evaluation.facts.items() if isinstance(value, str)]
    facts = ", ".join(f"{key.replace('_', ' ')} {value:,}" for key, value in numbers.items())
    return "\n".join([*text, "", *said, f"{facts}; result in {join(evaluation.output, evaluation.measure + '.json')}"])


def _shown(figures: Figures, name: str) -> str:
    value = figures.get(name)
    if value is None or (isinstance(value, float) and not np.isfinite(value)):
        return "–"
    if not isinstance(value, float):
        return str(value)
    if name.startswith("found"):
        return f"{100 * value:.1f} %"
    error = figures.get(f"{name}_error")
    if name == "damping" or (error is None and 0 < abs(value) < 0.001):
        return f"{value:.3g}"
    if error is None or not np.isfinite(error):
        return f"{value:.3f}"
    # Two digits of the error, and the figure to the same place.
    decimals = min(max(1 - int(np.floor(np.log10(error))), 3), 7) if error > 0 else 3
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"
