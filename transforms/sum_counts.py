"""What the shards of each stage counted, added up where it was counted: one element for each stage, however many shards there are."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import apache_beam as beam
from apache_beam import pvalue

from beam_influence.transforms.elements import ShardCount
from beam_influence.transforms.typed import collection

_Keyed = tuple[tuple[str, str, str], ShardCount]


def _by_shard(count: ShardCount) -> _Keyed:
    return (count.stage, count.split, count.shard), count


def _by_stage(keyed: _Keyed) -> _Keyed:
    (stage, split, _), count = keyed
    return (stage, split, ""), count


def _once(counts: Iterable[ShardCount]) -> ShardCount:
    """One shard's count: a bundle that was run twice tells it twice; only how often batches were halved may differ."""
    return max(counts, key=lambda count: count.halved)


def _sum(counts: Iterable[ShardCount]) -> ShardCount:
    """The sum over shards of one stage."""
    first, *others = counts
    total = dataclasses.replace(first, shard="")
    for count in others:
        total = ShardCount(
            first.stage,
            first.split,
            "",
            total.examples + count.examples,
            total.rejected + count.rejected,
            total.halved + count.halved,
            tuple(sorted({*total.groups, *count.groups})[:2]),
            total.shards + count.shards,
        )
    return total


@dataclasses.dataclass
class SumCounts(beam.PTransform):
    """Adds up what shards counted; one that was counted twice counts once.

    In: `ShardCount`. Out: `ShardCount`, one for each stage.
    """

    def expand(self, counts: pvalue.PCollection[ShardCount]) -> pvalue.PCollection[ShardCount]:
        summed = (
            counts
            | "ByShard" >> beam.Map(_by_shard).with_output_types(_Keyed)
            | "Once" >> beam.CombinePerKey(_once).with_output_types(_Keyed)
            | "ByStage" >> beam.Map(_by_stage).with_output_types(_Keyed)
            | "Sum" >> beam.CombinePerKey(_sum).with_output_types(_Keyed)
            | "Counts" >> beam.Values().with_output_types(ShardCount)
        )
        return collection(summed)
