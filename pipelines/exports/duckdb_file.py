"""A DuckDB database: the run's tables, its examples, and views that join them. Everything is streamed into it."""

from __future__ import annotations

import itertools
import json
import os
import typing
import uuid
from collections.abc import Iterator, Sequence

import pyarrow as pa

from beam_influence.influence_ops.scoring.outputs.table import TABLES
from beam_influence.pipelines.exports.run_examples import ExampleTables, open_source
from beam_influence.pipelines.load_influence import Influence

if typing.TYPE_CHECKING:
    import duckdb

_MEMORY = "1GB"
_IDS = {"train": "train_id", "test": "test_id"}


def write_database(influence: Influence, features: Sequence[str] | None, path: str) -> dict[str, int]:
    """Writes the database; returns the rows of each table and view.

    Args:
      features: of the examples; None: all; empty: no examples.

    Raises:
      ValueError: DuckDB is not installed, or the path is not on this machine.
    """
    try:
        import duckdb
    except ImportError as error:
        raise ValueError(f"--to duckdb needs DuckDB: pip install 'beam-influence[duckdb]' ({error})") from error
    if "://" in path:
        raise ValueError(f"--output {path!r}: a database is written on this machine; give a path here, and copy it")
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    unfinished = f"{path}.{uuid.uuid4().hex}.tmp"
    try:
        with duckdb.connect(unfinished) as connection:
            connection.execute(f"SET memory_limit = '{_MEMORY}'")
            counts = _fill(connection, influence, features)
        os.replace(unfinished, path)
    finally:
        for left in (unfinished, f"{unfinished}.wal"):
            if os.path.exists(left):
                os.remove(left)
    return counts


def _fill(connection: duckdb.DuckDBPyConnection, influence: Influence, features: Sequence[str] | None) -> dict[str, int]:
    columns = {name: _stream(connection, name, influence.batches(name)) for name in influence.tables}
    if features is None or features:
        for split, id_name in _IDS.items():
            if any(id_name in names for names in columns.values()):
                tables = ExampleTables(open_source(influence.manifest, split), id_name, features)
                columns[f"{split}_examples"] = _stream(connection, f"{split}_examples", (batch for batch, _ in tables.batches()))
    facts = {**influence.facts, "folder": influence.folder, "config": dict(influence.manifest["config"])}
    connection.execute("CREATE TABLE facts (name VARCHAR, value VARCHAR)")
    rows = [[name, value if isinstance(value, str) else json.dumps(value)] for name, value in facts.items()]
    connection.executemany("INSERT INTO facts VALUES (?, ?)", rows)
    columns = {name: names for name, names in columns.items() if names}
    views = [*_views(connection, columns)]
    counts = {}
    for name in [*columns, *views]:
        (count,) = connection.execute(f"SELECT count(*) FROM {_quoted(name)}").fetchone() or (0,)
        counts[name] = int(count)
    return counts


def _stream(connection: duckdb.DuckDBPyConnection, name: str, batches: Iterator[pa.RecordBatch]) -> list[str]:
    """A table of all batches; returns the names of its columns, none where there is no example."""
    first = next(batches, None)
    if first is None and name not in TABLES:
        return []
    schema = (TABLES[name] if first is None else first.schema).remove_metadata()
    batches = itertools.chain([] if first is None else [first], batches)
    connection.register("stream", pa.RecordBatchReader.from_batches(schema, batches))
    connection.execute(f"CREATE TABLE {_quoted(name)} AS SELECT * FROM stream")
    connection.unregister("stream")
    return list(schema.names)


def _views(connection: duckdb.DuckDBPyConnection, columns: dict[str, list[str]]) -> Iterator[str]:
    """`TABLE_with_examples` for each table with ids, and `suspicious_labels`: self-influence, the largest first."""
    for table, names in columns.items():
        splits = [split for split, id_name in _IDS.items() if id_name in names and f"{split}_examples" in columns]
        if table.endswith("_examples") or not splits:
            continue
        chosen = [f"scored.{_quoted(name)}" for name in names]
        joins = ""
        for split in splits:
            others = [name for name in columns[f"{split}_examples"] if name != _IDS[split]]
            chosen += [f"{split}.{_quoted(name)} AS {_quoted(f'{split}_{name}')}" for name in others]
            joins += f" LEFT JOIN {split}_examples AS {split} ON scored.{_IDS[split]} = {split}.{_IDS[split]}"
        view = f"{table}_with_examples"
        connection.execute(f"CREATE VIEW {_quoted(view)} AS SELECT {', '.join(chosen)} FROM {_quoted(table)} AS scored{joins}")
        yield view
        if table == "self_influence":
            connection.execute(f"CREATE VIEW suspicious_labels AS SELECT * FROM {_quoted(view)} ORDER BY influence DESC")
            yield "suspicious_labels"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
