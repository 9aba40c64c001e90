"""Any bytes in place of a file: a result that is as it should be, or ValueError or OSError; never a crash, a hang or another error."""

from __future__ import annotations

import gzip
import io
import json
import pathlib
import shutil
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from beam_influence.influence_ops.curvature import load_preconditioner
from beam_influence.influence_ops.curvature.saved import preconditioner_from
from beam_influence.influence_ops.reading import READERS, detect_format
from beam_influence.influence_ops.reading.decode import RowDecoder
from beam_influence.influence_ops.reading.features import Feature, FeatureSpec
from beam_influence.influence_ops.reading.tfrecord_framing import DamagedRecord, read_records, write_records
from beam_influence.influence_ops.results.array_folder import load_arrays, save_arrays
from beam_influence.influence_ops.results.result_files import (
    SourceFile,
    WrittenFile,
    iterate_table,
    read_facts,
    read_manifest,
    table_files,
    write_manifest,
    written_files,
)
from beam_influence.influence_ops.scoring.index_rows import IndexDtype, index_table, stored_vectors

pytestmark = pytest.mark.timeout(240)
_SLOW = (HealthCheck.too_slow, HealthCheck.function_scoped_fixture)
FUZZ = settings(max_examples=150, deadline=5_000, derandomize=True, suppress_health_check=_SLOW, database=None)

SPEC = FeatureSpec((("x", Feature("x", "float", (2,))),), (Feature("y", "int", ()),), id=Feature("name", "bytes", ()))


def record(x: list[float], y: int, name: bytes) -> bytes:
    feature = {
        "x": tf.train.Feature(float_list=tf.train.FloatList(value=x)),
        "y": tf.train.Feature(int64_list=tf.train.Int64List(value=[y])),
        "name": tf.train.Feature(bytes_list=tf.train.BytesList(value=[name])),
    }
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()


GOOD = [record([0.5 * n, -n], n % 3, b"example %d" % n) for n in range(6)]


def framed(records: list[bytes]) -> bytes:
    buffer = io.BytesIO()
    write_records(buffer, records)
    return buffer.getvalue()


def parquet() -> bytes:
    buffer = io.BytesIO()
    columns = {"x": [[0.5 * n, -n] for n in range(6)], "y": [n % 3 for n in range(6)], "name": [f"example {n}" for n in range(6)]}
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


