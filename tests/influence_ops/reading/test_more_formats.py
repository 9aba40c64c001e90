"""Arrow and Avro files, compressed files, and CSV with other separators: the rows that were written, span by span too, and damage told."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pathlib
import zlib
from collections.abc import Callable
from typing import Any

import fastavro
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.ipc as ipc
import pytest
import tensorflow as tf
import zstandard

from beam_influence.influence_ops.reading import READERS, detect_format
from beam_influence.influence_ops.reading.columns import Reasons, dense_column
from beam_influence.influence_ops.reading.features import Feature, Stored
from tests.influence_ops.reading.test_spans import WORD, Y, read, records, split
from tests.pipelines.digits_job import framed

ROWS = [
    {"y": row, "word": f"wört {row}" * (row % 5), "x": [0.5 * row, 1.0], "image": {"bytes": b"%d" % row, "path": None}} for row in range(40)
]
X, IMAGE = Feature("x", "float", (2,)), Feature("image.bytes", "bytes", ())
WANTED = [(row["y"], {"y": row["y"], "word": row["word"].encode(), "x": row["x"], "image.bytes": b"%d" % row["y"]}) for row in ROWS]


def stream(dictionary: bool = False) -> bytes:
    table = pa.Table.from_pylist(ROWS)
    if dictionary:
        table = table.set_column(1, "word", table["word"].dictionary_encode())
    sink = io.BytesIO()
    with ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)
    return sink.getvalue()


def ipc_file() -> bytes:
    sink = io.BytesIO()
    feather.write_feather(pa.Table.from_pylist(ROWS), sink, compression="lz4", chunksize=7)
    return sink.getvalue()


AVRO = {"type": "record", "name": "row", "fields": [
    {"name": "y", "type": ["null", "int"]},
    {"name": "word", "type": "string"},
    {"name": "x", "type": {"type": "array", "items": "double"}},
    {"name": "image", "type": {"type": "record", "name": "image", "fields": [
        {"name": "bytes", "type": "bytes"}, {"name": "path", "type": ["null", "string"]}]}},
]}  # fmt: skip


def avro(codec: str = "deflate", rows: list[Any] = ROWS) -> bytes:
    sink = io.BytesIO()
    fastavro.writer(sink, AVRO, rows, codec=codec, sync_interval=150, sync_marker=b"0123456789abcdef")
    return sink.getvalue()


def as_bytes(rows: list[tuple[int, Any]]) -> list[tuple[int, Any]]:
    """Texts as UTF-8: whether a column holds text or bytes is the file's own choice."""
    return [
        (at, {key: one.encode() if isinstance(one, str) else one for key, one in row.items()} if isinstance(row, dict) else row)
        for at, row in rows
    ]


@pytest.mark.parametrize(
    ("name", "data", "parts"),
    [
        ("arrow", stream(), 6),
        ("arrow", stream(dictionary=True), 1),
        ("arrow", ipc_file(), 6),
        ("avro", avro(), 0),
        ("avro", avro("null"), 0),
    ],
)
def test_every_row_and_every_span(name: str, data: bytes, parts: int) -> None:
    features = [Y, WORD, X, IMAGE]
    assert as_bytes(read(name, data, features)) == WANTED
    spans = split(name, data, 1)
    assert len(spans) == parts or (not parts and len(spans) > 5)
    assert as_bytes(read(name, data, features, spans)) == WANTED
    assert detect_format("part-0", io.BytesIO(data)) == name
    described = READERS[name].describe(io.BytesIO(data), 20)
    assert described == {
        "y": Stored("int", ()), "word": Stored("bytes", ()), "x": Stored("float", (2,)), "image.bytes": Stored("bytes", ()),
    }  # fmt: skip
    assert read(name, data, [Feature("other", "int", ())])[:1] == [(0, {"": None})]
    assert read(name, b"", [Y]) == []


