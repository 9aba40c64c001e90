"""Every file that is read or written, through Beam's file systems: local, gs://, s3:// and hdfs:// alike."""

from __future__ import annotations

import contextlib
import dataclasses
import uuid
from collections.abc import Iterator
from typing import BinaryIO, cast

from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems

from beam_influence.transforms import s3_clients as s3_clients

TEMPORARY = ".tmp"
_HERE = "./"
_CHUNK = 1 << 22


@dataclasses.dataclass(frozen=True)
class FoundFile:
    """A file that exists, its size in bytes, and when it was changed last (seconds; 0: not known)."""

    path: str
    size: int
    modified: float = 0.0


def match_files(patterns: list[str]) -> list[FoundFile]:
    """The files that match any of the patterns, by path, each once.

    Raises:
      ValueError: a pattern matches nothing.
    """
    found: dict[str, FoundFile] = {}
    for pattern in patterns:
        try:
            matches = FileSystems.match([_below_here(pattern)])[0].metadata_list
        except (BeamIOError, ValueError) as error:
            raise ValueError(f"can't look for files at {pattern!r}: {error}") from error
        matches = [match for match in matches if not match.path.endswith((TEMPORARY, "/"))]  # "/": marks a folder
        if not matches:
            raise ValueError(f"no file matches {pattern!r}; check the path, and quote patterns so that the shell leaves them alone")
        for match in matches:
            path = match.path.removeprefix(_HERE)
            found[path] = FoundFile(path, match.size_in_bytes, match.last_updated_in_seconds or 0.0)
    return [found[path] for path in sorted(found)]


def _below_here(pattern: str) -> str:
    """The pattern with its folder: Beam lists no files of a folder without a name."""
    return pattern if "/" in pattern else f"{_HERE}{pattern}"


def join(folder: str, *parts: str) -> str:
    """A path below `folder`."""
    return FileSystems.join(folder, *parts)


def common_folder(paths: list[str]) -> str:
    """The longest folder, with its final '/', that all paths lie below."""
    folders = [path.rsplit("/", 1)[0].split("/") if "/" in path else [] for path in paths]
    shared = []
    for parts in zip(*folders, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return "/".join(shared) + "/" if shared else ""


class BeamFiles:
    """A `FileStore` over Beam's file systems."""

    def open_read(self, path: str) -> BinaryIO:
        """The file's bytes as they are: compression is the reader's business."""
        return cast(BinaryIO, FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED))

    def read(self, path: str) -> bytes:
        """The whole file."""
        with self.open_read(path) as file:
            return file.read()

    @contextlib.contextmanager
    def open_write(self, path: str) -> Iterator[BinaryIO]:
        """A file that appears under its name when the block ends without an error, and not at all otherwise."""
        folder, separator, name = path.rpartition("/")
        # Readers of a whole folder of Parquet leave out files whose names begin with a dot.
        temporary = f"{folder}{separator}.{name}.{uuid.uuid4().hex}{TEMPORARY}"
        file = FileSystems.create(temporary, compression_type=CompressionTypes.UNCOMPRESSED)
        try:
            with file:
                yield cast(BinaryIO, file)
            self._publish(temporary, path)
        except BaseException:
            self.delete(temporary)
            raise

    def _publish(self, temporary: str, path: str) -> None:
        """Renames; where the store refuses a name that is taken, as HDFS does, only what differs is replaced."""
        try:
            FileSystems.rename([temporary], [path])
        except BeamIOError:
            if not (FileSystems.exists(temporary) and FileSystems.exists(path)):
                raise
            if self._are_equal(temporary, path):  # a retry wrote the same: readers keep what they have open
                FileSystems.delete([temporary])
                return
            FileSystems.delete([path])
            FileSystems.rename([temporary], [path])

    def _are_equal(self, one: str, other: str) -> bool:
        with self.open_read(one) as first, self.open_read(other) as second:
            while (data := first.read(_CHUNK)) == second.read(_CHUNK):
                if not data:
                    return True
        return False

    def write(self, path: str, data: bytes) -> None:
        with self.open_write(path) as file:
            file.write(data)

    def exists(self, path: str) -> bool:
        return FileSystems.exists(path)

    def delete(self, path: str) -> None:
        with contextlib.suppress(BeamIOError, FileNotFoundError):
            if FileSystems.exists(path):
                FileSystems.delete([path])
