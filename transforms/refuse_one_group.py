"""The end of a run whose training set is a single group, before it is scored."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import apache_beam as beam
from apache_beam import pvalue

from beam_influence.transforms.elements import ShardCount, WrittenFile
from beam_influence.transforms.typed import run_once


class _RefuseDoFn(beam.DoFn):
    def process(self, _: None, counts: Iterable[ShardCount]) -> Iterator[WrittenFile]:
        names: set[str] = set()
        for count in counts:
            names = set(sorted({*names, *count.groups})[:2])
        if len(names) == 1:
            raise ValueError(
                f"group {names.pop()!r} is the whole training set; its removal has no second-order influence: leave out "
                "--second_order_groups, or name groups by another --group_feature"
            )
        return iter(())


@dataclasses.dataclass
class RefuseOneGroup(beam.PTransform):
    """Fails where all training examples are of one group, which second-order group influence can't be had for.

    In: `ShardCount`, of a pass over the whole training set. Out: nothing; what waits for it starts after the verdict.
    """

    def expand(self, counts: pvalue.PCollection[ShardCount]) -> pvalue.PCollection[WrittenFile]:
        return run_once(counts.pipeline, "Verdict", _RefuseDoFn(), WrittenFile, pvalue.AsIter(counts))
