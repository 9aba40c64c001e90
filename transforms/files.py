"""Every file that is read or written, through Beam's file systems: local, gs://, s3:// and hdfs:// alike."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import re
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO, cast

from apache_beam.io.filesystem import BeamIOError, CompressionTypes, FileMetadata
from apache_beam.io.filesystems import FileSystems

from beam_influence.transforms import s3_clients as s3_clients
from beam_influence.transforms.in_parallel import in_parallel

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
    """The files that match any of the patterns, by path, each once. For a few: an object for each; see `list_shards` for many.

    Raises:
      ValueError: a pattern matches nothing.
    """
    found = {file.path: file for file in find_files(patterns)}
    return [found[path] for path in sorted(found)]


def find_files(patterns: Iterable[str]) -> Iterator[FoundFile]:
    """The files that match each pattern, in no order, one at a time: what is held does not grow with their number.

    A pattern is looked up by one listing, however many files it matches; paths without wildcards are looked up in parallel.

    Raises:
      ValueError: a pattern matches nothing.
    """
    whole = [_below_here(pattern) for pattern in patterns]
    yield from itertools.chain.from_iterable(in_parallel(_found_at, (path for path in whole if _beginning(path) == path)))
    for pattern in whole:
        if _beginning(pattern) != pattern:
            yield from _files_of(pattern, iterate_matches(pattern))


def _found_at(path: str) -> list[FoundFile]:
    return list(_files_of(path, (match for result in FileSystems.match([path]) for match in result.metadata_list)))


def iterate_matches(pattern: str) -> Iterator[FileMetadata]:
    """What Beam's `match`, which holds all of it at once, gives for a pattern with wildcards."""
    system = FileSystems.get_filesystem(pattern)
    beginning = _beginning(pattern)
    start = beginning.rpartition("/")[0] or "/" if system.has_dirs() else beginning
    yield from system.match_files(system._list(start), f"{pattern}*" if pattern.endswith("/") else pattern)


def _files_of(pattern: str, matches: Iterable[FileMetadata]) -> Iterator[FoundFile]:
    """Refuses a pattern without files; what marks a folder, and what is being written, are none."""
    nothing = True
    try:
        for match in matches:
            if not match.path.endswith((TEMPORARY, "/")):
                nothing = False
                yield FoundFile(match.path.removeprefix(_HERE), match.size_in_bytes, match.last_updated_in_seconds or 0.0)
    except (BeamIOError, ValueError) as error:
        raise ValueError(f"can't look for files at {pattern.removeprefix(_HERE)!r}: {error}") from error
    if nothing:
        raise ValueError(
            f"no file matches {pattern.removeprefix(_HERE)!r}; check the path, and quote patterns so that the shell leaves them alone"
        )


def _beginning(pattern: str) -> str:
    """What all that matches begins with."""
    return re.split(r"[*?[]", pattern, maxsplit=1)[0]


def _below_here(pattern: str) -> str:
    """The pattern with its folder: Beam lists no files of a folder without a name."""
    return pattern if "/" in pattern else f"{_HERE}{pattern}"


def join(folder: str, *parts: str) -> str:
    """A path below `folder`."""
    return FileSystems.join(folder, *parts)


def common_folder(paths: Sequence[str]) -> str:
    """The longest folder, with its final '/', that all paths lie below."""
    beginning = os.path.commonprefix(paths)
    return beginning[: beginning.rfind("/") + 1]


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
