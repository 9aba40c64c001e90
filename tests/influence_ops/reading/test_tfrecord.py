"""TFRecord files that TensorFlow wrote, and every kind of damage to them."""

from __future__ import annotations

import gzip
import io
import pathlib
import struct
from typing import Literal

import pytest
import tensorflow as tf

from beam_influence.influence_ops.reading.tfrecord_framing import DamagedRecord, masked_crc, read_records, write_records

RECORDS = [b"first", b"", b"third" * 1000, b"\x1f\x8b gzip's magic bytes", b"last"]
FRAME = 16  # 8 bytes of length, 4 of its checksum, 4 of the data's


def written(path: pathlib.Path, records: list[bytes] = RECORDS, compression: Literal["", "GZIP"] = "") -> bytes:
    with tf.io.TFRecordWriter(str(path), tf.io.TFRecordOptions(compression)) as writer:
        for record in records:
            writer.write(record)
    return path.read_bytes()


def read(data: bytes) -> list[bytes | DamagedRecord]:
    return list(read_records(io.BytesIO(data)))


def errors(found: list[bytes | DamagedRecord]) -> list[bytes | str]:
    return [record.error if isinstance(record, DamagedRecord) else record for record in found]


class Trickle(io.BytesIO):
    """A file that gives fewer bytes than it was asked for, as network files do."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(min(3, size) if size is not None and size > 0 else size)


@pytest.mark.parametrize("compression", ["", "GZIP"])
def test_reads_what_tensorflow_writes(tmp_path, compression):
    data = written(tmp_path / "file", compression=compression)
    assert read(data) == RECORDS
    assert list(read_records(Trickle(data))) == RECORDS


def test_blocks_read_at_once_change_nothing():
    """Records across the blocks that are read at once, some larger than one, and so many damaged ones that each block has some."""
    sizes = [*range(0, 40_000, 331), 3 << 20, 5, 1 << 20, (1 << 20) - 16, 7]
    records = [bytes([number % 251]) * size for number, size in enumerate(sizes)]
    file = io.BytesIO()
    write_records(file, records)
    data, start, wanted = bytearray(file.getvalue()), 0, []
    for number, record in enumerate(records):
        is_damaged = number % 9 == 4 and len(record) > 0
        if is_damaged:
            data[start + 12] ^= 1
        wanted.append("damaged_data" if is_damaged else record)
        start += FRAME + len(record)
    assert errors(read(bytes(data))) == wanted


def test_tensorflow_reads_what_is_written(tmp_path):
    with open(tmp_path / "file", "wb") as file:
        write_records(file, RECORDS)
    assert [record.numpy() for record in tf.data.TFRecordDataset(str(tmp_path / "file"))] == RECORDS
    assert (tmp_path / "file").read_bytes() == written(tmp_path / "other")


def test_several_gzip_members(tmp_path):
    plain = written(tmp_path / "file")
    assert read(gzip.compress(plain[:40]) + gzip.compress(plain[40:])) == RECORDS


@pytest.mark.parametrize("compressed", [False, True])
def test_an_empty_file(compressed):
    assert read(gzip.compress(b"") if compressed else b"") == []


def test_a_plain_file_whose_first_length_looks_like_gzip(tmp_path):
    record = bytes(0x8B1F)  # its length is written 1f 8b 00 …
    data = written(tmp_path / "file", [record, b"next"])
    assert data[:2] == b"\x1f\x8b"
    assert read(data) == [record, b"next"]


def test_truncated_anywhere(tmp_path):
    records = [b"first", b"", b"third"]
    data = written(tmp_path / "file", records)
    ends = [0]
    for record in records:
        ends.append(ends[-1] + FRAME + len(record))
    assert ends[-1] == len(data)
    for cut in range(len(data)):
        whole = sum(end <= cut for end in ends) - 1
        found = read(data[:cut])
        assert found[:whole] == records[:whole]
        if cut in ends:  # between two records nothing shows that some are missing
            assert len(found) == whole
            continue
        damaged = found[whole:]
        assert errors(damaged) == ["truncated"]
        assert isinstance(damaged[0], DamagedRecord)
        assert damaged[0].final
        assert ("header" in str(damaged[0])) == (cut - ends[whole] < 12)


@pytest.mark.parametrize("byte", range(12))
def test_a_damaged_length_ends_the_file(tmp_path, byte):
    data = bytearray(written(tmp_path / "file"))
    start = FRAME + len(RECORDS[0])
    data[start + byte] ^= 0x40
    found = read(bytes(data))
    assert errors(found) == [RECORDS[0], "damaged_length"]
    assert isinstance(found[1], DamagedRecord)
    assert found[1].final


@pytest.mark.parametrize("offset", [0, 4999, 5000, 5003])  # the data's first and last byte, and its checksum's
def test_after_damaged_data_the_next_record_is_read(tmp_path, offset):
    data = bytearray(written(tmp_path / "file"))
    data[2 * FRAME + len(RECORDS[0]) + 12 + offset] ^= 0x01
    found = read(bytes(data))
    assert errors(found) == [*RECORDS[:2], "damaged_data", *RECORDS[3:]]
    assert isinstance(found[2], DamagedRecord)
    assert not found[2].final


def test_two_damaged_records(tmp_path):
    data = bytearray(written(tmp_path / "file"))
    data[12] ^= 0x01
    data[-5] ^= 0x01
    assert errors(read(bytes(data))) == ["damaged_data", *RECORDS[1:-1], "damaged_data"]


def test_cut_gzip_gives_what_is_before_the_cut(tmp_path):
    many = [f"record {number}".encode() for number in range(2000)]
    data = written(tmp_path / "file", many, "GZIP")
    counts = []
    for cut in (5, 11, len(data) // 2, len(data) - 1):  # in gzip's header, in the data, in its checksum
        found = read(data[:cut])
        assert errors(found[-1:]) == ["damaged_gzip"]
        assert found[:-1] == many[: len(found) - 1]
        counts.append(len(found) - 1)
    assert counts[:2] == [0, 0]
    assert 0 < counts[2] < len(many)
    assert counts[3] == len(many)


def test_damaged_gzip(tmp_path):
    many = [f"record {number}".encode() for number in range(2000)]
    data = bytearray(written(tmp_path / "file", many, "GZIP"))
    data[len(data) // 2] ^= 0xFF
    found = read(bytes(data))
    # Deflate notices it at once, a record's checksum, or gzip's own at the end: something always does.
    assert any(isinstance(record, DamagedRecord) for record in found)
    good = [record for record in found if isinstance(record, bytes)]
    assert set(good) <= set(many)
    assert read(written(tmp_path / "file", many, "GZIP") + b"garbage after the end")[: len(many)] == many


@pytest.mark.parametrize("data", [b"this is a text file of more than twelve bytes", b"PAR1" + bytes(40), b"\x00" * 64])
def test_another_kind_of_file(data):
    found = read(data)
    assert errors(found) == ["damaged_length"]
    assert "not a TFRecord" in str(found[0])


@pytest.mark.parametrize("data", [b"short", b"\x1f\x8b", b"\x1f\x8bshort", b"\x1f\x8b" + b"not gzip at all"])
def test_another_kind_of_short_file(data):
    (found,) = read(data)
    assert isinstance(found, DamagedRecord)
    assert found.final
    assert found.error in ("truncated", "damaged_gzip")


def test_a_huge_length_is_not_allocated():
    header = struct.pack("<Q", 1 << 40)
    found = read(header + struct.pack("<I", masked_crc(header)) + b"data")
    assert errors(found) == ["too_large"]
