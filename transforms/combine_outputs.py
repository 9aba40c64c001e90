"""The outputs' parts of each bundle to those of all training data."""

from __future__ import annotations

import dataclasses

import apache_beam as beam
from apache_beam import pvalue
from apache_beam.typehints.decorators import with_input_types, with_output_types

from beam_influence.transforms.elements import Part, PartKey
from beam_influence.transforms.merging import MergingCombineFn
from beam_influence.transforms.typed import collection


@with_input_types(Part)
@with_output_types(Part)
class PartsCombineFn(MergingCombineFn[Part]):
    """Merges parts of one key."""

    def copy(self, element: Part) -> Part:
        return element.copy()

    def merge(self, total: Part, element: Part) -> Part:
        total.merge(element)
        return total


@dataclasses.dataclass
class CombineOutputs(beam.PTransform):
    """Each output's parts over all training data.

    In: (`PartKey`, `Part`). Out: the same, once for each key.
    """

    def expand(self, parts: pvalue.PCollection[tuple[PartKey, Part]]) -> pvalue.PCollection[tuple[PartKey, Part]]:
        return collection(parts | "Merge" >> beam.CombinePerKey(PartsCombineFn()))
