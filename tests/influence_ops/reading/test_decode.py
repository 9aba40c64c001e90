"""Decoding tf.Examples: equal to `tf.io.parse_example`, and bad ones rejected one by one."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from beam_influence.influence_ops.reading import READERS
from beam_influence.influence_ops.reading.decode import RowDecoder
from beam_influence.influence_ops.reading.example_batch import ExampleBatch, Rejected
from beam_influence.influence_ops.reading.features import Feature, FeatureSpec
from beam_influence.influence_ops.reading.tfrecord_framing import write_records

X, TOKEN, LABEL = Feature("x", "float", (2, 3)), Feature("token", "int", (2,)), Feature("label", "int", ())
SPEC = FeatureSpec((("x", X),), (LABEL,))


def example(**features: Any) -> bytes:
    """A serialized tf.Example of lists of float, int or bytes; None leaves a feature without a value."""
    found = tf.train.Example()
    for name, values in features.items():
        feature = found.features.feature[name]
        if values is None:
            feature.SetInParent()
        elif isinstance(values[0], bytes):
            feature.bytes_list.value.extend(values)
        elif isinstance(values[0], float):
            feature.float_list.value.extend(values)
        else:
            feature.int64_list.value.extend(values)
    return found.SerializeToString()


def good(number: int, **more: Any) -> bytes:
    features = {"x": [number + 0.1 * step for step in range(6)], "token": [number, -number], "label": [number % 3]}
    return example(**(features | more))


def decode(records: list[bytes], spec: FeatureSpec = SPEC, size: int = 100, data: bytes | None = None):
    """The batches of a file of these records, and all that were rejected."""
    file = io.BytesIO()
    write_records(file, records)
    file = io.BytesIO(file.getvalue() if data is None else data)
    decoder = RowDecoder(spec)
    batches: list[ExampleBatch] = []
    rejected: list[Rejected] = []
    for rows in READERS[spec.format](spec.features()).read(file, size):
        batch, bad = decoder.decode(rows, "f")
        batches.append(batch)
        rejected += bad
    return batches, rejected


@pytest.mark.parametrize("size", [1, 4, 100])
def test_equals_tensorflows_parser(size):
    random = np.random.default_rng(0)
    records = [good(number, x=random.standard_normal(6).tolist(), word=[f"w{number}".encode()]) for number in range(9)]
    spec = FeatureSpec((("x", X), ("token", TOKEN), ("word", Feature("word", "bytes", ()))), (LABEL,))
    batches, rejected = decode(records, spec, size)
    wanted = tf.io.parse_example(
        records,
        {
            "x": tf.io.FixedLenFeature([2, 3], tf.float32),
            "token": tf.io.FixedLenFeature([2], tf.int64),
            "word": tf.io.FixedLenFeature([], tf.string),
            "label": tf.io.FixedLenFeature([], tf.int64),
        },
    )
    assert not rejected
    for name in ("x", "token", "word"):
        found = np.concatenate([batch.inputs[name] for batch in batches])  # type: ignore[call-overload]
        reference = wanted[name].numpy()
        assert found.dtype == reference.dtype
        assert found.shape == reference.shape
        assert (found == reference).all()
    assert np.concatenate([np.asarray(batch.labels) for batch in batches]).tolist() == wanted["label"].numpy().tolist()
    assert [str(i) for batch in batches for i in batch.ids] == [f"f:{number}" for number in range(9)]
    assert [len(batch) for batch in batches] == [min(size, 9 - start) for start in range(0, 9, size)]


BAD = {
    "missing": (example(label=[1]), "missing_feature", "'x' is missing"),
    "empty": (example(), "missing_feature", "is missing"),
    "no_value": (good(1, x=None), "missing_feature", "'x' is missing"),
    "too_short": (good(1, x=[1.0] * 5), "wrong_shape", r"'x' has 5 values; 6 are needed for shape \[2, 3\]"),
    "too_long": (good(1, x=[1.0] * 7), "wrong_shape", "'x' has 7 values; 6 are needed"),
    "two_labels": (good(1, label=[1, 2]), "wrong_shape", "'label' has 2 values; 1 are needed"),
    "no_label": (good(1, label=None), "missing_feature", "'label' is missing"),
    "wrong_type": (good(1, x=[1, 2, 3, 4, 5, 6]), "not_an_example", "not a tf.Example"),
    "wrong_label_type": (good(1, label=[b"1"]), "not_an_example", "not a tf.Example"),
    "garbage": (b"\xff\xfe these bytes are no message", "not_an_example", "not a tf.Example"),
    "cut_message": (good(1)[:-3], "not_an_example", "not a tf.Example"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("size", [1, 3, 100])
def test_a_bad_example_is_rejected_and_the_others_are_exact(name, size):
    record, error, message = BAD[name]
    records = [good(0), good(1), record, good(3), record, good(5)]
    batches, rejected = decode(records, size=size)
    assert [(r.file, r.index, r.stage, r.error) for r in rejected] == [("f", 2, "decode", error), ("f", 4, "decode", error)]
    for reject in rejected:
        pytest.raises(ValueError, _raise, reject.message).match(message)
    good_ones = [batch for batch in batches if len(batch)]
    inputs = np.concatenate([np.asarray(batch.inputs) for batch in good_ones])
    wanted = tf.io.parse_example([good(n) for n in (0, 1, 3, 5)], {"x": tf.io.FixedLenFeature([2, 3], tf.float32)})["x"].numpy()
    assert inputs.tolist() == wanted.tolist()
    positions = [int(p) for batch in good_ones if batch.positions is not None for p in batch.positions]
    assert positions == [0, 1, 3, 5]
    assert [i for batch in good_ones for i in batch.ids] == [f"f:{position}" for position in positions]


def _raise(message: str) -> None:
    raise ValueError(message)


def test_all_kinds_of_bad_examples_in_one_batch():
    records = [good(0)]
    for record, _, _ in BAD.values():
        records += [record, good(len(records))]
    batches, rejected = decode(records)
    assert {r.index: r.error for r in rejected} == {2 * n + 1: error for n, (_, error, _) in enumerate(BAD.values())}
    assert sum(len(batch) for batch in batches) == len(BAD) + 1


def test_damaged_records_keep_their_positions():
    file = io.BytesIO()
    write_records(file, [good(n) for n in range(4)])
    data = bytearray(file.getvalue())
    data[16 + len(good(0)) + 12] ^= 1  # in the data of the second record
    batches, rejected = decode([], data=bytes(data[:-5]))
    assert [(r.index, r.stage, r.error) for r in rejected] == [(1, "read", "damaged_data"), (3, "read", "truncated")]
    assert [i for batch in batches for i in batch.ids] == ["f:0", "f:2"]


def test_a_batch_without_a_good_example():
    batches, rejected = decode([b"\xff", example()])
    assert len(rejected) == 2
    assert [len(batch) for batch in batches] == [0]
    assert np.asarray(batches[0].inputs).shape == (0, 2, 3)


def test_ids_groups_and_weights():
    spec = FeatureSpec(
        (("x", X),), (LABEL,), Feature("key", "bytes", ()), Feature("token", "int", ()), Feature("weight", "float", ())
    )
    records = [
        good(0, key=[b"a"], token=[7], weight=[0.5]),
        good(1, key=["é".encode()], token=[-1], weight=[2.0]),
        good(2, key=[b"\xff"], token=[7], weight=[1.0]),
        good(3, key=[b"d"], token=[7]),
        good(4, token=[7], weight=[1.0]),
        good(5, key=[b"f"], weight=[1.0], token=[7, 8]),
    ]
    (batch,), rejected = decode(records, spec)
    assert batch.ids.tolist() == ["a", "é", "\\xff"]  # bytes that are no UTF-8 stay distinct
    assert batch.groups is not None
    assert batch.groups.tolist() == ["7", "-1", "7"]
    assert batch.weights is not None
    assert batch.weights.dtype == np.float64
    assert batch.weights.tolist() == [0.5, 2.0, 1.0]
    assert [(r.index, r.error) for r in rejected] == [(3, "missing_feature"), (4, "missing_feature"), (5, "wrong_shape")]


def test_features_put_together():
    both = Feature("token+x", "float", (8,), parts=(TOKEN, X))
    (batch,), rejected = decode([good(3)], FeatureSpec((("in", both),), (LABEL,)))
    assert not rejected
    assert np.asarray(batch.inputs).tolist() == [[3.0, -3.0, *np.array([3 + 0.1 * step for step in range(6)], np.float32).tolist()]]


def test_several_labels_come_by_name():
    (batch,), _ = decode([good(4)], FeatureSpec((("x", X),), (LABEL, TOKEN)))
    assert isinstance(batch.labels, dict)
    assert {name: array.tolist() for name, array in batch.labels.items()} == {"label": [1], "token": [[4, -4]]}
