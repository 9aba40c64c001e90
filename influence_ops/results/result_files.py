"""Result tables as Parquet files that are complete or absent, and the manifest that lists those of a finished run."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from beam_influence.influence_ops.arrow_compute import pc
from beam_influence.influence_ops.results import schemas
from beam_influence.influence_ops.results.array_folder import FileStore, LocalFiles
from beam_influence.influence_ops.results.listed_files import (
    LISTED,
    SourceFile,
    WrittenFile,
    check_listed,
    each_once,
    files_of,
    is_list_name,
    listed,
    read_list,
    to_parquet,
    totals,
)

MANIFEST = "manifest.json"
MANIFEST_VERSION = 2
_WITH_FILES = 1  # the version that lists all files in itself
_ROWS_IN_A_GROUP = 1 << 17
BYTES_IN_A_GROUP = 64 << 20  # of Arrow's columns, before compression


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


def write_manifest(
    output: str, written: Iterable[WrittenFile] | pa.Table, content: Mapping[str, Any], files: FileStore | None = None
) -> str:
    """Commits a run: from now on `output` holds exactly these files. Returns the manifest's path.

    Args:
      written: the files, or rows of `listed_files.LISTED`; one that is there twice is listed once.
      content: what else the manifest tells.
    """
    store, folder = files or LocalFiles(), output.rstrip("/")
    table = each_once(written if isinstance(written, pa.Table) else listed(written))
    name, data = to_parquet(table)
    store.write(f"{folder}/{name}", data)
    manifest = {**content, "manifest_version": MANIFEST_VERSION, "file_list": name, "tables": totals(table)}
    path = f"{folder}/{MANIFEST}"
    store.write(path, json.dumps(manifest, indent=1, sort_keys=True).encode())
    return path


def read_manifest(output: str, files: FileStore | None = None) -> dict[str, Any]:
    """The manifest of a finished run. Its `tables` has the files, rows and bytes of each table; the files themselves are in the table that
    `file_list` names, see `written_files`.

    Raises:
      ValueError: there is none (the run has not finished), it is damaged, or of another version.
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
        if version == _WITH_FILES:
            manifest["tables"] = totals(pa.Table.from_batches([_old_list(manifest)]))
        elif version == MANIFEST_VERSION:
            _check_tables(manifest)
        if not all(isinstance(manifest.get(part, {}), dict) for part in ("config", "counts", "curvature")):
            raise ValueError("its parts are no dictionaries")
    except _ForeignError:
        raise ValueError(f"{path!r} is not of this program: no run of it has finished in {output!r}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise ValueError(f"{path!r} is damaged: {error!r}") from error
    if version not in (_WITH_FILES, MANIFEST_VERSION):
        raise ValueError(f"{path!r} has version {version!r}; this program reads {_WITH_FILES} and {MANIFEST_VERSION}")
    return manifest


def _check_tables(manifest: Mapping[str, Any]) -> None:
    if not is_list_name(manifest["file_list"]):
        raise ValueError(f"its file_list {manifest['file_list']!r} is no name of a list of files")
    for table, total in manifest["tables"].items():
        numbers = [total[name] for name in ("files", "rows", "bytes")]
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise ValueError(f"the totals of {table!r} are no numbers")


def _old_list(manifest: Mapping[str, Any]) -> pa.RecordBatch:
    """The files in a manifest of version 1, which has all of them in itself."""
    found = []
    for entry in manifest["files"]:
        source = SourceFile(**entry["source"]) if "source" in entry else None
        found.append(WrittenFile(entry["table"], entry["path"], entry["rows"], entry["bytes"], source))
    (rows,) = each_once(listed(found)).to_batches() or [pa.RecordBatch.from_pylist([], schema=LISTED)]
    check_listed(rows)
    return rows


def list_batches(output: str, manifest: Mapping[str, Any], files: FileStore | None = None) -> Iterator[pa.RecordBatch]:
    """The files that a manifest lists, rows of `listed_files.LISTED` by path, some thousands at a time.

    Raises:
      ValueError: their list is missing or damaged.
    """
    if manifest["manifest_version"] == _WITH_FILES:
        yield _old_list(manifest)
        return
    path = f"{output.rstrip('/')}/{manifest['file_list']}"
    try:
        with (files or LocalFiles()).open_read(path) as file:
            yield from read_list(file)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ValueError(f"{path!r}, the list of the run's files, can't be read ({error}); run again with --overwrite") from error


def written_files(output: str, manifest: Mapping[str, Any], files: FileStore | None = None) -> Iterator[WrittenFile]:
    """The files that a manifest lists, by path.

    Raises:
      ValueError: as of `list_batches`.
    """
    return (file for rows in list_batches(output, manifest, files) for file in files_of(rows))


def table_files(output: str, table: str, files: FileStore | None = None) -> Iterator[str]:
    """The paths of a finished run's files of one table, in order.

    Raises:
      ValueError: the run has not finished, or did not write this table; when the first is asked for: as of `list_batches`.
    """
    manifest = read_manifest(output, files)
    if table not in manifest["tables"]:
        raise ValueError(f"the run in {output!r} wrote no {table}; run it with --outputs {table}")
    folder = output.rstrip("/")
    batches = list_batches(output, manifest, files)
    return (f"{folder}/{path}" for rows in batches for path in rows.filter(pc.field("table") == table).column("path").to_pylist())


@contextlib.contextmanager
def naming_listed(path: str) -> Iterator[None]:
    """What is wrong with a file that a manifest lists, said with the mend.

    Raises:
      ValueError: it can't be read.
    """
    try:
        yield
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(
            f"{path!r}, which the run's manifest lists, can't be read ({type(error).__name__}: {error}); put it back, or run "
            "again with --overwrite"
        ) from error


def iterate_table(
    path: str, files: FileStore | None = None, batch_size: int = 1024, columns: list[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """The rows of one result file, all columns or some, a batch at a time."""
    with (files or LocalFiles()).open_read(path) as file:
        yield from pq.ParquetFile(file).iter_batches(batch_size=batch_size, columns=columns)


def read_facts(path: str, files: FileStore | None = None) -> dict[str, Any]:
    """The facts in a result file's metadata; see `schemas.facts`."""
    with (files or LocalFiles()).open_read(path) as file:
        metadata = pq.read_schema(file).metadata or {}
    return json.loads(metadata.get(schemas.METADATA_KEY, b"{}"))
