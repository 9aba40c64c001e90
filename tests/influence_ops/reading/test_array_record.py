"""ArrayRecord files: the records that their own library wrote, span by span, picked, from elsewhere too, and damage told."""

from __future__ import annotations

import io
import pathlib

import pytest

from beam_influence.influence_ops.reading import READERS, detect_format
from beam_influence.influence_ops.reading.features import Stored
from tests.influence_ops.reading.test_spans import Y, read, records, split

array_record_module = pytest.importorskip("array_record.python.array_record_module")
NAME = "array_record"
WANTED = [(row, {"y": [row]}) for row in range(30)]


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "part-0"
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:4")
    for record in records(30):
        writer.write(record)
    writer.close()
    return path


def test_every_record_and_every_span(path: pathlib.Path) -> None:
    data = path.read_bytes()
    assert read(NAME, data, [Y]) == WANTED and len(split(NAME, data, len(data) // 7)) == 6
    assert read(NAME, data, [Y], split(NAME, data, len(data) // 7)) == WANTED
    assert detect_format("part-0", io.BytesIO(data)) == detect_format("a.array_record", io.BytesIO()) == NAME
    with open(path, "rb") as file:
        assert READERS[NAME].describe(file, 20)["y"] == Stored("int", (1,))
        picked = list(READERS[NAME]([Y]).pick(file, [29, 3, 30]))
    assert [rows.table["y"].to_pylist() for rows in picked] == [[[3]], [[29]]]


def test_damage_rejects_its_chunk_and_tells(path: pathlib.Path) -> None:
    data = bytearray(path.read_bytes())
    data[110] ^= 1  # within the first group
    found = read(NAME, bytes(data), [Y])
    assert found[4:] == WANTED[4:] and [row[1][:2] for row in found[:4]] == [("read", "damaged_array_record")] * 4
    for other in (bytes(data[: len(data) // 2]), b"x" * 99, b""):
        ((at, error),) = read(NAME, other, [Y])
        assert (at, error[:2]) == (0, ("read", "damaged_array_record")) and READERS[NAME].describe(io.BytesIO(other), 9) == {}
