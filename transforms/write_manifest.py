"""`manifest.json`: written last, it names the list of exactly the files of a complete run, and how they were made."""

from __future__ import annotations

import dataclasses
import functools
import platform
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam import pvalue

from beam_influence.influence_ops.results.listed_files import LISTED, each_once, listed
from beam_influence.influence_ops.results.result_files import list_batches, write_manifest
from beam_influence.transforms.broadcast import Broadcast
from beam_influence.transforms.elements import ListedFiles, ShardCount, SolverReport, WrittenFile
from beam_influence.transforms.files import BeamFiles
from beam_influence.transforms.merge_buckets import MergeBuckets
from beam_influence.transforms.typed import collection, run_once

_VERSIONED = ("apache-beam", "keras", "numpy", "pyarrow", "tensorflow", "tfx-bsl")


def _place(file: WrittenFile) -> tuple[str, str]:
    return "", file.path


@dataclasses.dataclass
class ListFiles(beam.PTransform):
    """Lists files, each once.

    In: `WrittenFile`. Out: at most 256 `ListedFiles`.
    """

    def expand(self, files: pvalue.PCollection[WrittenFile]) -> pvalue.PCollection[ListedFiles]:
        return collection(files | MergeBuckets(_place, _list_once, (WrittenFile, ListedFiles)))


def read_lists(lists: Iterable[ListedFiles]) -> list[pa.Table]:
    """The rows of `LISTED` in lists."""
    return [pa.ipc.open_stream(some.data).read_all() for some in lists]


def versions() -> dict[str, str]:
    """Of Python, and of the packages that numbers depend on."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in _VERSIONED}}


def _list_once(files: Iterable[WrittenFile]) -> ListedFiles:
    """A bundle that was run twice tells of its files twice."""
    table = each_once(listed(files))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, LISTED, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    return ListedFiles(sink.getvalue().to_pybytes())


class _WriteManifestDoFn(beam.DoFn):
    def __init__(self, wanted: WriteManifest):
        self._output = wanted.output
        self._config = dict(wanted.config)
        self._model = dict(wanted.model)
        self._base = wanted.base
        self._resumed = wanted.resumed
        self._facts = dict(wanted.facts)
        self._in_part = wanted.in_part

    def process(
        self,
        _: None,
        preconditioner: Broadcast,
        files: Iterable[ListedFiles],
        counts: Iterable[ShardCount],
        reports: Iterable[SolverReport],
    ) -> Iterator[str]:
        by_stage: dict[str, dict[str, int]] = {}
        for count in counts:
            total = by_stage.setdefault(count.stage, {"shards": 0, "examples": 0, "rejected": 0})
            total["shards"] += count.shards
            total["examples"] += count.examples
            total["rejected"] += count.rejected
            if count.halved:
                total["halved_batches"] = total.get("halved_batches", 0) + count.halved
        read = {stage: total["examples"] + total["rejected"] for stage, total in by_stage.items()}
        for stage, what in () if self._in_part else (("score", "scores"), ("index", "index")):
            if "curvature" in read and stage in read and read["curvature"] != read[stage]:
                raise ValueError(
                    f"the curvature saw {read['curvature']:,} training examples and the {what} {read[stage]:,}: "
                    "the training files changed during the run; start it again"
                )
        for stage, before in {} if self._base is None else self._base["counts"].items():
            total = by_stage.setdefault(stage, dict.fromkeys(before, 0))
            by_stage[stage] = {name: total.get(name, 0) + before.get(name, 0) for name in {**before, **total}}
        content: dict[str, Any] = {
            **self._facts,
            "counts": by_stage,
            "config": self._config,
            "model": self._model,
            "curvature": {key: value for key, value in preconditioner.description.items() if key != "kind"},
            "versions": versions(),
        }
        if self._resumed:
            content["resumed"] = sorted(self._resumed)
        if of_rounds := list(reports):
            content["solver"] = dataclasses.asdict(functools.reduce(SolverReport.and_of, of_rounds))
        kept = () if self._base is None else list_batches(self._output, self._base, BeamFiles())
        every = pa.concat_tables([pa.Table.from_batches(kept, LISTED), *read_lists(files)])
        yield write_manifest(self._output, every, content, BeamFiles())


@dataclasses.dataclass
class WriteManifest(beam.PTransform):
    """Commits the run.

    Args:
      output: the folder of the results.
      config: the run's options, as JSON.
      model: facts about the model, as JSON.
      preconditioner: the operator.
      counts: `ShardCount`s of every stage, each shard in one of them: sums.
      reports: of an iterative solver, one for each of its rounds.
      resumed: the stages that an earlier run had finished.
      facts: what else it says.
      base: a manifest that this one extends: its files stay, its counts are added.
      in_part: whether each stage reads as much of the files as it likes (`Shard.limit`), so that their counts may differ.

    In: `WrittenFile`s, all of them. Out: the manifest's path.
    """

    output: str
    config: Mapping[str, Any]
    model: Mapping[str, Any]
    preconditioner: pvalue.PCollection[Broadcast]
    counts: pvalue.PCollection[ShardCount]
    reports: pvalue.PCollection[SolverReport]
    base: Mapping[str, Any] | None = None
    resumed: tuple[str, ...] = ()
    facts: Mapping[str, object] = dataclasses.field(default_factory=dict)
    in_part: bool = False

    def expand(self, files: pvalue.PCollection[WrittenFile]) -> pvalue.PCollection[str]:
        lists = files | "ListFiles" >> ListFiles()
        several = [pvalue.AsIter(collection(side)) for side in (lists, self.counts, self.reports)]
        return run_once(files.pipeline, "Write", _WriteManifestDoFn(self), str, pvalue.AsSingleton(self.preconditioner), *several)
