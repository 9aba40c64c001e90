"""Named arrays and a JSON description in a folder: the format of everything we save. No pickle.

A folder holds `<name>.npy` for each array and `meta.json`, written last, with each array's shape, dtype and
SHA-256. What workers publish, which may be written again while others read it, has files whose names contain their
SHA-256, `<name>-<its first digits>.npy`, and none is ever written over; `meta.json` tells them. Files are reached
through a `FileStore`, so that a Beam worker can keep them on any file system.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, BinaryIO, Protocol

import numpy as np

FORMAT_VERSION = 1
_CHUNK = 1 << 22
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,120}")


class FileStore(Protocol):
    """The file operations that saving and loading need."""

    def open_read(self, path: str) -> BinaryIO: ...

    def open_write(self, path: str) -> AbstractContextManager[BinaryIO]:
        """A file that appears under its name when the block ends without an error, and not at all otherwise."""
        ...

    def write(self, path: str, data: bytes) -> None:
        """Writes a whole file, visible only when complete."""
        ...

    def exists(self, path: str) -> bool: ...

    def delete(self, path: str) -> None:
        """Deletes a file or folder that may not exist."""
        ...


class LocalFiles:
    """A `FileStore` on the local disk."""

    def open_read(self, path: str) -> BinaryIO:
        return open(path, "rb")

    @contextmanager
    def open_write(self, path: str) -> Iterator[BinaryIO]:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        temporary = f"{path}.{uuid.uuid4().hex}.tmp"
        try:
            with open(temporary, "wb") as file:
                yield file
            os.replace(temporary, path)
        except BaseException:
            self.delete(temporary)
            raise

    def write(self, path: str, data: bytes) -> None:
        with self.open_write(path) as file:
            file.write(data)

    def exists(self, path: str) -> bool:
        return os.path.exists(path)

    def delete(self, path: str) -> None:
        if os.path.isdir(path):
            shutil.rmtree(path)
        elif os.path.exists(path):
            os.remove(path)


def save_arrays(
    folder: str, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any], files: FileStore | None = None, *, by_content: bool = False
) -> dict[str, dict[str, Any]]:
    """Writes the arrays, then the description that makes them valid; returns how that describes each array.

    Args:
      folder: the folder.
      arrays, meta: what is saved.
      files: where.
      by_content: whether files are named by their content too, so that saving other arrays does not touch them.

    Raises:
      ValueError: an array's name is not a plain file name, or its dtype would need pickle.
    """
    files = files or LocalFiles()
    described: dict[str, dict[str, Any]] = {}
    for name, array in arrays.items():
        if not _is_plain(name):
            raise ValueError(f"array name {name!r} is not a plain file name of letters, digits, '_', '.' and '-'")
        parts = _npy_parts(array)
        digest = _digest_of_parts(parts)
        described[name] = {"shape": list(array.shape), "dtype": str(array.dtype), "sha256": digest}
        file = f"{name}.npy"
        if by_content:
            described[name]["file"] = file = f"{name}-{digest[:16]}.npy"
        if not (by_content and files.exists(f"{folder}/{file}")):
            with files.open_write(f"{folder}/{file}") as out:
                for part in parts:
                    out.write(part)
    content = {**meta, "format_version": FORMAT_VERSION, "arrays": described}
    files.write(f"{folder}/meta.json", json.dumps(content, indent=1, sort_keys=True).encode())
    return described


def _is_plain(name: str) -> bool:
    return _NAME.fullmatch(name) is not None and not name.startswith(".")


def array_path(folder: str, name: str, described: Mapping[str, Any]) -> str:
    """The file of an array, as `save_arrays` described it."""
    return f"{folder}/{described.get('file', f'{name}.npy')}"


def load_meta(folder: str, files: FileStore | None = None) -> dict[str, Any]:
    """The description of a saved folder.

    Raises:
      ValueError: there is none, or it is of another format version or damaged.
    """
    files = files or LocalFiles()
    path = f"{folder}/meta.json"
    if not files.exists(path):
        raise ValueError(f"{folder!r} holds no meta.json: it is not a complete saved folder")
    with files.open_read(path) as file:
        data = file.read()
    try:
        meta = json.loads(data)
        version, described = meta["format_version"], meta["arrays"]
        names_are_plain = all(_is_plain(name) and _is_plain(each.get("file", name)) for name, each in described.items())
        if not all(isinstance(each["sha256"], str) for each in described.values()):
            raise ValueError("an array's SHA-256 is no text")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path!r} is damaged: {error!r}") from error
    if version != FORMAT_VERSION:
        raise ValueError(f"{path!r} has format version {version!r}; this program reads {FORMAT_VERSION}")
    if not names_are_plain:
        raise ValueError(f"{path!r} names an array that is not a plain file name")
    return meta


def load_arrays(folder: str, files: FileStore | None = None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and the description, each array checked against its digest.

    Raises:
      ValueError: a file is missing, damaged, or would need pickle.
    """
    files = files or LocalFiles()
    meta = load_meta(folder, files)
    return read_arrays(folder, meta["arrays"], files), meta


