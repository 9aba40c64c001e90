"""Whether every id of a list is in some files: a bit for each id, from as many workers as there are."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam import pvalue
from apache_beam.typehints.decorators import with_input_types, with_output_types

from beam_influence.influence_ops.arrow_compute import pc
from beam_influence.influence_ops.results.result_files import iterate_table
from beam_influence.transforms.files import BeamFiles
from beam_influence.transforms.typed import collection

_BATCH = 1 << 16
_NAMED = 3


@functools.lru_cache(maxsize=1)
def read_id_list(path: str) -> pa.Array:
    """The ids in a list that `write_id_list` wrote; kept by each process, as its name tells its content."""
    with BeamFiles().open_read(path) as file:
        return pq.read_table(file).column("train_id").combine_chunks()


@dataclasses.dataclass(frozen=True)
class FoundIds:
    """Which ids of the list were found: a bit for each, [⌈ids / 8⌉] uint8."""

    bits: np.ndarray


class _FindDoFn(beam.DoFn):
    def __init__(self, ids: str):
        self._ids = ids

    def process(self, path: str) -> Iterator[FoundIds]:
        ids = read_id_list(self._ids)
        found = np.zeros(len(ids), bool)
        for rows in iterate_table(path, BeamFiles(), _BATCH, ["train_id"]):
            places = pc.index_in(rows.column("train_id"), value_set=ids).drop_null()
            found[places.to_numpy()] = True
        yield FoundIds(np.packbits(found))


@with_input_types(FoundIds)
@with_output_types(FoundIds)
class _AddFoundFn(beam.CombineFn):
    def create_accumulator(self) -> FoundIds | None:
        return None

    def add_input(self, mutable_accumulator: FoundIds | None, element: FoundIds) -> FoundIds:
        return element if mutable_accumulator is None else FoundIds(mutable_accumulator.bits | element.bits)

    def merge_accumulators(self, accumulators: Iterable[FoundIds | None]) -> FoundIds | None:
        parts = [part.bits for part in accumulators if part is not None]
        return FoundIds(np.bitwise_or.reduce(parts)) if parts else None

    def extract_output(self, accumulator: FoundIds | None) -> FoundIds:
        return FoundIds(np.zeros(0, np.uint8)) if accumulator is None else accumulator


def _infinity(found: FoundIds, path: str) -> float:
    ids = read_id_list(path)
    known = np.zeros(len(ids), bool)
    bits = np.unpackbits(found.bits, count=len(ids)).astype(bool) if len(found.bits) else known
    missing = np.flatnonzero(~bits)
    if len(missing):
        names = ", ".join(repr(ids[int(place)].as_py()) for place in missing[:_NAMED])
        more = f" and {len(missing) - _NAMED:,} more" if len(missing) > _NAMED else ""
        raise ValueError(f"--ids: {len(missing):,} of the {len(ids):,} ids are of no example that was scored: {names}{more}")
    return float("inf")


@dataclasses.dataclass
class FindIds(beam.PTransform):
    """Refuses a list with ids that no file has.

    Args:
      ids: the path of the list; see `read_id_list`.

    In: paths of Parquet files with a column `train_id` (str). Out: one float, ∞, when all ids were found: a threshold that no score
    reaches.
    """

    ids: str

    def expand(self, paths: pvalue.PCollection[str]) -> pvalue.PCollection[float]:
        find = beam.ParDo(_FindDoFn(self.ids)).with_output_types(FoundIds)
        check = beam.Map(_infinity, self.ids).with_output_types(float)
        return collection(paths | "Find" >> find | "Add" >> beam.CombineGlobally(_AddFoundFn()) | "Check" >> check)
