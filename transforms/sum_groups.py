"""Partial group sums to those of all training data, for each block of queries."""

from __future__ import annotations

import dataclasses

import apache_beam as beam
from apache_beam import pvalue
from apache_beam.typehints.decorators import with_input_types, with_output_types

from beam_influence.influence_ops.scoring.group_sums import GroupSums
from beam_influence.transforms.elements import GroupPart
from beam_influence.transforms.merging import MergingCombineFn
from beam_influence.transforms.typed import collection


@with_input_types(GroupPart)
@with_output_types(GroupPart)
class GroupSumsCombineFn(MergingCombineFn[GroupPart]):
    """Adds sums of one block of queries."""

    def copy(self, part: GroupPart) -> GroupPart:
        own = GroupSums(part.sums.queries)
        own.sums, own.counts = dict(part.sums.sums), dict(part.sums.counts)
        return GroupPart(own)

    def merge(self, own: GroupPart, other: GroupPart) -> GroupPart:
        own.sums.merge(other.sums)
        return own


@dataclasses.dataclass
class SumGroups(beam.PTransform):
    """The global group sums.

    In: (block key, `GroupPart`). Out: the same, once for each key.
    """

    def expand(self, parts: pvalue.PCollection[tuple[str, GroupPart]]) -> pvalue.PCollection[tuple[str, GroupPart]]:
        return collection(parts | "Add" >> beam.CombinePerKey(GroupSumsCombineFn()))
