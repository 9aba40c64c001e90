"""Decoded examples come back bit for bit; what can't be kept so is told, and half a file is no file."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pytest

from beam_influence.influence_ops.reading.decoded_file import DecodedWriter, NotKept, read_decoded
from beam_influence.influence_ops.reading.example_batch import ExampleBatch, Rejected, place_ids

REJECTED = [Rejected("a.csv", 4, "decode", "wrong_shape", "é"), Rejected("a.csv", 5, "read", "truncated", "")]


def batch(rows: int, seed: int = 0) -> ExampleBatch:
    generator = np.random.default_rng(seed)
    image = generator.normal(size=(rows, 3, 2)).astype(np.float32)
    image[0, 0, 0] = np.nan
    words = np.array([[b"a\0", b""], [b"\xff", b"c"]] * rows, dtype=object)[:rows]
    groups = np.array(["ä", "", "c"] * rows, dtype=object)[:rows]
    weights = generator.random(rows)
    places = np.arange(rows)
    return ExampleBatch(place_ids("a.csv", places), {"image": image, "words": words}, places % 2 == 0, weights, groups, places, "a.csv")


def written(*batches: tuple[ExampleBatch, list[Rejected]], with_ids: bool = False) -> bytes:
    file = io.BytesIO()
    writer = DecodedWriter(file, with_ids)
    for one in batches:
        writer.add(*one)
    writer.end("a.csv")
    return file.getvalue()


@pytest.mark.parametrize("with_ids", [False, True])
def test_what_is_read_is_what_was_written(with_ids: bool) -> None:
    nothing = batch(1).select(np.zeros(1, bool))
    given = [(batch(7), REJECTED[:1]), (nothing, REJECTED), (batch(3, seed=1), []), (nothing, REJECTED[1:])]
    found = list(read_decoded(pa.py_buffer(written(*given, with_ids=with_ids))))
    assert [rejected for _, rejected in found] == [rejected for _, rejected in given]
    for (mine, _), (expected, _) in zip(found, given, strict=True):
        assert mine.file == "a.csv" and len(mine) == len(expected) and list(mine.ids) == list(expected.ids)
        if not len(mine):
            continue
        pairs = [(mine.inputs[name], expected.inputs[name]) for name in ("image", "words")]
        pairs += [(getattr(mine, name), getattr(expected, name)) for name in ("labels", "weights", "groups", "positions")]
        for one, other in pairs:
            assert one.dtype == other.dtype and one.shape == other.shape
            assert one.tolist() == other.tolist() if one.dtype == object else one.tobytes() == other.tobytes()


def test_a_file_without_a_usable_row_keeps_their_reasons() -> None:
    nothing = batch(1).select(np.zeros(1, bool))
    ((found, rejected),) = read_decoded(pa.py_buffer(written((nothing, REJECTED[:1]), (nothing, REJECTED[1:]))))
    assert len(found) == 0 and rejected == REJECTED


def test_half_a_file_is_refused() -> None:
    whole = written((batch(3), []), (batch(3), []))
    for length in (len(whole) - 300, len(whole) // 2):
        with pytest.raises(ValueError, match="cut off"):
            list(read_decoded(pa.py_buffer(whole[:length])))


def test_what_can_not_be_kept_is_told() -> None:
    writer = DecodedWriter(io.BytesIO(), False, most_bytes=300)
    writer.add(batch(3), [])
    with pytest.raises(NotKept, match="more bytes than its share"):
        writer.add(batch(3), [])
    other = ExampleBatch(place_ids("", np.arange(2)), np.zeros((2, 3)), np.zeros(2), positions=np.arange(2))
    with pytest.raises(NotKept, match="other arrays"):
        writer.add(other, [])
    with pytest.raises(NotKept, match="objects of the kind int"):
        DecodedWriter(io.BytesIO(), False).add(ExampleBatch(other.ids, np.array([1, b""], object), np.zeros(2)), [])
