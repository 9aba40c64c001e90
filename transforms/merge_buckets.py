"""Many small elements merged into a few hundred, so that no worker holds one for each file or shard."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

import apache_beam as beam
from apache_beam import pvalue

from beam_influence.transforms.typed import collection

_BUCKETS = 256

Element = TypeVar("Element")
Merged = TypeVar("Merged")

_Key = tuple[str, int]


def _keyed(element: Element, name_of: Callable[[Element], tuple[str, str]]) -> tuple[_Key, Element]:
    kind, name = name_of(element)
    return (kind, zlib.crc32(name.encode()) % _BUCKETS), element


def _merged(bucket: tuple[_Key, Iterable[Element]], merge: Callable[[Iterable[Element]], Merged]) -> Merged:
    return merge(bucket[1])


@dataclasses.dataclass
class MergeBuckets(beam.PTransform, Generic[Element, Merged]):
    """Merges elements that fall into one of 256 buckets by their names.

    Args:
      name_of: the kind of an element, and its name; of one kind is all that is merged, and what has one name comes together.
      merge: makes one element of all of a bucket. A bundle that was run twice has given its elements twice.
      types: of the elements, and of what is made of them.

    In: elements. Out: at most 256 of each kind.
    """

    name_of: Callable[[Element], tuple[str, str]]
    merge: Callable[[Iterable[Element]], Merged]
    types: tuple[type[Element], type[Merged]]

    def expand(self, elements: pvalue.PCollection[Element]) -> pvalue.PCollection[Merged]:
        element, merged = self.types
        return collection(
            elements
            | "InBuckets" >> beam.Map(_keyed, self.name_of).with_output_types(tuple[_Key, element])
            | "Bucket" >> beam.GroupByKey()
            | "Merge" >> beam.Map(_merged, self.merge).with_output_types(merged)
        )
