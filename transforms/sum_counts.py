"""What the shards of a stage counted, added up where it was counted: a few hundred elements, however many shards there are."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterable

import apache_beam as beam
from apache_beam import pvalue

from beam_influence.transforms.elements import ShardCount
from beam_influence.transforms.typed import collection

_BUCKETS = 256

_Key = tuple[str, str, int]


def _in_bucket(count: ShardCount) -> tuple[_Key, ShardCount]:
    return (count.stage, count.split, zlib.crc32(count.shard.encode()) % _BUCKETS), count


def _sum_bucket(bucket: tuple[_Key, Iterable[ShardCount]]) -> ShardCount:
    """A bundle that was run twice counts its shards twice; only how often batches were halved may differ."""
    by_shard: dict[str, ShardCount] = {}
    for count in bucket[1]:
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
        summed = (
            counts
            | "InBuckets" >> beam.Map(_in_bucket).with_output_types(tuple[_Key, ShardCount])
            | "Bucket" >> beam.GroupByKey()
            | "Sum" >> beam.Map(_sum_bucket).with_output_types(ShardCount)
        )
        return collection(summed)