def read_arrays(folder: str, described: Mapping[str, Mapping[str, Any]], files: FileStore) -> dict[str, np.ndarray]:
    """The arrays that `save_arrays` described, each checked against its digest.

    Raises:
      ValueError: as of `load_arrays`.
    """
    arrays = {}
    for name, each in described.items():
        path = array_path(folder, name, each)
        if not files.exists(path):
            raise ValueError(f"{path!r} is missing; save the folder again")
        with files.open_read(path) as file:
            data = file.read()
        if hashlib.sha256(data).hexdigest() != each.get("sha256"):
            raise ValueError(f"{path!r} does not match its SHA-256 in meta.json; save the folder again")
        arrays[name] = from_npy(data)
    return arrays


def mapped_arrays(
    folder: str, described: Mapping[str, Mapping[str, Any]], files: FileStore, in_memory: int
) -> dict[str, np.ndarray]:
    """As `read_arrays`, but an array of more than `in_memory` bytes goes to a temporary file of this machine and is mapped from there; the
    file has no name by then and goes with the array."""
    arrays = {}
    for name, each in described.items():
        if np.dtype(each["dtype"]).itemsize * math.prod(each["shape"]) <= in_memory:
            arrays |= read_arrays(folder, {name: each}, files)
            continue
        path, digest = array_path(folder, name, each), hashlib.sha256()
        with tempfile.NamedTemporaryFile(suffix=".npy") as copy:
            with files.open_read(path) as file:
                while data := file.read(_CHUNK):
                    digest.update(data)
                    copy.write(data)
            if digest.hexdigest() != each.get("sha256"):
                raise ValueError(f"{path!r} does not match its SHA-256 in meta.json; save the folder again")
            copy.flush()
            arrays[name] = np.load(copy.name, mmap_mode="r", allow_pickle=False)
    return arrays


def to_npy(array: np.ndarray) -> bytes:
    """The array as a `.npy` file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def from_npy(data: bytes) -> np.ndarray:
    """The array in a `.npy` file; never unpickles."""
    return np.load(io.BytesIO(data), allow_pickle=False)


def digest_of(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over names, shapes, dtypes and contents."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}|{array.shape}|{array.dtype}".encode())
        digest.update(_bytes_of(array))
    return digest.hexdigest()


def _npy_parts(array: np.ndarray) -> list[bytes | memoryview]:
    """The bytes of a `.npy` file in parts, without a copy of the array where it lies as it is written."""
    if array.dtype.hasobject or not array.flags.c_contiguous:
        return [to_npy(array)]
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    return [header.getvalue(), _bytes_of(array)]


def _digest_of_parts(parts: list[bytes | memoryview]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _bytes_of(array: np.ndarray) -> bytes | memoryview:
    """The numbers of a contiguous array as they lie in memory."""
    return array.reshape(-1).view(np.uint8).data if array.size else b""
