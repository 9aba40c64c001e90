"""An object store in this process, `slow://`, for what many files cost: each call waits, is counted, and a million files take a megabyte.

It is as S3 is through Beam: names without folders, listed in pages of 1,000, deleted up to 1,000 in a call. With `batches` off, deleting a
list is a call for each file, as on HDFS. What is written is kept; files that are filled in have all one content and need no memory.
"""

from __future__ import annotations

import collections
import dataclasses
import io
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from apache_beam.io.filesystem import BeamIOError, CompressionTypes, FileMetadata, FileSystem

SCHEME = "slow"
PAGE = 1000


@dataclasses.dataclass
class Filled:
    """Files `<beginning>0000000<ending>`, …, of one content; those that are still there."""

    beginning: str
    ending: str
    content: bytes
    there: np.ndarray

    def number(self, path: str) -> int | None:
        """The place of a file that is there."""
        digits = path[len(self.beginning) : len(path) - len(self.ending)]
        if not (path.startswith(self.beginning) and path.endswith(self.ending) and len(digits) == 7 and digits.isdigit()):
            return None
        number = int(digits)
        return number if number < len(self.there) and self.there[number] else None


class Store:
    """What all `SlowStore`s of this process hold: Beam makes one for each call.

    Attributes:
      calls: how often each operation was called.
      waits: seconds of each call.
      batches: whether one call deletes many files.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self, waits: float = 0.0, batches: bool = True) -> None:
        """Begins with nothing."""
        self.calls: collections.Counter[str] = collections.Counter()
        self.waits, self.batches = waits, batches
        self.written: dict[str, bytes] = {}
        self.filled: list[Filled] = []
        self._lock = threading.Lock()

    def fill(self, beginning: str, ending: str, content: bytes, count: int) -> None:
        """Adds `count` files of one content."""
        self.filled.append(Filled(beginning, ending, content, np.ones(count, bool)))

    def call(self, name: str) -> None:
        """Counts a call and waits as long as it takes."""
        with self._lock:
            self.calls[name] += 1
        if self.waits:
            time.sleep(self.waits)

    def content(self, path: str) -> bytes | None:
        """A file's bytes; None: there is none."""
        if path in self.written:
            return self.written[path]
        return next((some.content for some in self.filled if some.number(path) is not None), None)

    def remove(self, path: str) -> None:
        """Forgets a file, if it is there."""
        self.written.pop(path, None)
        for some in self.filled:
            if (number := some.number(path)) is not None:
                some.there[number] = False

    def files(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Paths and sizes of what begins so."""
        yield from [(path, len(data)) for path, data in sorted(self.written.items()) if path.startswith(prefix)]
        for some in self.filled:
            if some.beginning.startswith(prefix) or prefix.startswith(some.beginning):
                paths = (f"{some.beginning}{number:07d}{some.ending}" for number in np.flatnonzero(some.there))
                yield from ((path, len(some.content)) for path in paths if path.startswith(prefix))


STORE = Store()


class _Write(io.BytesIO):
    def __init__(self, path: str):
        super().__init__()
        self._path = path

    def close(self) -> None:
        if not self.closed:
            STORE.written[self._path] = self.getvalue()
        super().close()


class SlowStore(FileSystem):
    """The file system that Beam finds by its scheme."""

    @classmethod
    def scheme(cls) -> str:
        return SCHEME

    def has_dirs(self) -> bool:
        return False

    def create(self, path: str, mime_type: str = "", compression_type: str = CompressionTypes.AUTO) -> Any:
        STORE.call("create")
        return _Write(path)

    def open(self, path: str, mime_type: str = "", compression_type: str = CompressionTypes.AUTO) -> Any:
        STORE.call("open")
        content = STORE.content(path)
        if content is None:
            raise FileNotFoundError(path)
        return io.BytesIO(content)

    def exists(self, path: str) -> bool:
        STORE.call("exists")
        return STORE.content(path) is not None

    def metadata(self, path: str) -> FileMetadata:
        return FileMetadata(path, self.size(path), 1.0)

    def size(self, path: str) -> int:
        STORE.call("metadata")
        return len(STORE.content(path) or b"")

    def last_updated(self, path: str) -> float:
        STORE.call("metadata")
        return 1.0

    def checksum(self, path: str) -> str:
        raise NotImplementedError

    def _list(self, dir_or_prefix: str) -> Iterator[FileMetadata]:
        STORE.call("list")
        for place, (path, size) in enumerate(STORE.files(dir_or_prefix), 1):
            yield FileMetadata(path, size, 1.0)
            if place % PAGE == 0:
                STORE.call("list")

    def delete(self, paths: list[str]) -> None:
        for start in range(0, len(paths), PAGE if STORE.batches else 1):
            STORE.call("delete")
            for path in paths[start : start + (PAGE if STORE.batches else 1)]:
                STORE.remove(path)

    def rename(self, source_file_names: list[str], destination_file_names: list[str]) -> None:
        for source, target in zip(source_file_names, destination_file_names, strict=True):
            STORE.call("rename")
            if source not in STORE.written:
                raise BeamIOError("Rename operation failed", {source: FileNotFoundError(source)})
            STORE.written[target] = STORE.written.pop(source)

    def copy(self, source_file_names: list[str], destination_file_names: list[str]) -> None:
        raise NotImplementedError

    def mkdirs(self, path: str) -> None:
        raise NotImplementedError

    def join(self, basepath: str, *paths: str) -> str:
        return "/".join([basepath.rstrip("/"), *(path.strip("/") for path in paths)])

    def split(self, path: str) -> tuple[str, str]:
        folder, _, name = path.rpartition("/")
        return folder, name
