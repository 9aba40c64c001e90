"""What a finished stage gave, kept in the work folder: a run that is started again takes it from there."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
from apache_beam import pvalue

from beam_influence.influence_ops.results.array_folder import save_arrays
from beam_influence.transforms.broadcast import Broadcast
from beam_influence.transforms.elements import QueryReference, RejectedExample, ShardCount
from beam_influence.transforms.files import BeamFiles, join
from beam_influence.transforms.read_shards import COUNTS, REJECTED
from beam_influence.transforms.typed import collection, run_once

RECORD_VERSION = 4
REJECTED_LIMIT = 10_000  # a record with more rejected examples would be too large for one worker, some 10 MB


@dataclasses.dataclass(frozen=True)
class StageRecord:
    """A finished stage.

    Attributes:
      results: each result's key (empty where there is but one), and where it can be had.
      counts, rejected: of the pass over the data that the stage made; counts are sums.
    """

    results: tuple[tuple[str, Broadcast], ...]
    counts: tuple[ShardCount, ...]
    rejected: tuple[RejectedExample, ...]

    @property
    def folders(self) -> list[str]:
        """Where its arrays are."""
        return [broadcast.folder for _, broadcast in self.results if broadcast.folder is not None]


def record_path(work: str, stage: str) -> str:
    """The file of a stage's record."""
    return join(work, "finished", f"{stage}.json")


def read_record(work: str, stage: str, digest: str) -> StageRecord | None:
    """The record of a stage that was made from just what `digest` stands for; None: there is none, or it can't be used."""
    files = BeamFiles()
    path = record_path(work, stage)
    if not files.exists(path):
        return None
    try:
        content = json.loads(files.read(path))
        if content["version"] != RECORD_VERSION or content["digest"] != digest:
            return None
        results = []
        for key, found, meta, folder in content["results"]:
            results.append((str(key), Broadcast.saved(str(found), str(meta), str(folder))))
        counts = tuple(ShardCount(**{**count, "groups": tuple(count["groups"])}) for count in content["counts"])
        return StageRecord(tuple(results), counts, tuple(RejectedExample(**one) for one in content["rejected"]))
    except (ValueError, KeyError, TypeError, OSError):
        return None  # what is damaged is computed again


class _RecordDoFn(beam.DoFn):
    def __init__(self, stage: str, digest: str, work: str):
        self._stage = stage
        self._digest = digest
        self._work = work

    def process(
        self, _: None, results: Iterable[Any], counts: Iterable[ShardCount], rejected: Iterable[RejectedExample]
    ) -> Iterator[Any]:
        distinct: set[RejectedExample] = set()
        for one in rejected:
            distinct.add(one)
            if len(distinct) > REJECTED_LIMIT:  # a run that starts again must make the stage again
                yield from results
                return
        files = BeamFiles()
        listed = []
        for result in results:
            key, broadcast = (result.key, result.broadcast) if isinstance(result, QueryReference) else ("", result)
            folder = broadcast.folder
            if folder is None:
                folder = join(self._work, "finished", self._stage, key or "result")
                arrays, meta = broadcast.open()
                save_arrays(folder, arrays, meta, files, by_content=True)
            listed.append([key, broadcast.digest, broadcast.meta, folder])
        content = {
            "version": RECORD_VERSION,
            "digest": self._digest,
            "results": sorted(listed),
            "counts": [dataclasses.asdict(count) for count in sorted(counts, key=repr)],
            "rejected": [dataclasses.asdict(one) for one in sorted(distinct, key=repr)],
        }
        files.write(record_path(self._work, self._stage), json.dumps(content).encode())
        yield from results


@dataclasses.dataclass
class RecordStage(beam.PTransform):
    """Passes a stage's results on once they are recorded, so that nothing is built on what is not.

    Args:
      stage: the stage's name.
      digest: stands for all that the results are made from.
      work: the run's work folder.
      counts, rejected: of the stage's pass over the data.

    In and out: `Broadcast`, or `QueryReference`.
    """

    stage: str
    digest: str
    work: str
    counts: list[pvalue.PCollection[ShardCount]]
    rejected: list[pvalue.PCollection[RejectedExample]]

    def expand(self, results: pvalue.PCollection[Any]) -> pvalue.PCollection[Any]:
        counts = self.counts | "FlattenCounts" >> beam.Flatten(pipeline=results.pipeline)
        rejected = self.rejected | "FlattenRejected" >> beam.Flatten(pipeline=results.pipeline)
        sides = [pvalue.AsIter(side) for side in (results, counts, rejected)]
        record = _RecordDoFn(self.stage, self.digest, self.work)
        return run_once(results.pipeline, "Record", record, results.element_type, *sides)


@dataclasses.dataclass
class TakeStage(beam.PTransform):
    """What an earlier run recorded, in place of the stage.

    In: the pipeline. Out: a dictionary of PCollections: `results` (`Broadcast`, or `QueryReference`), `counts`, `rejected`.
    """

    record: StageRecord

    def expand(self, pbegin: pvalue.PBegin) -> dict[str, pvalue.PCollection]:
        results = [QueryReference(key, broadcast) if key else broadcast for key, broadcast in self.record.results]
        kind = QueryReference if any(key for key, _ in self.record.results) else Broadcast
        known = {"results": (results, kind), COUNTS: (self.record.counts, ShardCount), REJECTED: (self.record.rejected, RejectedExample)}
        return {
            name: collection(pbegin | f"Known[{name}]" >> beam.Create(list(elements), reshuffle=False).with_output_types(kind))
            for name, (elements, kind) in known.items()
        }