def test_avro_with_nulls_and_a_union_of_kinds() -> None:
    kinds = {"type": "record", "name": "row", "fields": [{"name": "y", "type": ["null", "int", "string", "double"]}]}
    sink = io.BytesIO()
    fastavro.writer(sink, kinds, [{"y": 1}, {"y": None}, {"y": "one"}, {"y": 4}])
    assert read("avro", sink.getvalue(), [Y]) == [
        (0, {"y": 1}), (1, {"y": None}), (2, ("decode", "wrong_type", "feature 'y' holds string, most examples int64")), (3, {"y": 4}),
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "data"), [("arrow", stream()), ("arrow", ipc_file()), ("avro", avro())])
def test_damage_loses_what_follows_and_tells(name: str, data: bytes) -> None:
    cut = data[: len(data) // 2]
    middle = bytearray(data)
    middle[len(data) // 2 : len(data) // 2 + 400] = b"\x77" * 400
    for damaged in (cut, bytes(middle)):
        found = as_bytes(read(name, damaged, [Y, WORD, X, IMAGE]))
        assert 5 < len(found) < len(ROWS) and found[:-1] == WANTED[: len(found) - 1]
        assert found[-1][0] == len(found) - 1 and found[-1][1][:2] == ("read", f"damaged_{name}")
    for garbage in (b"x", data[:30], b"\xff\xff\xff\xff" + b"\x7f" * 60):
        ((at, error),) = read(name, garbage, [Y])
        assert (at, error[:2]) == (0, ("read", f"damaged_{name}")) and READERS[name].describe(io.BytesIO(garbage), 9) == {}


COMPRESSED: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zstd": zstandard.compress, "zlib": zlib.compress,
}  # fmt: skip


@pytest.mark.parametrize("compression", COMPRESSED)
def test_compressed_records_and_csv(compression: str) -> None:
    compress, data = COMPRESSED[compression], framed(records(30))
    wanted = [(row, {"y": [row]}) for row in range(30)]
    both = compress(data[:700]) + compress(data[700:])
    for compressed in (compress(data), *((both,) if compression != "zlib" else ())):
        assert read("tfrecord", compressed, [Y]) == wanted and len(split("tfrecord", compressed, 1)) == 1
    found = read("tfrecord", compress(data)[:-5], [Y])
    assert found[:-1] == wanted[: len(found) - 1] and found[-1][1][:2] == ("read", f"damaged_{compression}")
    (rows,) = READERS["tfrecord"]([Y]).pick(io.BytesIO(compress(data)), [7])
    assert rows.positions.tolist() == [7]
    if compression == "zlib":  # its beginning can be a text's
        return
    text = compress(b"y,word\n" + b"".join(b"%d,a%d\n" % (row, row) for row in range(30)))
    assert read("csv", text, [Y])[-1] == (29, {"y": 29}) and len(split("csv", text, 1)) == 1
    assert read("csv", text[:-6], [Y])[-1][1][1] == "damaged_csv"


def test_tensorflows_own_zlib(tmp_path: pathlib.Path) -> None:
    with tf.io.TFRecordWriter(str(tmp_path / "part"), tf.io.TFRecordOptions("ZLIB")) as writer:
        for record in records(30):
            writer.write(record)
    assert read("tfrecord", (tmp_path / "part").read_bytes(), [Y]) == [(row, {"y": [row]}) for row in range(30)]


@pytest.mark.parametrize("separator", [b"\t", b";", b"|", b","])
def test_what_is_between_cells_is_found_out(separator: bytes) -> None:
    rows = [b"y,word,z", *(b'%d,"a%s\nb",1' % (row, separator) for row in range(9)), b"9,c,1,too many", b"10,d,1", b""]
    data = b"\n".join(row.replace(b",", separator) for row in rows)
    word = f"a{separator.decode()}\nb".encode()
    found = read("csv", data, [Y, WORD], split("csv", data, 1))
    assert found == read("csv", data, [Y, WORD]) and found[3] == (3, {"y": 3, "word": word})
    assert found[9][1][1] == "wrong_columns" and found[10] == (10, {"y": 10, "word": b"d"})
    assert list(READERS["csv"].describe(io.BytesIO(data), 99)) == ["y", "word", "z"]


def test_a_header_that_has_other_separators_in_its_names() -> None:
    assert list(READERS["csv"].describe(io.BytesIO(b"a;b;c,y\n1,2\n3,4\n"), 9)) == ["a;b;c", "y"]
    assert list(READERS["csv"].describe(io.BytesIO(b'"a,b";y\n"1,5";2\n"3,5";4\n'), 9)) == ["a,b", "y"]
    assert list(READERS["csv"].describe(io.BytesIO(b"y\n1\n2\n"), 9)) == ["y"]


def test_views_of_texts_as_polars_writes_them() -> None:
    """A scalar, one of them null, and lists: described and read as other texts."""
    words = pa.array(["a", None, "c"]).cast(pa.string_view())
    lists = pa.array([["x"], ["y"], ["z"]], pa.list_(pa.string_view()))
    table = pa.record_batch({"word": words, "list": lists, "bytes": pa.array([b"1", b"2", b"3"]).cast(pa.binary_view())})
    sink = io.BytesIO()
    with ipc.new_stream(sink, table.schema) as writer:
        writer.write_batch(table)
    found = READERS["arrow"].describe(io.BytesIO(sink.getvalue()), 10)
    assert found == {"word": Stored("bytes", ()), "list": Stored("bytes", (1,)), "bytes": Stored("bytes", ())}
    features = [Feature("word", "bytes", ()), Feature("list", "bytes", (1,)), Feature("bytes", "bytes", ())]
    (rows,) = READERS["arrow"](features).read(io.BytesIO(sink.getvalue()), 10)
    reasons: Reasons = {}
    columns = [dense_column(rows.table, feature, False, reasons).ravel().tolist() for feature in features]
    assert columns[1:] == [[b"x", b"y", b"z"], [b"1", b"2", b"3"]] and columns[0][::2] == [b"a", b"c"]
    assert {row: error for row, (error, _) in reasons.items()} == {1: "missing_feature"}


@pytest.mark.parametrize("lists", [False, True])
def test_integers_beyond_64_bits_with_a_sign_are_refused(lists: bool) -> None:
    numbers = pa.array([2**63 - 1, 2**63, 5], pa.uint64())
    column = pa.ListArray.from_arrays(pa.array([0, 1, 2, 3], pa.int32()), numbers) if lists else numbers
    reasons: Reasons = {}
    found = dense_column(pa.record_batch({"i": column}), Feature("i", "int", ()), False, reasons)
    assert found.ravel()[[0, 2]].tolist() == [2**63 - 1, 5]
    assert reasons == {1: ("wrong_type", "feature 'i' holds uint64 values that are no int of 64 bits")}
