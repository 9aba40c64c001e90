"""Whether two runs have given the same, as their Parquet files and manifests tell."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from tests.engines.conftest import OPTIONS, InMemory
from tests.pipelines.digits_job import DigitsJob, assert_same_rows, files_below, paths_of_run, read, run_quietly

# The design's promise: the same on every engine, to 1e-6 of the largest. Only the order of the sums over files
# differs. Seen: 1e-13.
TOLERANCE = 1e-6


def manifest(output: pathlib.Path) -> dict[str, Any]:
    return json.loads((output / "manifest.json").read_text())


def rows_of_tables(content: dict[str, Any]) -> dict[str, int]:
    """The rows of each table, over its files."""
    return {table: total["rows"] for table, total in content["tables"].items()}


def assert_equal_runs(found: pathlib.Path, expected: pathlib.Path) -> None:
    """Identical ids, ranks, groups and counts; numbers to `TOLERANCE`; no file that the manifest does not list."""
    a, b = manifest(found), manifest(expected)
    assert a["counts"] == b["counts"]
    assert rows_of_tables(a) == rows_of_tables(b)
    assert paths_of_run(found) == {path for path in files_below(found) if not path.startswith("curvature/")}
    for table in rows_of_tables(b):
        if table != "rejected":
            assert_same_rows(read(found, table), read(expected, table), TOLERANCE)


def run_and_compare(job: DigitsJob, in_memory: InMemory, output: pathlib.Path, *arguments: str, **options: Any) -> None:
    """Runs the job on an engine and compares it with the run in memory."""
    run_quietly(job.config(output, **{**OPTIONS, **options}), *arguments)
    assert_equal_runs(output, in_memory.output)
