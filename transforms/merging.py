"""The CombineFn that everything summed over workers shares: elements of one key are merged into a copy of the first."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Generic, TypeVar

import apache_beam as beam
from apache_beam.typehints.decorators import with_input_types, with_output_types

from beam_influence.transforms.elements import Part

Element = TypeVar("Element")


class MergingCombineFn(beam.CombineFn, Generic[Element]):
    """A subclass says how an element is copied, and how another is merged into the copy."""

    def copy(self, element: Element) -> Element:
        """An equal element that may be changed: the first itself may be given to others too."""
        raise NotImplementedError

    def merge(self, total: Element, element: Element) -> Element:
        """Both as one; `total` may be changed, `element` may not."""
        raise NotImplementedError

    def create_accumulator(self) -> Element | None:
        return None

    def add_input(self, accumulator: Element | None, element: Element) -> Element:
        return self.copy(element) if accumulator is None else self.merge(accumulator, element)

    def merge_accumulators(self, accumulators: Iterable[Element | None]) -> Element | None:
        total = None
        for accumulator in accumulators:
            if accumulator is not None:
                total = self.add_input(total, accumulator)
        return total

    def extract_output(self, accumulator: Element | None) -> Element:
        assert accumulator is not None  # every key has an element
        return accumulator


@with_input_types(Part)
@with_output_types(Part)
class PartsCombineFn(MergingCombineFn[Part]):
    """Merges an output's parts of one key."""

    def copy(self, element: Part) -> Part:
        return copy.copy(element)

    def merge(self, total: Part, element: Part) -> Part:
        total.merge(element)
        return total
