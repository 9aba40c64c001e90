"""Listing, deleting and publishing on file systems that differ: with folders and without, and one that refuses a name that is taken."""

from __future__ import annotations

import io
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from apache_beam.io.filesystem import BeamIOError, CompressionTypes, FileMetadata, FileSystem

from beam_influence.transforms.clear_work import clear_work
from beam_influence.transforms.files import BeamFiles, match_files
from beam_influence.transforms.folders import delete_files, delete_folder, list_folder

_KEPT: dict[str, bytes] = {}
_DELETED: list[list[str]] = []


class _Write(io.BytesIO):
    def __init__(self, path: str):
        super().__init__()
        self._path = path

    def close(self) -> None:
        if not self.closed:
            _KEPT[self._path] = self.getvalue()
        super().close()


class _InMemory(FileSystem):
    """Files in a dictionary, by name."""

    @classmethod
    def scheme(cls) -> str:
        return "memory"

    def create(self, path: str, mime_type: str = "", compression_type: str = CompressionTypes.AUTO) -> Any:
        return _Write(path)

    def open(self, path: str, mime_type: str = "", compression_type: str = CompressionTypes.AUTO) -> Any:
        if path not in _KEPT:
            raise FileNotFoundError(path)
        return io.BytesIO(_KEPT[path])

    def exists(self, path: str) -> bool:
        return path in _KEPT

    def metadata(self, path: str) -> FileMetadata:
        return FileMetadata(path, len(_KEPT[path]))

    def rename(self, source_file_names: list[str], destination_file_names: list[str]) -> None:
        for source, target in zip(source_file_names, destination_file_names, strict=True):
            _KEPT[target] = _KEPT.pop(source)

    def delete(self, paths: list[str]) -> None:
        _DELETED.append(list(paths))
        for path in paths:
            _KEPT.pop(path, None)

    def _list(self, dir_or_prefix: str) -> Iterator[FileMetadata]:
        return iter([self.metadata(path) for path in _KEPT if path.startswith(dir_or_prefix)])

    def has_dirs(self) -> bool:
        return False

    def mkdirs(self, path: str) -> None:
        raise NotImplementedError

    def size(self, path: str) -> int:
        return len(_KEPT[path])

    def last_updated(self, path: str) -> float:
        raise NotImplementedError

    def checksum(self, path: str) -> str:
        raise NotImplementedError

    def copy(self, source_file_names: list[str], destination_file_names: list[str]) -> None:
        raise NotImplementedError

    def join(self, basepath: str, *paths: str) -> str:
        return "/".join([basepath.rstrip("/"), *(path.strip("/") for path in paths)])

    def split(self, path: str) -> tuple[str, str]:
        folder, _, name = path.rpartition("/")
        return folder, name


class _ObjectStore(_InMemory):
    """As S3 and Google Cloud Storage: names that begin alike, no folders."""

    @classmethod
    def scheme(cls) -> str:
        return "objects"


class _Hadoop(_InMemory):
    """As HDFS through Beam: folders that are listed one at a time, and no renaming onto a name that is taken."""

    @classmethod
    def scheme(cls) -> str:
        return "hadoop"

    def has_dirs(self) -> bool:
        return True

    def exists(self, path: str) -> bool:
        return path in _KEPT or any(other.startswith(f"{path.rstrip('/')}/") for other in _KEPT)

    def rename(self, source_file_names: list[str], destination_file_names: list[str]) -> None:
        for target in destination_file_names:
            if self.exists(target):
                raise BeamIOError("Rename operation failed", {target: OSError(f"{target} exists")})
        super().rename(source_file_names, destination_file_names)

    def delete(self, paths: list[str]) -> None:
        super().delete([other for path in paths for other in list(_KEPT) if other == path or other.startswith(f"{path}/")])

    def _list(self, dir_or_prefix: str) -> Iterator[FileMetadata]:
        folder = dir_or_prefix.rstrip("/")
        if folder in _KEPT:
            raise BeamIOError("List operation failed", {folder: OSError(f"'{folder}' is not a directory.")})
        if not self.exists(folder):
            raise BeamIOError("List operation failed", {folder: OSError(f"{folder} does not exist")})
        names = {path[len(folder) + 1 :].split("/")[0] for path in _KEPT if path.startswith(f"{folder}/")}
        return iter([FileMetadata(path, len(_KEPT.get(path, b""))) for path in sorted(f"{folder}/{name}" for name in names)])


