"""What the shards of a stage counted, added up where it was counted: a few hundred elements, however many shards there are."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import apache_beam as beam
from apache_beam import pvalue

from beam_influence.transforms.elements import ShardCount
from beam_influence.transforms.merge_buckets import MergeBuckets
from beam_influence.transforms.typed import collection


def _place(count: ShardCount) -> tuple[str, str]:
    return f"{count.stage} {count.split}", count.shard


def _sum_once(counts: Iterable[ShardCount]) -> ShardCount:
    """A bundle that was run twice counts its shards twice; only how often batches were halved may differ."""
    by_shard: dict[str, ShardCount] = {}
    for count in counts:
        known = by_shard.setdefault(count.shard, count)
        if count.halved > known.halved:
            by_shard[count.shard] = count
    return sum_counts(by_shard.values())


def sum_counts(counts: Iterable[ShardCount]) -> ShardCount:
    """The sum over shards of one stage, one at least."""
    first, *others = counts
    total = dataclasses.replace(first, shard="")
    for count in others:
        total = dataclasses.replace(
            total,
            examples=total.examples + count.examples,
            rejected=total.rejected + count.rejected,
            halved=total.halved + count.halved,
            groups=tuple(sorted({*total.groups, *count.groups})[:2]),
            shards=total.shards + count.shards,
        )
    return total


@dataclasses.dataclass
class SumCounts(beam.PTransform):
    """Adds up what shards counted; one that was counted twice counts once.

    In: `ShardCount`. Out: `ShardCount`, sums over some shards of one stage: each shard in one of at most 256.
    """

    def expand(self, counts: pvalue.PCollection[ShardCount]) -> pvalue.PCollection[ShardCount]:
        return collection(counts | MergeBuckets(_place, _sum_once, (ShardCount, ShardCount)))