FILES: dict[str, bytes] = {
    "tfrecord": framed(GOOD),
    "sequence_example": framed(GOOD),
    "parquet": parquet(),
    "csv": b"x,y,name\n0.5,1,a\n1.5,2,b\n",
}


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """Bytes near `whole`: some replaced, taken out or put in, or the end cut off."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        how = draw(st.sampled_from(["set", "flip", "cut", "insert", "end"]))
        if how == "set" and data:
            data[at] = draw(st.integers(0, 255))
        elif how == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "cut":
            del data[at : at + draw(st.integers(1, 40))]
        elif how == "insert":
            data[at:at] = draw(st.binary(max_size=20))
        else:
            del data[at:]
    return bytes(data)


def read_file(name: str, data: bytes) -> tuple[list[str], int]:
    """The ids that are read from a file, and how many rows were rejected."""
    decoder, ids, rejected = RowDecoder(SPEC), [], 0
    for rows in READERS[name](SPEC.features()).read(io.BytesIO(data), 4):
        batch, bad = decoder.decode(rows, "f")
        assert np.asarray(batch.inputs).shape == (len(batch), 2)
        assert all(one.file == "f" and one.index >= 0 and one.message for one in bad)
        ids += batch.ids.tolist()
        rejected += len(bad)
    return ids, rejected


@pytest.mark.parametrize("name", sorted(FILES))
def test_data_files(name: str) -> None:
    @FUZZ
    @given(st.one_of(damaged(FILES[name]), st.binary(max_size=300), damaged(gzip.compress(FILES[name]))))
    @example(b"")
    @example(FILES[name])
    def check(data: bytes) -> None:
        reads: list[Callable[[io.BytesIO], Any]] = [
            lambda file: read_file(name, file.getvalue()),
            lambda file: READERS[name].describe(file, 5),
            lambda file: detect_format("f", file),
        ]
        for read in reads:
            try:
                read(io.BytesIO(data))
            except (ValueError, OSError):
                pass

    check()


@FUZZ
@given(st.lists(st.one_of(st.sampled_from(GOOD), st.binary(max_size=80), damaged(GOOD[1])), min_size=1, max_size=12))
def test_records(records: list[bytes]) -> None:
    """In an intact file each record is read or rejected, and the good ones among bad ones are what they were."""
    ids, rejected = read_file("tfrecord", framed(records))
    assert len(ids) + rejected == len(records)
    for good in set(records) & set(GOOD):
        name = tf.train.Example.FromString(good).features.feature["name"].bytes_list.value[0].decode()
        assert ids.count(name) >= records.count(good)


@FUZZ
@given(damaged(framed(GOOD)))
def test_framing(data: bytes) -> None:
    """No damaged record passes for a whole one: what is given was written, in its order, or is told as damaged."""
    found = list(read_records(io.BytesIO(data)))
    for item in (item for item in found if isinstance(item, bytes)):
        # Only bytes that stand in the file with their own right checksums: a forged one is beyond 1 in 2^32.
        assert framed([item]) in data
    assert all(isinstance(item, (bytes, DamagedRecord)) for item in found)


def survives(data: bytes, path: pathlib.Path, read: Callable[[], Any]) -> None:
    path.write_bytes(data)
    try:
        read()
    except (ValueError, OSError):
        pass


ARRAYS = {"inverse": np.arange(9.0).reshape(3, 3), "eigenvalues": np.arange(3.0)}
META = {"curvature": "gauss_newton", "kind": "dense", "damping": 0.1, "examples": 5, "size": 3, "fingerprint": "f"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("saved")
    save_arrays(str(folder), ARRAYS, META)
    return folder


@pytest.mark.parametrize("name", ["meta.json", "inverse.npy", "eigenvalues.npy"])
def test_saved_curvature(saved: pathlib.Path, name: str) -> None:
    whole = (saved / name).read_bytes()

    @FUZZ
    @given(st.one_of(damaged(whole), st.binary(max_size=200)))
    def check(data: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(saved, folder, dirs_exist_ok=True)
            path = pathlib.Path(folder)
            survives(data, path / name, lambda: load_preconditioner(folder))
            try:
                arrays, _ = load_arrays(folder)
            except (ValueError, OSError):
                return
            for key, array in arrays.items():  # whatever loads is what was saved, to the bit
                assert np.array_equal(array, ARRAYS[key])

    check()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def other_json(draw: st.DrawFn, content: dict[str, Any]) -> bytes:
    """A JSON document like `content`, with other values at some of its places."""
    copy = json.loads(json.dumps(content))
    for _ in range(draw(st.integers(1, 3))):
        parent, place, at = copy, copy, None
        while isinstance(place, (dict, list)) and place:
            parent, at = place, draw(st.sampled_from(sorted(place) if isinstance(place, dict) else list(range(len(place)))))
            place = parent[at]
            if draw(st.booleans()):
                break
        if at is None:
            break
        if isinstance(parent, dict) and draw(st.booleans()):
            del parent[at]
        else:
            parent[at] = draw(JSON)
    return json.dumps(copy).encode()


def test_meta_with_other_values(saved: pathlib.Path) -> None:
    content = json.loads((saved / "meta.json").read_text())

    @FUZZ
    @given(st.one_of(other_json(content), JSON.map(lambda value: json.dumps(value).encode())))
    def check(data: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(saved, folder, dirs_exist_ok=True)
            survives(data, pathlib.Path(folder) / "meta.json", lambda: load_preconditioner(folder))

    check()


@FUZZ
@given(st.dictionaries(st.sampled_from(sorted(META)), JSON))
def test_description_of_an_operator(changes: dict[str, Any]) -> None:
    try:
        operator = preconditioner_from(ARRAYS, {**META, **changes})
    except ValueError:
        return
    assert operator.examples >= 0 and operator.meta["size"] >= 1 and operator.meta["damping"] >= 0


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("manifest")
    written = [
        WrittenFile("top_k", "top_k/block-0.parquet", 3, 100),
        WrittenFile("index", "index/shard-0.parquet", 3, 100, SourceFile("train-0", 7, "00")),
    ]
    write_manifest(str(folder), written, {"counts": {"score": {"shards": 1, "examples": 3, "rejected": 0}}, "config": {"top_k": 3}})
    return json.loads((folder / "manifest.json").read_text())


def test_manifest(manifest: dict[str, Any]) -> None:
    whole = json.dumps(manifest).encode()

    @FUZZ
    @given(st.one_of(damaged(whole), other_json(manifest), st.binary(max_size=100), JSON.map(lambda value: json.dumps(value).encode())))
    @example(whole)
    def check(data: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            (pathlib.Path(folder) / "manifest.json").write_bytes(data)
            try:
                found = read_manifest(folder)
                written = list(written_files(folder, found))
                paths = [*table_files(folder, "top_k"), *table_files(folder, "index")]
            except ValueError:
                return
            root = pathlib.Path(folder).resolve()
            assert all(root in pathlib.Path(path).resolve().parents for path in paths)
            assert all(isinstance(file.path, str) and root in (root / file.path).resolve().parents for file in written)

    check()


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_index_files(dtype: IndexDtype) -> None:
    buffer = io.BytesIO()
    table = index_table(np.array(["a", "b", "c"], dtype=object), np.arange(6.0).reshape(3, 2), dtype)
    pq.write_table(table, buffer)

    @FUZZ
    @given(st.one_of(damaged(buffer.getvalue()), st.binary(max_size=200)))
    @example(buffer.getvalue())
    def check(data: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "shard.parquet"
            survives(data, path, lambda: [stored_vectors(rows) for rows in iterate_table(str(path))])
            survives(data, path, lambda: read_facts(str(path)))

    check()


NO_INDEX: list[dict[str, Any]] = [
    {"train_id": ["a"]},
    {"other": [1]},
    {"train_id": [1], "vector": [1]},
    {"train_id": ["a"], "vector": [["x"]]},
    {"train_id": ["a"], "embedding": [[1.0]]},
    {"train_id": ["a"], "scale": [1.0], "embedding": pa.array([b"ab"], pa.binary(2))},
    {"train_id": ["a"], "scale": [1.0], "embedding": pa.array([b"ab"], pa.binary(2)), "last_bits": pa.array([b"ab"], pa.binary(2))},
]


@pytest.mark.parametrize("columns", NO_INDEX)
def test_a_table_that_is_no_index(columns: dict[str, Any]) -> None:
    (rows,) = pa.table(columns).to_batches()
    with pytest.raises(ValueError):
        stored_vectors(rows)
