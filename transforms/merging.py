"""The CombineFn that every combined statistic shares: parts of one key are merged into a copy of the first."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, TypeVar

import apache_beam as beam

Part = TypeVar("Part")


class MergingCombineFn(beam.CombineFn, Generic[Part]):
    """A subclass says how a part is made one's own (`copy`) and how another is merged into it (`merge`)."""

    def copy(self, part: Part) -> Part:
        """A part that may be changed: the element itself may be given to others too."""
        raise NotImplementedError

    def merge(self, own: Part, other: Part) -> Part:
        """Both as one; `own` may be changed, `other` may not."""
        raise NotImplementedError

    def create_accumulator(self) -> Part | None:
        return None

    def add_input(self, accumulator: Part | None, element: Part) -> Part:
        return self.copy(element) if accumulator is None else self.merge(accumulator, element)

    def merge_accumulators(self, accumulators: Iterable[Part | None]) -> Part | None:
        total = None
        for part in accumulators:
            if part is not None:
                total = self.add_input(total, part)
        return total

    def extract_output(self, accumulator: Part | None) -> Part:
        assert accumulator is not None  # every key has an element
        return accumulator
