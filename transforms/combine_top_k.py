"""Partial top-k tables to the one of all training data, for each block of queries."""

from __future__ import annotations

import copy
import dataclasses

import apache_beam as beam
from apache_beam import pvalue
from apache_beam.typehints.decorators import with_input_types, with_output_types

from beam_influence.transforms.elements import TopKPart
from beam_influence.transforms.merging import MergingCombineFn
from beam_influence.transforms.typed import collection


@with_input_types(TopKPart)
@with_output_types(TopKPart)
class TopKCombineFn(MergingCombineFn[TopKPart]):
    """Merges tables of one block of queries."""

    def copy(self, part: TopKPart) -> TopKPart:
        # Tables replace their arrays when they take others in, so a shallow copy keeps the element as it is.
        return TopKPart(copy.copy(part.top))

    def merge(self, own: TopKPart, other: TopKPart) -> TopKPart:
        own.top.merge(other.top)
        return own


@dataclasses.dataclass
class CombineTopK(beam.PTransform):
    """The global top-k.

    In: (block key, `TopKPart`). Out: the same, once for each key.
    """

    def expand(self, parts: pvalue.PCollection[tuple[str, TopKPart]]) -> pvalue.PCollection[tuple[str, TopKPart]]:
        return collection(parts | "Merge" >> beam.CombinePerKey(TopKCombineFn()))
