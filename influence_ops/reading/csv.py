"""CSV files with a header row, plain or compressed: each column is a scalar feature."""

from __future__ import annotations

import codecs
import csv
import io
import itertools
from collections.abc import Generator, Iterator, Sequence
from typing import Any, BinaryIO, ClassVar

import numpy as np
import pyarrow as pa

from beam_influence.influence_ops.reading.compression import DAMAGED, compression_of, decompressed
from beam_influence.influence_ops.reading.features import Description, Feature, Kind, Stored
from beam_influence.influence_ops.reading.reader import WHOLE, Reader, RowError, Rows, Span, open_span, spans

_LARGEST_CELL = 64 << 20  # encoded images; Python's own limit is 128 KiB
_SEPARATORS = ",\t;|\x01"
_SAMPLE = 1 << 18  # characters in which the separator is looked for
_SAMPLED_ROWS = 50
_ARROW: dict[Kind, pa.DataType] = {"float": pa.float64(), "int": pa.int64(), "bytes": pa.large_binary()}


class CsvReader(Reader):
    """A row is a record after the header, from 0; blank lines are not counted."""

    name: ClassVar[str] = "csv"
    expects: ClassVar[str] = "CSV files with a header row (comma, tab, semicolon or bar between cells; plain, gzip, zstd, bz2 or xz)"

    def read(self, file: BinaryIO, size: int, span: Span = WHOLE) -> Iterator[Rows]:
        rows = _numbered(file, 0, None if span.start else span.stop)
        header = next(rows, None)
        if span.start:
            rows.close()
            rows = _numbered(file, span.start, span.stop)
        if header is None:
            return
        names = header if isinstance(header, list) else []
        cells: list[list[str]] = []
        positions: list[int] = []
        rejected: list[RowError] = []
        if isinstance(header, RowError):
            rejected.append(header)
        for index, row in enumerate(rows, span.first):
            if isinstance(row, RowError):
                rejected.append(row._replace(row=index))
            elif len(row) != len(names):
                message = f"the row has {len(row)} cells, the header {len(names)}"
                rejected.append(RowError(index, "read", "wrong_columns", message))
            else:
                cells.append(row)
                positions.append(index)
            if len(cells) + len(rejected) >= size:
                yield self._rows(names, cells, positions, rejected)
                cells, positions, rejected = [], [], []
        if cells or rejected:
            yield self._rows(names, cells, positions, rejected)

    @classmethod
    def split(cls, file: BinaryIO, size: int) -> list[Span]:
        starts = [(0, 0)]
        for index, start in enumerate(_row_starts(file), -1):  # the header is the first
            if index > 0 and start - starts[-1][1] >= size:
                starts.append((index, start))
        return spans(starts)

    def _rows(self, names: list[str], cells: list[list[str]], positions: list[int], rejected: list[RowError]) -> Rows:
        bad: dict[int, str] = {}
        columns: dict[str, pa.Array] = {}
        by_name = dict(zip(names, zip(*cells, strict=True), strict=True)) if cells else {}
        for feature in self.features:
            if feature.name in by_name:
                columns[feature.name] = _parse(by_name[feature.name], feature, bad)
        table = pa.RecordBatch.from_pydict(columns or {"": pa.nulls(len(cells))})
        numbers = np.array(positions, dtype=np.int64)
        if bad:
            rejected = rejected + [RowError(positions[row], "decode", "wrong_type", bad[row]) for row in sorted(bad)]
            keep = np.setdiff1d(np.arange(len(cells)), np.fromiter(bad, np.int64))
            table, numbers = table.take(pa.array(keep)), numbers[keep]
        return Rows(table, numbers, rejected)

    @classmethod
    def describe(cls, file: BinaryIO, rows: int) -> Description:
        numbered = _numbered(file)
        names = next(numbered, None)
        if not isinstance(names, list):
            return {}
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"the CSV header names {', '.join(map(repr, repeated))} more than once; give each column its own name")
        found = [row for row in itertools.islice(numbered, rows) if isinstance(row, list) and len(row) == len(names)]
        if not found:
            return {}
        return {name: Stored(_kind(column), ()) for name, column in zip(names, zip(*found, strict=True), strict=True)}


