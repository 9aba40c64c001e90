"""Folders on any file system: on an object store, a folder is but the beginning of names and does not itself exist."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from apache_beam.io.filesystem import BeamIOError
from apache_beam.io.filesystems import FileSystems

from beam_influence.influence_ops.results.array_folder import LocalFiles

_DELETED_AT_ONCE = 1000  # what S3 takes in one request


def list_folder(folder: str) -> list[str]:
    """The paths of all files below a folder, hidden ones too; none when there is no such folder."""
    has_folders = FileSystems.get_filesystem(folder).has_dirs()
    if has_folders and not FileSystems.exists(folder):
        return []  # some refuse to list it
    return list(_files_below(folder, has_folders))


def quoted(path: str) -> str:
    """A pattern that only this path matches."""
    return re.sub(r"[*?[]", r"[\g<0>]", path)


def _files_below(folder: str, has_folders: bool) -> Iterator[str]:
    for match in FileSystems.match([f"{quoted(folder.rstrip('/'))}/**"])[0].metadata_list:
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


def delete_files(paths: Sequence[str]) -> None:
    """Deletes files, many in one request where the store takes that; one that is gone already is none too many.

    Raises:
      OSError: one of them is still there.
    """
    for start in range(0, len(paths), _DELETED_AT_ONCE):
        some = list(paths[start : start + _DELETED_AT_ONCE])
        try:
            _delete(some)
        except (BeamIOError, OSError) as error:
            left = [path for path in some if FileSystems.exists(path)]
            if left:
                more = f" and {len(left) - 1:,} more" if len(left) > 1 else ""
                raise OSError(f"can't delete {left[0]!r}{more}: {error}") from error


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
