"""Partial group sums to those of all training data, for each block of queries."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable

import apache_beam as beam
from apache_beam import pvalue
from apache_beam.typehints.decorators import with_input_types, with_output_types

from influence_ops.group_sums import GroupSums
from transforms.elements import GroupPart
from transforms.typed import collection


@with_input_types(GroupPart)
@with_output_types(GroupPart)
class GroupSumsCombineFn(beam.CombineFn):
    """Adds sums of one block of queries."""

    def create_accumulator(self) -> GroupPart | None:
        return None

    def add_input(self, accumulator: GroupPart | None, element: GroupPart) -> GroupPart:
        if accumulator is None:
            own = GroupSums(element.sums.queries)
            own.sums, own.counts = copy.copy(element.sums.sums), copy.copy(element.sums.counts)
            return GroupPart(own)
        accumulator.sums.merge(element.sums)
        return accumulator

    def merge_accumulators(self, accumulators: Iterable[GroupPart | None]) -> GroupPart | None:
        total = None
        for part in accumulators:
            if part is not None:
                total = self.add_input(total, part)
        return total

    def extract_output(self, accumulator: GroupPart | None) -> GroupPart:
        assert accumulator is not None  # every key has an element
        return accumulator


@dataclasses.dataclass
class SumGroups(beam.PTransform):
    """The global group sums.

    In: (block key, `GroupPart`). Out: the same, once for each key.
    """

    def expand(self, parts: pvalue.PCollection[tuple[str, GroupPart]]) -> pvalue.PCollection[tuple[str, GroupPart]]:
        return collection(parts | "Add" >> beam.CombinePerKey(GroupSumsCombineFn()))
