"""Training files without their most suspicious examples, and other files as they are; shard by shard."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam import pvalue

from beam_influence.influence_ops.arrow_compute import pc
from beam_influence.influence_ops.reading import detect_format
from beam_influence.influence_ops.reading.clean_files import Cleaning, clean_file
from beam_influence.influence_ops.results.result_files import iterate_table
from beam_influence.transforms.elements import Shard
from beam_influence.transforms.files import BeamFiles
from beam_influence.transforms.find_ids import read_id_list
from beam_influence.transforms.merge_buckets import MergeBuckets
from beam_influence.transforms.typed import collection, run_once
from beam_influence.transforms.write_rejected import may_hold

_BATCH = 1 << 16


@dataclasses.dataclass(frozen=True)
class ScoredShard:
    """A training file, and the files with the self-influence of its examples, in their order."""

    shard: Shard
    scores: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class CopiedFile:
    """A file that is written: where it came from, where it is, and what became of its examples (0 where it was only copied)."""

    source: str
    target: str
    examples: int = 0
    suspicious: int = 0
    damaged: int = 0


def below_of(path: str, folder: str) -> str:
    """A path below `folder`, as it is written below another one.

    Raises:
      ValueError: it would leave that folder: an object store's names may have `..`.
    """
    below = path[len(folder) :]
    if ".." in below.split("/"):
        raise ValueError(f"{path!r} has '..' in its name: its copy would be outside of the output folder")
    return below


class _CleanDoFn(beam.DoFn):
    def __init__(self, wanted: CleanShards):
        self._rejected = wanted.rejected
        self._positional = wanted.positional
        self._format = wanted.data_format
        self._cleaning = wanted.cleaning
        self._source, self._target = wanted.source, wanted.target
        self._ids = wanted.ids

    def process(self, scored: ScoredShard, threshold: float) -> Iterator[CopiedFile]:
        shard = scored.shard
        target = self._target + below_of(shard.path, self._source)
        try:
            suspicious = self._suspicious(scored, threshold)
            with BeamFiles().open_read(shard.path) as source, BeamFiles().open_write(target) as file:
                data_format = self._format
                if data_format == "auto":
                    data_format = detect_format(shard.path, source)
                    source.seek(0)
                cleaned = clean_file(data_format, source, file, suspicious, self._cleaning)
        except ValueError as error:
            raise ValueError(f"can't clean {shard.path}: {error}") from error
        yield CopiedFile(shard.path, target, *cleaned)

    def _suspicious(self, scored: ScoredShard, threshold: float) -> np.ndarray:
        """(N,) bool for the records of the file: those that were scored are all but the rejected, in order."""
        above = [np.zeros(0, bool)]
        ends: list[str] = []
        for rows in itertools.chain.from_iterable(iterate_table(path, BeamFiles(), _BATCH) for path in scored.scores):
            ids = rows.column("train_id")
            in_list = False if self._ids is None else pc.is_in(ids, read_id_list(self._ids)).to_numpy(zero_copy_only=False)
            above.append((rows.column("influence").to_numpy() >= threshold) | in_list)
            ends = [*ends[:1], ids[0].as_py(), ids[-1].as_py()]
        of_scored = np.concatenate(above)
        rejected = np.unique(np.array(list(self._rejected_positions(scored.shard)), np.int64))
        suspicious = np.zeros(len(of_scored) + len(rejected), bool)
        if len(rejected) and rejected[-1] >= len(suspicious):
            raise ValueError("the scores are of other files")
        positions = np.setdiff1d(np.arange(len(suspicious)), rejected)
        suspicious[positions] = of_scored
        if self._positional and ends:
            wanted = [f"{scored.shard.name}:{position}" for position in (positions[0], positions[-1])]
            if [ends[0], ends[-1]] != wanted:
                raise ValueError(f"its scores are of {ends[0]} to {ends[-1]}, not of {wanted[0]} to {wanted[1]}")
        return suspicious

    def _rejected_positions(self, shard: Shard) -> Iterator[int]:
        for path in self._rejected:
            if not may_hold(path, "train", shard.name):
                continue
            for rows in iterate_table(path, BeamFiles(), _BATCH):
                of_shard = (rows.column("split").to_numpy(False) == "train") & (rows.column("file").to_numpy(False) == shard.name)
                yield from rows.column("index").to_numpy()[of_shard]


@dataclasses.dataclass
class CleanShards(beam.PTransform):
    """Rewrites training files: what has a self-influence of at least the threshold is dropped or has less weight.

    Rejected examples, which have no score, stay; records too damaged to be read are left out.

    Args:
      threshold: one float.
      rejected: the files of the run's table `rejected`.
      positional: whether ids are `<file>:<index>`, which are then checked.
      data_format: the files' format, as `clean_file` wants it, or `auto`.
      cleaning: what is done.
      source, target: a file's path below `source` is its path below `target`.
      ids: the path of a list of ids (`read_id_list`) that are suspicious whatever their score; None: there is none.

    In: `ScoredShard`. Out: `CopiedFile`.
    """

    threshold: pvalue.PCollection[float]
    rejected: list[str]
    positional: bool
    data_format: str
    cleaning: Cleaning
    source: str
    target: str
    ids: str | None = None

    def expand(self, shards: pvalue.PCollection[ScoredShard]) -> pvalue.PCollection[CopiedFile]:
        clean = beam.ParDo(_CleanDoFn(self), pvalue.AsSingleton(self.threshold)).with_output_types(CopiedFile)
        return collection(shards | "Clean" >> clean)


def _copy(file: CopiedFile) -> CopiedFile:
    with BeamFiles().open_read(file.source) as source, BeamFiles().open_write(file.target) as target:
        shutil.copyfileobj(source, target, 1 << 20)
    return file


@dataclasses.dataclass
class CopyFiles(beam.PTransform):
    """Copies files byte by byte.

    In: `CopiedFile`s to be. Out: the same, written.
    """

    def expand(self, files: pvalue.PCollection[CopiedFile]) -> pvalue.PCollection[CopiedFile]:
        return collection(files | "Copy" >> beam.Map(_copy).with_output_types(CopiedFile))


@dataclasses.dataclass(frozen=True)
class FileTotals:
    """What became of some files: how many there are, and the sums over them."""

    files: int
    examples: int
    suspicious: int
    damaged: int


def _place(file: CopiedFile) -> tuple[str, str]:
    return "", file.target


def _sum_once(copied: Iterable[CopiedFile]) -> FileTotals:
    files = set(copied)  # a bundle that was run twice tells of its files twice
    return FileTotals(len(files), *(sum(getattr(file, name) for file in files) for name in ("examples", "suspicious", "damaged")))


@dataclasses.dataclass
class SumFiles(beam.PTransform):
    """Adds up what became of files, each once, where that is known.

    In: `CopiedFile`. Out: `FileTotals`, each file in one of at most 256.
    """

    def expand(self, files: pvalue.PCollection[CopiedFile]) -> pvalue.PCollection[FileTotals]:
        return collection(files | MergeBuckets(_place, _sum_once, (CopiedFile, FileTotals)))


class _WriteFactsDoFn(beam.DoFn):
    def __init__(self, path: str, facts: dict[str, Any]):
        self._path = path
        self._facts = facts

    def process(self, _: None, threshold: float, cleaned: Iterable[FileTotals], copied: Iterable[FileTotals]) -> Iterator[str]:
        totals = list(cleaned)
        facts = {
            **self._facts,
            "threshold": threshold if np.isfinite(threshold) else None,
            "files_copied": sum(total.files for total in copied),
            **{field.name: sum(getattr(total, field.name) for total in totals) for field in dataclasses.fields(FileTotals)},
        }
        BeamFiles().write(self._path, json.dumps(facts, indent=1, sort_keys=True).encode())
        yield self._path


@dataclasses.dataclass
class WriteCleaningFacts(beam.PTransform):
    """Writes what was done, as the last file.

    Args:
      path: of the JSON file.
      facts: what is known before.
      threshold: one float.
      copied: the files that were not cleaned.

    In: the cleaned files. Out: the path.
    """

    path: str
    facts: dict[str, Any]
    threshold: pvalue.PCollection[float]
    copied: pvalue.PCollection[CopiedFile]

    def expand(self, cleaned: pvalue.PCollection[CopiedFile]) -> pvalue.PCollection[str]:
        totals = [collection(files | f"SumFiles[{name}]" >> SumFiles()) for name, files in (("cleaned", cleaned), ("copied", self.copied))]
        sides = (pvalue.AsSingleton(self.threshold), *map(pvalue.AsIter, totals))
        return run_once(cleaned.pipeline, "Write", _WriteFactsDoFn(self.path, self.facts), str, *sides)
