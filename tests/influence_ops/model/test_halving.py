"""Batches that don't fit: used in halves, once each, counted, and nothing of a failed attempt stays."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from beam_influence.influence_ops.model.halving import Halving
from beam_influence.influence_ops.reading.example_batch import ExampleBatch, Rejected


def batch(size: int) -> ExampleBatch:
    ids = np.array([f"e:{row}" for row in range(size)], dtype=object)
    return ExampleBatch(ids, np.arange(size, dtype=np.float64)[:, None], np.zeros(size), positions=np.arange(size), file="e")


class Device:
    """Uses at most `room` examples at once."""

    def __init__(self, room: int):
        self.room = room
        self.used: list[str] = []
        self.tried: list[int] = []

    def use(self, part: ExampleBatch) -> list[Rejected]:
        self.tried.append(len(part))
        if len(part) > self.room:
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor with shape[1024,1024]")
        self.used += part.ids.tolist()
        return [part.reject(0, "not_finite", "its loss is nan")]


@pytest.mark.parametrize("room", [1, 3, 7, 12, 13])
def test_each_example_once_in_order(room: int) -> None:
    device, halving = Device(room), Halving()
    rejected, halved = halving.use(batch(13), device.use)
    assert device.used == batch(13).ids.tolist()
    assert max(size for size in device.tried if size <= room) <= room
    assert halved == sum(size > room for size in device.tried)
    assert [r.index for r in rejected] == sorted({r.index for r in rejected})
    # The size that fitted is kept: the next batch fails no more.
    device.used.clear()
    assert halving.use(batch(13), device.use)[1] == 0
    assert device.used == batch(13).ids.tolist()


def test_nothing_is_halved_while_it_fits() -> None:
    device, halving = Device(100), Halving()
    assert halving.use(batch(13), device.use)[1] == 0 and device.tried == [13] and halving.largest is None


def test_one_example_that_does_not_fit_ends_it_with_the_mend() -> None:
    with pytest.raises(MemoryError, match=r"example e:0 alone is too large .*--weights.*OOM when allocating"):
        Halving().use(batch(5), Device(0).use)


def test_other_errors_are_not_about_size() -> None:
    def use(part: ExampleBatch) -> list[Rejected]:
        raise tf.errors.InvalidArgumentError(None, None, "wrong")

    halving = Halving()
    with pytest.raises(tf.errors.InvalidArgumentError):
        halving.use(batch(5), use)
    assert halving.largest is None
