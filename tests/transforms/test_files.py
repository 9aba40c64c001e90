"""Files are complete or absent, and matching them gives each once, in an order that only the paths decide."""

from __future__ import annotations

import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam_influence.influence_ops.results import schemas
from beam_influence.influence_ops.results.result_files import BYTES_IN_A_GROUP, ParquetFile, write_table
from beam_influence.influence_ops.results.tables import vectors_table
from beam_influence.transforms.file_list import list_shards
from beam_influence.transforms.files import BeamFiles, common_folder, match_files


class _Broken(Exception):
    pass


def _rows(count: int, start: int = 0) -> pa.Table:
    ids = [f"e{number}" for number in range(start, start + count)]
    columns = [pa.array(ids), pa.array([float(number) for number in range(count)]), pa.nulls(count, pa.float64())]
    return pa.Table.from_arrays(columns, schema=schemas.SELF_INFLUENCE)


def _files(folder: pathlib.Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_an_error_while_writing_leaves_nothing(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "folder" / "file"
    with pytest.raises(_Broken), BeamFiles().open_write(str(path)) as file:
        file.write(b"half of it")
        raise _Broken
    assert _files(tmp_path) == []


def test_an_error_while_writing_again_leaves_what_was_there(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "file"
    BeamFiles().write(str(path), b"first")
    with pytest.raises(_Broken), BeamFiles().open_write(str(path)) as file:
        file.write(b"half of the second")
        raise _Broken
    assert path.read_bytes() == b"first" and _files(tmp_path) == ["file"]
    BeamFiles().write(str(path), b"second")
    assert path.read_bytes() == b"second" and _files(tmp_path) == ["file"]


def test_nothing_is_seen_before_the_file_is_complete(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "file"
    with BeamFiles().open_write(str(path)) as file:
        file.write(b"some")
        assert not path.exists()
        with pytest.raises(ValueError, match="no file matches"):
            match_files([f"{tmp_path}/*"])  # nor does a reader take the temporary one for data
    assert path.read_bytes() == b"some"


def test_an_abandoned_parquet_file_leaves_nothing(tmp_path: pathlib.Path) -> None:
    file = ParquetFile(str(tmp_path), "self_influence", "shard-00000", schemas.SELF_INFLUENCE, {})
    file.write(_rows(200_000))  # more than is kept in memory: some is on the disk
    file.abandon()
    assert _files(tmp_path) == []


def test_a_table_of_the_wrong_columns_leaves_nothing(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="schema"):
        write_table(str(tmp_path), "top_k", "part-00000", schemas.TOP_K, pa.table({"other": [1]}), {})
    with pytest.raises(ValueError, match="schema"):
        write_table(str(tmp_path), "top_k", "part-00000", schemas.TOP_K, _rows(3), {})
    assert _files(tmp_path) == []


def test_many_small_tables_become_few_row_groups(tmp_path: pathlib.Path) -> None:
    file = ParquetFile(str(tmp_path), "self_influence", "shard-00000", schemas.SELF_INFLUENCE, {"n": 3})
    for number in range(300):
        file.write(_rows(1000, start=1000 * number))
    written = file.close()
    stored = pq.ParquetFile(tmp_path / written.path)
    assert (written.table, written.path, written.rows) == ("self_influence", "self_influence/shard-00000.parquet", 300_000)
    assert written.size == (tmp_path / written.path).stat().st_size
    assert stored.metadata.num_row_groups == 3  # 131,072 rows each: memory stays bounded, and readers skip groups
    assert stored.read()["train_id"].to_pylist() == [f"e{number}" for number in range(300_000)]


def test_wide_rows_wait_by_their_bytes(tmp_path: pathlib.Path) -> None:
    """600 rows of 1 MB: neither what waits to be written nor what a reader must hold at once grows with the width."""
    width = 1 << 17
    values = np.random.default_rng(0).standard_normal((3, width))
    before, most = pa.total_allocated_bytes(), 0
    file = ParquetFile(str(tmp_path), "influence_vectors", "shard-00000", schemas.INFLUENCE_VECTORS, {})
    for number in range(200):
        ids = np.array([f"e{3 * number + row}" for row in range(3)], dtype=object)
        file.write(vectors_table(ids, values.copy()))
        most = max(most, sum(table.nbytes for table in file._waiting), pa.total_allocated_bytes() - before)
    written = file.close()
    assert most < 1.1 * BYTES_IN_A_GROUP
    stored = pq.ParquetFile(tmp_path / written.path)
    sizes = [stored.metadata.row_group(group).total_byte_size for group in range(stored.metadata.num_row_groups)]
    assert written.rows == 600 and len(sizes) == 10 and max(sizes) < 1.1 * BYTES_IN_A_GROUP
    assert stored.read_row_group(9)["vector"][-1].values.to_numpy()[-1] == values[-1, -1]


def test_a_large_table_becomes_several_row_groups(tmp_path: pathlib.Path) -> None:
    width = 1 << 17
    vectors = np.zeros((150, width))
    table = vectors_table(np.array(["e"] * 150, dtype=object), vectors)
    written = write_table(str(tmp_path), "influence_vectors", "part", schemas.INFLUENCE_VECTORS, table, {"n": 3})
    stored = pq.ParquetFile(tmp_path / written.path).metadata
    assert stored.num_row_groups == 3 and stored.row_group(0).num_rows == 50


def test_an_empty_file_has_its_schema(tmp_path: pathlib.Path) -> None:
    written = ParquetFile(str(tmp_path), "scores", "shard-00000", schemas.SCORES, {"n": 3}).close()
    assert written.rows == 0
    assert pq.read_table(tmp_path / written.path).schema.equals(schemas.SCORES)


def test_shards_are_named_below_their_common_folder(tmp_path: pathlib.Path) -> None:
    for name in ("b/1.rec", "a/2.rec", "a/1.rec", "b/1.rec.0123.tmp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    shards = list_shards("train", [f"{tmp_path}/b/*", f"{tmp_path}/*/1.rec", f"{tmp_path}/a/2.rec"])
    assert [(shard.ordinal, shard.name, shard.size) for shard in shards] == [(0, "a/1.rec", 7), (1, "a/2.rec", 7), (2, "b/1.rec", 7)]
    assert all(pathlib.Path(shard.path).read_bytes().decode() == shard.name for shard in shards)
    with pytest.raises(ValueError, match=r"no file matches '.*/c/\*'"):
        list_shards("train", [f"{tmp_path}/a/*", f"{tmp_path}/c/*"])


@pytest.mark.parametrize(
    ("paths", "folder"),
    [
        (["/a/b/1", "/a/b/2"], "/a/b/"),
        (["/a/b/1", "/a/bc/2"], "/a/"),
        (["gs://bucket/x/1"], "gs://bucket/x/"),
        (["/1", "/a/2"], "/"),
        (["1", "2"], ""),
        (["1", "a/2"], ""),
    ],
)
def test_common_folder(paths: list[str], folder: str) -> None:
    assert common_folder(paths) == folder


@pytest.mark.parametrize("pattern", ["train-*", "./train-*", "train-[01]", "train-?"])
def test_a_pattern_without_a_folder_is_of_this_one(pattern: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files have the same names, and so the same ids, however it was written."""
    for name in ("train-0", "train-1", "test-0"):
        (tmp_path / name).write_bytes(b"a")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "train-2").write_bytes(b"b")
    monkeypatch.chdir(tmp_path)
    assert [file.path for file in match_files([pattern])] == ["train-0", "train-1"]
    shards = list_shards("train", [pattern])
    assert [shard.name for shard in shards] == ["train-0", "train-1"]
    assert BeamFiles().read(shards[0].path) == b"a"
    assert [shard.name for shard in list_shards("train", [pattern, "more/*"])] == ["more/train-2", "train-0", "train-1"]
    with pytest.raises(ValueError, match="no file matches 'nothing-"):
        match_files(["nothing-*"])