@pytest.fixture(autouse=True)
def empty() -> None:
    _KEPT.clear()
    _DELETED.clear()


@pytest.fixture(params=["objects", "hadoop", "local", "local[1]*"])
def root(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> str:
    return str(tmp_path / request.param) if request.param.startswith("local") else f"{request.param}://here/out"


PATHS = ("a/1", "a/.hidden", "a/b/empty", "a/b/c/2", "ab/3", "4")


def fill(root: str) -> None:
    for path in PATHS:
        BeamFiles().write(f"{root}/{path}", b"" if path.endswith("empty") else b"x")


def found(root: str) -> list[str]:
    return sorted(path.removeprefix(f"{root}/") for path in list_folder(root))


def test_every_file_below_a_folder_is_listed(root: str) -> None:
    assert found(root) == [] and list(list_folder(f"{root}/a")) == []
    fill(root)
    assert found(root) == sorted(PATHS)
    assert sorted(list_folder(f"{root}/a")) == sorted(f"{root}/{path}" for path in PATHS if path.startswith("a/"))


def test_what_is_deleted_is_gone_and_the_rest_stays(root: str) -> None:
    fill(root)
    delete_files([f"{root}/a/1", f"{root}/no such file"])
    assert found(root) == sorted(set(PATHS) - {"a/1"})
    delete_folder(f"{root}/a")
    delete_folder(f"{root}/no such folder")
    assert found(root) == ["4", "ab/3"]


def test_the_end_of_a_run(root: str) -> None:
    fill(root)
    for path in ("scores/.shard.parquet.0123.tmp", "scores/shard.parquet", "mine/.x.tmp", ".work/finished/embed.json"):
        BeamFiles().write(f"{root}/{path}", b"x")
    clear_work(root, ("scores", "top_k"), f"{root}/.work")
    assert found(root) == sorted([*PATHS, "scores/shard.parquet", "mine/.x.tmp"])


def test_an_object_that_marks_a_folder_is_no_file() -> None:
    for path in ("data/", "data/1"):
        _KEPT[f"objects://here/{path}"] = b""
    assert list(list_folder("objects://here/data")) == ["objects://here/data/1"]
    assert [file.path for file in match_files(["objects://here/data/*"])] == ["objects://here/data/1"]


def test_many_files_are_deleted_in_few_requests() -> None:
    paths = [f"objects://here/{number}" for number in range(2500)]
    _KEPT.update(dict.fromkeys(paths, b""))
    delete_files(paths)
    assert len(_DELETED) <= len(paths) / 100 and not _KEPT


def test_what_can_not_be_deleted_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    _KEPT["objects://here/1"] = b""

    def refuse(self: _ObjectStore, paths: list[str]) -> None:
        raise BeamIOError("Delete operation failed", {paths[0]: OSError("access denied")})

    monkeypatch.setattr(_ObjectStore, "delete", refuse)
    with pytest.raises(OSError, match="can't delete 'objects://here/1'.*access denied"):
        delete_files(["objects://here/1", "objects://here/2"])


def test_a_retry_publishes_where_a_name_that_is_taken_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    files, path = BeamFiles(), "hadoop://here/manifest.json"
    for content in (b"first", b"first", b"second"):
        files.write(path, content)
        assert {path: content} == _KEPT  # and no temporary file is left
    (deleted,) = [some for some in _DELETED if some == [path]]  # what is the same stays where it is
    broken: Callable[..., None] = lambda self, sources, targets: (_ for _ in ()).throw(BeamIOError("no connection"))  # noqa: E731
    monkeypatch.setattr(_Hadoop, "rename", broken)
    with pytest.raises(BeamIOError, match="no connection"):
        files.write("hadoop://here/other", b"x")
    assert {path: b"second"} == _KEPT
