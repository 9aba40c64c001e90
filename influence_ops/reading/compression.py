"""Compressed files as what is in them; which compression it is, is found out from the first bytes, not from the name."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO, cast

import zstandard

DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error)
"""What is raised where compressed data is damaged or cut off."""

_MAGIC = {"gzip": b"\x1f\x8b", "zstd": b"\x28\xb5\x2f\xfd", "bz2": b"BZh", "xz": b"\xfd7zXZ\x00"}
_MAKERS: dict[str, Callable[[], Any]] = {
    "zstd": lambda: zstandard.ZstdDecompressor().decompressobj(),
    "bz2": bz2.BZ2Decompressor,
    "xz": lzma.LZMADecompressor,
    "zlib": zlib.decompressobj,
}
_AT_ONCE = 1 << 13  # of compressed bytes: what they hold is in memory, up to some thousand times as much


def compression_of(start: bytes, with_zlib: bool = False) -> str:
    """`gzip`, `zstd`, `bz2`, `xz` or `zlib`; empty: none that is known.

    Args:
      start: a file's first bytes, 6 or more.
      with_zlib: whether it may be zlib, whose beginning can be that of a text.
    """
    for name, magic in _MAGIC.items():
        if start.startswith(magic):
            return name
    is_zlib = len(start) > 1 and start[0] == 0x78 and int.from_bytes(start[:2], "big") % 31 == 0
    return "zlib" if with_zlib and is_zlib else ""


def decompressed(file: BinaryIO, compression: str) -> BinaryIO:
    """What is in a file, from where it stands; several streams one after the other are one.

    Raises:
      EOFError, gzip.BadGzipFile, zlib.error: while it is read: the data is damaged or cut off.
    """
    if not compression:
        return file
    if compression == "gzip":
        return cast(BinaryIO, gzip.GzipFile(fileobj=file))
    return cast(BinaryIO, io.BufferedReader(_Decompressed(file, _MAKERS[compression]), 1 << 16))


class _Decompressed(io.RawIOBase):
    """A stream through decompressors with the interface of `bz2.BZ2Decompressor`, one after the other."""

    def __init__(self, file: BinaryIO, make: Callable[[], Any]):
        self._file = file
        self._make = make
        self._stream: Any = make()
        self._begun = False
        self._waiting = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._waiting:
            data = self._next()
            if data is None:
                return 0
            self._waiting = memoryview(data)
        size = min(len(buffer), len(self._waiting))
        buffer[:size] = self._waiting[:size]
        self._waiting = self._waiting[size:]
        return size

    def _next(self) -> bytes | None:
        """What the next compressed bytes hold; None at the end."""
        compressed = self._stream.unused_data if self._stream.eof else b""
        if self._stream.eof:
            self._stream, self._begun = self._make(), False
        compressed = compressed or self._file.read(_AT_ONCE)
        if not compressed:
            if self._begun:
                raise EOFError("it ends before its end-of-stream marker")
            return None
        self._begun = True
        try:
            return self._stream.decompress(compressed)
        except (OSError, ValueError, lzma.LZMAError, zlib.error, zstandard.ZstdError) as error:
            raise EOFError(str(error)) from error
