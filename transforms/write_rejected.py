"""The table of rejected examples, and the end of a run that rejected too many."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import apache_beam as beam
from apache_beam import pvalue

from influence_ops import tables
from influence_ops.example_batch import Rejected
from influence_ops.result_files import write_table
from transforms.elements import RejectedExample, WrittenFile
from transforms.files import BeamFiles, join

_SHOWN = 5


class TooManyRejectedError(ValueError):
    """More examples were rejected than the user allows."""


class _WriteRejectedDoFn(beam.DoFn):
    def __init__(self, output: str, max_rejected: int, number: int, is_late: bool):
        self._is_late = is_late
        self._output = output
        self._name = f"part-{number:05d}"
        self._max_rejected = max_rejected

    def process(self, _: None, rejected: Iterable[RejectedExample], before: Iterable[RejectedExample] = ()) -> Iterator[WrittenFile]:
        # A bundle that was run twice gives its rejected examples twice.
        distinct = sorted(set(rejected), key=lambda r: (r.split, r.file, r.index))
        known = {(r.split, r.file, r.index) for r in before}
        distinct = [r for r in distinct if (r.split, r.file, r.index) not in known]
        if self._is_late and not distinct:
            return
        rows = [(r.split, Rejected(r.file, r.index, r.stage, r.error, r.message)) for r in distinct]
        written = write_table(self._output, "rejected", self._name, tables.rejected_table(rows), {}, BeamFiles())
        count = len(distinct) + len(known)
        if count > self._max_rejected:
            shown = "".join(f"\n  {r.split} {r.file}:{r.index} ({r.stage}, {r.error}): {r.message}" for r in distinct[:_SHOWN])
            more = f"\n  … and {len(distinct) - _SHOWN:,} more" if len(distinct) > _SHOWN else ""
            were = "example was" if count == 1 else "examples were"
            raise TooManyRejectedError(
                f"{count:,} {were} rejected, more than --max_rejected {self._max_rejected}; "
                f"mend them, or allow as many. All are in {join(self._output, written.path)}; the first are:{shown}{more}"
            )
        yield written


@dataclasses.dataclass
class WriteRejected(beam.PTransform):
    """Writes the rejected examples, then fails when they are too many.

    Args:
      output: the folder of the results.
      max_rejected: how many are allowed.
      number: of the file; where earlier ones stay.
      before: those that an earlier file has; they are counted, not written again, and without others there is no file.

    In: `RejectedExample`. Out: one `WrittenFile`.
    """

    output: str
    max_rejected: int
    number: int = 0
    before: pvalue.PCollection[RejectedExample] | None = None

    def expand(self, rejected: pvalue.PCollection[RejectedExample]) -> pvalue.PCollection[WrittenFile]:
        sides = [pvalue.AsIter(side) for side in (rejected, self.before) if side is not None]
        return (
            rejected.pipeline
            | "Once" >> beam.Create([None], reshuffle=False)
            | "Write"
            >> beam.ParDo(
                _WriteRejectedDoFn(self.output, self.max_rejected, self.number, self.before is not None), *sides
            ).with_output_types(WrittenFile)
        )
