"""Result tables as Parquet files that are complete or absent, and the manifest that lists those of a finished run."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from beam_influence.influence_ops.results import schemas
from beam_influence.influence_ops.results.array_folder import FileStore, LocalFiles

MANIFEST = "manifest.json"
MANIFEST_VERSION = 1
_ROWS_IN_A_GROUP = 1 << 17
BYTES_IN_A_GROUP = 64 << 20  # of Arrow's columns, before compression


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """An input file that a result file was made from: its name, bytes, and SHA-256."""

    name: str
    size: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class WrittenFile:
    """A finished result file: its table, its path below the output folder, its rows and bytes, and its source where it is told.

    `error` is the largest relative error of its rows as they are stored, of an index's files.
    """

    table: str
    path: str
    rows: int
    size: int
    source: SourceFile | None = None
    error: float | None = None


class ParquetFile:
    """One result file, written table by table; it appears when it is closed.

    What waits in memory is at most `BYTES_IN_A_GROUP` and the last table, and a row group is no larger than that either, so that
    a reader is bounded too (one row may be larger).

    Args:
      output: the output folder.
      table: the table's name, also the folder's.
      name: the file's name without `.parquet`, the same on every try, so that a retry replaces it.
      schema: the table's.
      facts: written as the schema's metadata.
      files: where it is kept.
      source: the input file that it is made from.
    """

    def __init__(
        self,
        output: str,
        table: str,
        name: str,
        schema: pa.Schema,
        facts: Mapping[str, Any],
        files: FileStore | None = None,
        source: SourceFile | None = None,
    ):
        self.table = table
        self.path = f"{table}/{name}.parquet"
        self._source = source
        self._schema = schemas.with_facts(schema, facts)
        self._waiting: list[pa.Table] = []
        self._rows_waiting = self._bytes_waiting = 0
        self._rows = 0
        with contextlib.ExitStack() as stack:  # an error here, such as a full disk, leaves nothing behind
            file = stack.enter_context((files or LocalFiles()).open_write(f"{output.rstrip('/')}/{self.path}"))
            self._sink = pa.PythonFile(file, mode="w")
            self._writer = pq.ParquetWriter(self._sink, self._schema, compression="zstd")
            self._stack = stack.pop_all()

    def write(self, table: pa.Table) -> None:
        """Adds rows."""
        if self._waiting and self._bytes_waiting + table.nbytes > BYTES_IN_A_GROUP:
            self._flush()
        self._waiting.append(table)
        self._rows_waiting += table.num_rows
        self._bytes_waiting += table.nbytes
        if self._rows_waiting >= _ROWS_IN_A_GROUP or self._bytes_waiting >= BYTES_IN_A_GROUP:
            self._flush()

    def close(self) -> WrittenFile:
        """Finishes the file and puts it in its place."""
        self._flush()
        self._writer.close()
        size = self._sink.tell()
        self._stack.close()
        return WrittenFile(self.table, self.path, self._rows, size, self._source)

    def abandon(self) -> None:
        """Leaves nothing behind."""
        self._writer.is_open = False  # else its destructor writes a footer to the closed file
        with contextlib.suppress(_Abandoned, OSError):  # a full disk says so once more when the file is closed
            with self._stack:
                raise _Abandoned

    def _flush(self) -> None:
        if self._waiting:
            whole = pa.concat_tables(self._waiting).replace_schema_metadata(self._schema.metadata)
            groups = -(-whole.nbytes // BYTES_IN_A_GROUP) or 1
            self._writer.write_table(whole, row_group_size=max(whole.num_rows // groups, 1))
            self._rows += whole.num_rows
        self._waiting, self._rows_waiting, self._bytes_waiting = [], 0, 0


class _ForeignError(Exception):
    """A manifest that no run of this package wrote."""


class _Abandoned(Exception):
    """Unwinds the open file as an error would."""


def write_table(
    output: str, table: str, name: str, schema: pa.Schema, content: pa.Table, facts: Mapping[str, Any], files: FileStore | None = None
) -> WrittenFile:
    """Writes one whole table as one file, with one row group unless it is large."""
    file = ParquetFile(output, table, name, schema, facts, files)
    try:
        file.write(content)
        return file.close()
    except BaseException:
        file.abandon()
        raise


def write_manifest(output: str, written: list[WrittenFile], content: Mapping[str, Any], files: FileStore | None = None) -> str:
    """Commits a run: from now on `output` holds exactly the files listed. Returns the manifest's path."""
    listed = []
    for file in sorted(written, key=lambda file: file.path):
        entry = {"table": file.table, "path": file.path, "rows": file.rows, "bytes": file.size}
        told = {} if file.source is None else {"source": dataclasses.asdict(file.source)}
        listed.append({**entry, **told} if file.error is None else {**entry, **told, "error": file.error})
    manifest = {**content, "manifest_version": MANIFEST_VERSION, "files": listed}
    path = f"{output.rstrip('/')}/{MANIFEST}"
    (files or LocalFiles()).write(path, json.dumps(manifest, indent=1, sort_keys=True).encode())
    return path


