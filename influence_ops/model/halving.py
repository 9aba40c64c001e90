"""Batches that are too large for the device's memory, used in halves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, Self, TypeVar

import numpy as np

from beam_influence.influence_ops.device import tf
from beam_influence.influence_ops.reading.example_batch import Rejected


class Divisible(Protocol):
    """Examples of which some can be used at a time."""

    @property
    def ids(self) -> np.ndarray: ...

    def __len__(self) -> int: ...

    def select(self, keep: np.ndarray) -> Self: ...


_D = TypeVar("_D", bound=Divisible)


class Halving:
    """Uses batches whole while they fit; the size that did fit is kept for those to come.

    Only TensorFlow's `ResourceExhaustedError` is an answer to a size: every other error is the caller's.

    Attributes:
      largest: at most so many examples are tried at once; None: as many as come.
    """

    def __init__(self) -> None:
        self.largest: int | None = None

    def use(self, batch: _D, use: Callable[[_D], list[Rejected]]) -> tuple[list[Rejected], int]:
        """What `use` gives for all examples of `batch`, and how often a part had to be halved.

        Args:
          use: uses some examples, or leaves no trace when it raises.

        Raises:
          MemoryError: a single example is too large; the message says what to change.
        """
        rejected: list[Rejected] = []
        halved = 0
        waiting = list(self._parts(batch))
        while waiting:
            part = waiting.pop(0)
            failed: str | None = None
            try:
                rejected += use(part)
            except tf.errors.ResourceExhaustedError as error:
                failed = str(error)
            # Outside of the handler, which would keep the failed attempt's tensors alive.
            if failed is None:
                continue
            if len(part) == 1:
                first = next(iter(failed.splitlines()), "")
                raise MemoryError(
                    f"example {part.ids[0]} alone is too large for the device's memory; watch fewer weights (--weights), use fewer test "
                    f"points in a run, --precision native, or a device with more memory ({first[:200]})"
                )
            halved += 1
            self.largest = (len(part) + 1) // 2
            waiting = [smaller for larger in (part, *waiting) for smaller in self._parts(larger)]
        return rejected, halved

    def _parts(self, batch: _D) -> Iterator[_D]:
        size = self.largest or max(len(batch), 1)
        if len(batch) <= size:
            yield batch
            return
        for start in range(0, len(batch), size):
            yield batch.select(np.arange(start, min(start + size, len(batch))))
