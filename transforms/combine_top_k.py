"""Partial top-k tables to the one of all training data, for each block of queries."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable

import apache_beam as beam
from apache_beam import pvalue
from apache_beam.typehints.decorators import with_input_types, with_output_types

from transforms.elements import TopKPart
from transforms.typed import collection


@with_input_types(TopKPart)
@with_output_types(TopKPart)
class TopKCombineFn(beam.CombineFn):
    """Merges tables of one block of queries."""

    def create_accumulator(self) -> TopKPart | None:
        return None

    def add_input(self, accumulator: TopKPart | None, element: TopKPart) -> TopKPart:
        if accumulator is None:
            # Tables replace their arrays when they take others in, so a shallow copy keeps the element as it is.
            return TopKPart(copy.copy(element.top))
        accumulator.top.merge(element.top)
        return accumulator

    def merge_accumulators(self, accumulators: Iterable[TopKPart | None]) -> TopKPart | None:
        total = None
        for part in accumulators:
            if part is not None:
                total = self.add_input(total, part)
        return total

    def extract_output(self, accumulator: TopKPart | None) -> TopKPart:
        assert accumulator is not None  # every key has an element
        return accumulator


@dataclasses.dataclass
class CombineTopK(beam.PTransform):
    """The global top-k.

    In: (block key, `TopKPart`). Out: the same, once for each key.
    """

    def expand(self, parts: pvalue.PCollection[tuple[str, TopKPart]]) -> pvalue.PCollection[tuple[str, TopKPart]]:
        return collection(parts | "Merge" >> beam.CombinePerKey(TopKCombineFn()))