def read_manifest(output: str, files: FileStore | None = None) -> dict[str, Any]:
    """The manifest of a finished run.

    Raises:
      ValueError: there is none (the run has not finished), or it is damaged or lists a file outside the folder.
    """
    path = f"{output.rstrip('/')}/{MANIFEST}"
    files = files or LocalFiles()
    if not files.exists(path):
        raise ValueError(f"{output!r} holds no {MANIFEST}: no run has finished there")
    with files.open_read(path) as file:
        data = file.read()
    try:
        manifest = json.loads(data)
        if not isinstance(manifest, dict) or "manifest_version" not in manifest:
            raise _ForeignError
        version = manifest["manifest_version"]
        plain = all(_is_below(file.table, file.path) for file in written_files(manifest))
        if not all(isinstance(manifest.get(part, {}), dict) for part in ("config", "counts", "curvature")):
            raise ValueError("its parts are no dictionaries")
    except _ForeignError:
        raise ValueError(f"{path!r} is not of this program: no run of it has finished in {output!r}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path!r} is damaged: {error!r}") from error
    if version != MANIFEST_VERSION:
        raise ValueError(f"{path!r} has version {version!r}; this program reads {MANIFEST_VERSION}")
    if not plain:
        raise ValueError(f"{path!r} lists a file outside its table's folder")
    return manifest


def _is_below(table: str, path: str) -> bool:
    """Whether a path is that of a file in the table's folder, below the output folder."""
    parts = path.split("/")
    return len(parts) > 1 and parts[0] == table and not {"", ".", ".."} & set(parts) and "\\" not in path and "\0" not in path


def written_files(manifest: Mapping[str, Any]) -> list[WrittenFile]:
    """The files that a manifest lists.

    Raises:
      TypeError, KeyError: it lists something else; `read_manifest` has seen that it does not.
    """
    found = []
    for entry in manifest["files"]:
        source = SourceFile(**entry["source"]) if "source" in entry else None
        file = WrittenFile(entry["table"], entry["path"], entry["rows"], entry["bytes"], source, entry.get("error"))
        texts = [file.table, file.path, *(() if source is None else (source.name, source.sha256))]
        numbers = [file.rows, file.size, *(() if source is None else (source.size,))]
        if not all(isinstance(text, str) for text in texts) or not all(type(number) is int and number >= 0 for number in numbers):
            raise TypeError(f"{entry!r} is no file's entry")
        if not (file.error is None or (type(file.error) in (int, float) and file.error >= 0)):
            raise TypeError(f"{entry!r} is no file's entry")
        found.append(file)
    return found


def table_files(output: str, table: str, files: FileStore | None = None) -> list[str]:
    """The paths of a finished run's files of one table, in order.

    Raises:
      ValueError: the run has not finished, or did not write this table.
    """
    found = [f"{output.rstrip('/')}/{entry['path']}" for entry in read_manifest(output, files)["files"] if entry["table"] == table]
    if not found:
        raise ValueError(f"the run in {output!r} wrote no {table}; run it with --outputs {table}")
    return sorted(found)


def iterate_table(path: str, files: FileStore | None = None, batch_size: int = 1024) -> Iterator[pa.RecordBatch]:
    """The rows of one result file, a batch at a time."""
    with (files or LocalFiles()).open_read(path) as file:
        yield from pq.ParquetFile(file).iter_batches(batch_size=batch_size)


def read_facts(path: str, files: FileStore | None = None) -> dict[str, Any]:
    """The facts in a result file's metadata; see `schemas.facts`."""
    with (files or LocalFiles()).open_read(path) as file:
        metadata = pq.read_schema(file).metadata or {}
    return json.loads(metadata.get(schemas.METADATA_KEY, b"{}"))
