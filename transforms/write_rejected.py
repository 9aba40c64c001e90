"""The table of rejected examples, and the end of a run that rejected too many.

However many they are, and in however many files, a worker holds `BLOCK` of them at a time, and 16 bytes for each other one of its bucket of
files; what comes together in one place is a count for each block and the first example of each kind in it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import heapq
import re
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
from apache_beam import pvalue

from beam_influence.influence_ops.reading.example_batch import Rejected
from beam_influence.influence_ops.results import schemas, tables
from beam_influence.influence_ops.results.result_files import write_table
from beam_influence.transforms.elements import FILES, RejectedBlock, RejectedExample, WrittenFile
from beam_influence.transforms.files import BeamFiles, join
from beam_influence.transforms.typed import collection, outputs, run_once

BLOCK = 1 << 14  # neighbouring places in a file: with messages as long as they may be, some 30 MB
BUCKETS = 1024
_SHOWN = 5
_BLOCKS = "blocks"

_NAME = re.compile(r"/part-\d{5}-(?P<split>train|test)-(?P<bucket>\d{4})-\d{5}(-\d{5})?\.parquet$")

_Key = tuple[str, int, int]


class TooManyRejectedError(ValueError):
    """More examples were rejected than the user allows."""


def bucket_of(file: str) -> int:
    """Which of the `BUCKETS` a file's rejected examples are written with: so many files of the table, however many files had some."""
    return int.from_bytes(hashlib.sha256(file.encode()).digest()[:4], "big") % BUCKETS


def may_hold(path: str, split: str, file: str) -> bool:
    """Whether a file of the table, by its name, can have rejected examples of this file; one of another version may have any."""
    named = _NAME.search(path)
    return named is None or (named["split"], int(named["bucket"])) == (split, bucket_of(file))


def _keyed(rejected: RejectedExample, is_known: bool) -> tuple[_Key, tuple[bool, RejectedExample]]:
    return (rejected.split, bucket_of(rejected.file), rejected.index // BLOCK), (is_known, rejected)


def _place(rejected: RejectedExample) -> tuple:
    return rejected.split, rejected.file, rejected.index


def _first_of_each_kind(rejected: Iterable[RejectedExample]) -> tuple[RejectedExample, ...]:
    """The first few kinds' first examples, by place."""
    first: dict[tuple[str, str], RejectedExample] = {}
    for one in rejected:
        kind = (one.stage, one.error)
        if kind not in first or _place(one) < _place(first[kind]):
            first[kind] = one
        if len(first) > 2 * _SHOWN:
            first = {(one.stage, one.error): one for one in heapq.nsmallest(_SHOWN, first.values(), _place)}
    return tuple(heapq.nsmallest(_SHOWN, first.values(), _place))


def _digest(content: tuple) -> bytes:
    return hashlib.blake2b(repr(content).encode(), digest_size=16).digest()


class _WriteBlockDoFn(beam.DoFn):
    def __init__(self, output: str, number: int, has_known: bool = False):
        self._output = output
        self._number = number
        self._has_known = has_known

    def process(self, element: tuple[_Key, Iterable[tuple[bool, RejectedExample]]]) -> Iterator[Any]:
        (split, bucket, block), rejected = element
        known = {_digest(_place(one)) for is_known, one in rejected if is_known} if self._has_known else set()
        name = f"part-{self._number:05d}-{split}-{bucket:04d}-{block:05d}"
        # A bundle that was run twice, and two passes over the data, reject the same example twice.
        seen: set[bytes] = set()
        rows: list[RejectedExample] = []
        first: tuple[RejectedExample, ...] = ()
        written = 0
        for is_known, one in rejected:
            digest = _digest(dataclasses.astuple(one))
            if is_known or digest in seen or (known and _digest(_place(one)) in known):
                continue
            seen.add(digest)
            rows.append(one)
            if len(rows) == BLOCK:
                first = _first_of_each_kind((*first, *rows))
                yield self._write(rows, f"{name}-{written:05d}" if written else name)
                rows, written = [], written + 1
        first = _first_of_each_kind((*first, *rows))
        yield pvalue.TaggedOutput(_BLOCKS, RejectedBlock(len(known) + len(seen), first))
        if rows:
            yield self._write(rows, f"{name}-{written:05d}" if written else name)

    def _write(self, rejected: list[RejectedExample], name: str) -> pvalue.TaggedOutput:
        ordered = sorted(rejected, key=_place)
        rows = [(r.split, Rejected(r.file, r.index, r.stage, r.error, r.message)) for r in ordered]
        written = write_table(self._output, "rejected", name, schemas.REJECTED, tables.rejected_table(rows), {}, BeamFiles())
        return pvalue.TaggedOutput(FILES, written)


class _VerdictDoFn(beam.DoFn):
    def __init__(self, output: str, max_rejected: int, number: int, is_late: bool):
        self._is_late = is_late
        self._output = output
        self._name = f"part-{number:05d}"
        self._max_rejected = max_rejected

    def process(self, _: None, blocks: Iterable[RejectedBlock]) -> Iterator[WrittenFile]:
        count = 0
        first: tuple[RejectedExample, ...] = ()
        for block in blocks:
            count += block.count
            first = _first_of_each_kind((*first, *block.first))
        if count > self._max_rejected:
            shown = "".join(f"\n  {r.split} {r.file}:{r.index} ({r.stage}, {r.error}): {r.message}" for r in first)
            were = "example was" if count == 1 else "examples were"
            raise TooManyRejectedError(
                f"{count:,} {were} rejected, more than --max_rejected {self._max_rejected}; mend them, or allow as many. "
                f"All are in {join(self._output, 'rejected')}; the first of each kind:{shown}"
            )
        if not count and not self._is_late:
            yield write_table(self._output, "rejected", self._name, schemas.REJECTED, tables.rejected_table([]), {}, BeamFiles())


@dataclasses.dataclass
class WriteRejected(beam.PTransform):
    """Writes the rejected examples, then fails when they are too many.

    Args:
      output: the folder of the results.
      max_rejected: how many are allowed.
      number: begins the files' names; where earlier ones stay.
      before: those that earlier files have; they are counted, not written again, and without others there is no file.

    In: `RejectedExample`. Out: `WrittenFile`: one for each block of a bucket of files that has some, or an empty one.
    """

    output: str
    max_rejected: int
    number: int = 0
    before: pvalue.PCollection[RejectedExample] | None = None

    def expand(self, rejected: pvalue.PCollection[RejectedExample]) -> pvalue.PCollection[WrittenFile]:
        keyed = [rejected | "Key" >> beam.Map(_keyed, is_known=False).with_output_types(tuple[_Key, tuple[bool, RejectedExample]])]
        if self.before is not None:
            keyed.append(
                self.before | "KeyKnown" >> beam.Map(_keyed, is_known=True).with_output_types(tuple[_Key, tuple[bool, RejectedExample]])
            )
        write = beam.ParDo(_WriteBlockDoFn(self.output, self.number, self.before is not None))
        types = {FILES: WrittenFile, _BLOCKS: RejectedBlock}
        written = outputs(
            keyed
            | "Together" >> beam.Flatten()
            | "Group" >> beam.GroupByKey()
            | "Write" >> write.with_output_types(type(None), **types).with_outputs(*types)
        )
        judge = _VerdictDoFn(self.output, self.max_rejected, self.number, self.before is not None)
        verdict = run_once(rejected.pipeline, "Verdict", judge, WrittenFile, pvalue.AsIter(written[_BLOCKS]))
        return collection((written[FILES], verdict) | "Both" >> beam.Flatten())