def _row_starts(file: BinaryIO) -> Iterator[int]:
    """The byte at which the header and each row begin, up to what can't be read as CSV; none in a compressed file."""
    csv.field_size_limit(max(csv.field_size_limit(), _LARGEST_CELL))
    beginning = file.read(6)
    if compression_of(beginning):
        return
    separator = _separator(file)
    start = end = file.seek(3 if beginning[:3] == codecs.BOM_UTF8 else 0)
    # What separates rows and cells is ASCII, which UTF-8 has nowhere else; in Latin-1 a character is a byte.
    text = io.TextIOWrapper(file, encoding="latin-1", newline="")

    def lines() -> Iterator[str]:
        nonlocal end
        for line in text:
            end += len(line)
            yield line

    try:
        for row in csv.reader(lines(), delimiter=separator):  # takes the lines of one row at a time
            if row:
                yield start
            start = end
    except csv.Error:
        return
    finally:
        if not text.closed:
            text.detach()


def _numbered(file: BinaryIO, start: int = 0, stop: int | None = None) -> Generator[list[str] | RowError, None, None]:
    """The header and the rows, or the rows from a byte on; what ends the file early as a `RowError` in its place."""
    csv.field_size_limit(max(csv.field_size_limit(), _LARGEST_CELL))
    separator = _separator(file)
    text = _text(file, start, stop)
    try:
        for row in csv.reader(text, delimiter=separator):
            if row:
                yield row
    except (csv.Error, *DAMAGED) as error:
        yield RowError(0, "read", "damaged_csv", f"the file can't be read as CSV from here on: {error}; the rest is lost")
    finally:
        if not text.closed:
            text.detach()  # the caller closes its file


def _text(file: BinaryIO, start: int = 0, stop: int | None = None) -> io.TextIOWrapper:
    """The text of a file, or of the bytes from `start` to `stop` of one that is not compressed."""
    file.seek(0)
    compression = compression_of(file.read(6))
    file.seek(0)
    stream = decompressed(file, compression) if compression else open_span(file, start, stop)
    # Bytes that are no UTF-8 pass through: they matter only where a feature holds them.
    encoding = "utf-8" if start else "utf-8-sig"
    return io.TextIOWrapper(stream, encoding=encoding, errors="surrogateescape", newline="")


def _separator(file: BinaryIO) -> str:
    """What stands between cells: that which divides the first rows as it divides the header, into the most cells; else a comma."""
    text = _text(file)
    try:
        sample = text.read(_SAMPLE)
    except DAMAGED:
        return ","  # which is found again, and told, when the rows are read
    finally:
        text.detach()
    lines = sample.splitlines(keepends=True)

    def fits(separator: str) -> tuple[float, int]:
        rows: list[list[str]] = []
        try:
            rows += itertools.islice(filter(None, csv.reader(lines, delimiter=separator)), 1 + _SAMPLED_ROWS)
        except csv.Error:
            pass
        cells = len(rows[0]) if rows else 1
        alike = sum(len(row) == cells for row in rows[1:])
        return (-1.0 if cells == 1 else alike / max(len(rows) - 1, 1), cells)

    return max(_SEPARATORS, key=fits)


def _kind(cells: Sequence[str]) -> Kind:
    """Numbers when most of the cells that are not empty are."""
    filled = [cell for cell in cells if cell.strip()]
    numbers = [cell for cell in filled if _number(cell, float) is not None]
    if not filled or 2 * len(numbers) <= len(filled):
        return "bytes"
    return "int" if all(_number(cell, int) is not None for cell in numbers) else "float"


def _number(cell: str, kind: Any) -> Any:
    """The number that a cell holds, or None."""
    if "_" in cell:  # Python's own notation, not CSV's
        return None
    try:
        return kind(cell)
    except ValueError:
        return None


def _parse(cells: Sequence[str], feature: Feature, bad: dict[int, str]) -> pa.Array:
    """The cells in the feature's kind; an empty number is null, and what is no number is noted in `bad`."""
    if feature.kind == "bytes":
        is_missing = feature.default is not None  # else an empty cell is an empty text
        encoded = [None if is_missing and not cell else cell.encode("utf-8", "surrogateescape") for cell in cells]
        return pa.array(encoded, type=_ARROW["bytes"])
    try:
        return pa.array([cell or None for cell in cells], pa.string()).cast(_ARROW[feature.kind])
    except (pa.ArrowException, UnicodeEncodeError):
        pass  # spaces, signs, an empty or a wrong cell: one by one
    values = []
    for row, cell in enumerate(cells):
        value = _number(cell, int if feature.kind == "int" else float)
        if value is None and feature.kind == "int":
            number = _number(cell, float)
            value = int(number) if number is not None and np.isfinite(number) and number == int(number) else None
        if value is not None and feature.kind == "int" and not -(2**63) <= value < 2**63:
            value = None
        if value is None and cell.strip():
            bad.setdefault(row, f"feature {feature.name!r}: {cell[:40]!r} is not {'an int' if feature.kind == 'int' else 'a number'}")
        values.append(value)
    return pa.array(values, type=_ARROW[feature.kind])
