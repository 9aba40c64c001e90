"""Folders on any file system: on an object store, a folder is but the beginning of names and does not itself exist."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Iterable, Iterator

from apache_beam.io.filesystem import BeamIOError
from apache_beam.io.filesystems import FileSystems

from beam_influence.influence_ops.results.array_folder import LocalFiles
from beam_influence.transforms.files import TEMPORARY, iterate_matches
from beam_influence.transforms.in_parallel import THREADS, in_parallel

_DELETED_AT_ONCE = 1000  # what S3 takes in one request
_RETRIES = 3
_TRANSIENT = (ConnectionError, TimeoutError)


def list_folder(folder: str) -> Iterator[str]:
    """The paths of all files below a folder, hidden ones too, one at a time; none when there is no such folder."""
    has_folders = FileSystems.get_filesystem(folder).has_dirs()
    if has_folders and not FileSystems.exists(folder):
        return  # some refuse to list it
    yield from _files_below(folder, has_folders)


def list_temporary(folder: str, name: str = "") -> Iterator[str]:
    """The files in a folder, of names that begin so, that were being written when their worker was killed; an object store is asked for no
    others."""
    if not FileSystems.get_filesystem(folder).has_dirs() or FileSystems.exists(folder):
        yield from (match.path for match in iterate_matches(f"{quoted(folder.rstrip('/'))}/.{name}*{TEMPORARY}"))


def quoted(path: str) -> str:
    """A pattern that only this path matches."""
    return re.sub(r"[*?[]", r"[\g<0>]", path)


def _files_below(folder: str, has_folders: bool) -> Iterator[str]:
    for match in iterate_matches(f"{quoted(folder.rstrip('/'))}/**"):
        if match.path.endswith("/"):
            continue  # an object that only marks a folder
        # HDFS lists folders, whose size is 0, beside the files, and not what is in them.
        inner = _inside(match.path) if has_folders and match.size_in_bytes == 0 else []
        yield from inner or [match.path]


def _inside(path: str) -> list[str]:
    """The files in what may be a folder."""
    try:
        return list(_files_below(path, True))
    except BeamIOError as error:
        if "not a directory" in str(error).lower():
            return []
        raise


def delete_files(paths: Iterable[str]) -> None:
    """Deletes files, many in one request where the store takes that, and several requests at once; one that is gone already is none too
    many. `paths` is read as files are deleted.

    Raises:
      OSError: one of them is still there.
    """
    files = iter(paths)
    some = list(itertools.islice(files, THREADS * _DELETED_AT_ONCE))
    while some:
        size = min(_DELETED_AT_ONCE, max(_DELETED_AT_ONCE // 10, -(-len(some) // THREADS)))
        for _ in in_parallel(_delete_some, [some[start : start + size] for start in range(0, len(some), size)]):
            pass
        some = list(itertools.islice(files, THREADS * _DELETED_AT_ONCE))


def _delete_some(paths: list[str]) -> None:
    for attempt in range(_RETRIES + 1):
        try:
            _delete(paths)
            return
        except (BeamIOError, OSError) as error:
            left = [path for path in paths if FileSystems.exists(path)]
            if not left:
                return
            details = getattr(error, "exception_details", None) or {}
            causes = [cause for cause in details.values() if isinstance(cause, BaseException)] or [error]
            if attempt == _RETRIES or not all(isinstance(cause, _TRANSIENT) for cause in causes):
                more = f" and {len(left) - 1:,} more" if len(left) > 1 else ""
                raise OSError(f"can't delete {left[0]!r}{more}: {error}") from error
            paths = left
            time.sleep(2.0**attempt)


def delete_folder(folder: str) -> None:
    """Deletes a folder that may not exist, with all that is in it."""
    if not FileSystems.get_filesystem(folder).has_dirs():
        delete_files(list_folder(folder))
    elif FileSystems.exists(folder):
        _delete([folder])


def _delete(paths: list[str]) -> None:
    if "://" in paths[0]:
        FileSystems.delete(paths)
        return
    for path in paths:  # Beam would take a local path for a pattern
        LocalFiles().delete(path)
