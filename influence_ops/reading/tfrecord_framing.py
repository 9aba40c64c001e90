"""TFRecord framing, plain or compressed, read so that damage is found, named and survived.

A record is: length (uint64), masked CRC-32C of the length, data, masked CRC-32C of the data. TensorFlow's own
reader stops at the first damaged record; this one goes on when the framing is intact.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import BinaryIO, cast

import google_crc32c

from beam_influence.influence_ops.reading.compression import DAMAGED, compression_of, decompressed
from beam_influence.influence_ops.reading.reader import Prefixed, open_span

_HEADER = struct.Struct("<QI")
_FOOTER = struct.Struct("<I")
_MAX_RECORD = 1 << 31
_BLOCK = 1 << 20  # read at once in search of headers


class DamagedRecord(Exception):
    """One record that can't be read. `final`: nothing after it in the file can be either."""

    def __init__(self, error: str, message: str, final: bool):
        super().__init__(message)
        self.error = error
        self.final = final


def masked_crc(data: bytes) -> int:
    """TFRecord's checksum: CRC-32C, rotated by 15 bits, plus a constant."""
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def read_records(file: BinaryIO, start: int = 0, stop: int | None = None) -> Iterator[bytes | DamagedRecord]:
    """The records of an open file in order; a damaged one is given as a `DamagedRecord` in its place.

    Args:
      file: a binary file at its start, holding a TFRecord file, compressed or not (found out from its first bytes, not from its
        name).
      start, stop: the bytes to read, from the beginning of a record to that of another one; None: to the end of the file.
    """
    file = open_span(file, start, stop)
    beginning = file.read(_HEADER.size)
    compression = compression_of_records(beginning)
    prefixed = _Ahead(beginning, file)
    stream = decompressed(cast(BinaryIO, prefixed), compression)
    while True:
        if not compression:
            yield from prefixed.intact_records()
        try:
            record = _read_record(stream)
        except DamagedRecord as damaged:
            yield damaged
            if damaged.final:
                return
            continue
        except DAMAGED as error:
            lost = f"the {compression} stream is damaged or cut off here ({error}); the rest of the file is lost"
            yield DamagedRecord(f"damaged_{compression}", lost, True)
            return
        if record is None:
            return
        yield record


def find_records(file: BinaryIO) -> Iterator[int]:
    """The byte at which each record of an uncompressed file begins, up to the first whose length is damaged; data is not looked at."""
    block, begin, position = b"", 0, 0
    while True:
        if position - begin + _HEADER.size > len(block):
            file.seek(position)
            block, begin = _read_exactly(file, _BLOCK), position
        header = block[position - begin : position - begin + _HEADER.size]
        if not _is_header(header) or (length := _HEADER.unpack(header)[0]) > _MAX_RECORD:
            return
        yield position
        position += _HEADER.size + length + _FOOTER.size


def write_records(file: BinaryIO, records: Iterable[bytes]) -> None:
    """Writes records to an open file, uncompressed."""
    for record in records:
        header = struct.pack("<Q", len(record))
        file.write(header + _FOOTER.pack(masked_crc(header)) + record + _FOOTER.pack(masked_crc(record)))


def compression_of_records(start: bytes) -> str:
    """As `compression_of` for a TFRecord file that begins with these 12 bytes: a record's length may begin as gzip does."""
    return "" if _is_header(start) else compression_of(start, with_zlib=True)


def _is_header(data: bytes) -> bool:
    return len(data) == _HEADER.size and masked_crc(data[:8]) == _HEADER.unpack(data)[1]


def _read_record(stream: BinaryIO) -> bytes | None:
    header = _read_exactly(stream, _HEADER.size)
    if not header:
        return None
    if len(header) < _HEADER.size:
        raise DamagedRecord("truncated", "the file ends inside this record's header", True)
    if not _is_header(header):
        raise DamagedRecord(
            "damaged_length",
            "the checksum of this record's length does not match (damaged, or not a TFRecord file); the rest of the file is lost",
            True,
        )
    length = _HEADER.unpack(header)[0]
    if length > _MAX_RECORD:
        raise DamagedRecord("too_large", f"this record claims {length:,} bytes; at most {_MAX_RECORD:,} are read", True)
    data = _read_exactly(stream, length + _FOOTER.size)
    if len(data) < length + _FOOTER.size:
        raise DamagedRecord("truncated", f"the file ends inside this record: {len(data):,} of {length + _FOOTER.size:,} bytes", True)
    record = data[:length]
    if masked_crc(record) != _FOOTER.unpack(data[length:])[0]:
        raise DamagedRecord("damaged_data", "the checksum of this record's data does not match", False)
    return record


def _read_exactly(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    while 0 < len(data) < size:
        more = stream.read(size - len(data))
        if not more:
            break
        data += more
    return data


class _Ahead(Prefixed):
    """A file of which more is read at once than is asked for."""

    def __init__(self, prefix: bytes, file: BinaryIO):
        super().__init__(prefix, file)
        self._block = 1 << 14

    def intact_records(self) -> Iterator[bytes]:
        """The records that are whole in what is read next at once, up to the first with any damage: where `read` goes on."""
        block, position = self._prefix, 0
        if len(block) < self._block:
            block += self._file.read(self._block - len(block))
            self._block = min(4 * self._block, _BLOCK)  # who wants one record need not read many
        while position + _HEADER.size <= len(block):
            length, crc = _HEADER.unpack_from(block, position)
            start = position + _HEADER.size
            stop = start + length
            if stop + _FOOTER.size > len(block) or masked_crc(block[position : position + 8]) != crc:
                break
            record = block[start:stop]
            if masked_crc(record) != _FOOTER.unpack_from(block, stop)[0]:
                break
            position = stop + _FOOTER.size
            yield record
        self._prefix = block[position:]
