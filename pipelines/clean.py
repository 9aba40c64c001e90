"""The training set without its most suspicious examples, by the self-influence that an earlier run wrote."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterable
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from beam_influence.influence_ops.arrow_compute import pc
from beam_influence.influence_ops.reading.clean_files import REWRITTEN, Cleaning
from beam_influence.influence_ops.redact import without_secrets
from beam_influence.influence_ops.results.result_files import read_manifest, table_files
from beam_influence.pipelines.clean_options import check_share, count_suspicious
from beam_influence.pipelines.id_list import read_ids
from beam_influence.pipelines.prepare import patterns_of
from beam_influence.pipelines.run_pipeline import run_pipeline
from beam_influence.pipelines.runners import choose_engine, open_file_systems
from beam_influence.transforms import CleanShards, CopyFiles, FindIds, SelectThreshold, WriteCleaningFacts
from beam_influence.transforms.clean_shards import CopiedFile, ScoredShard, below_of
from beam_influence.transforms.elements import Shard
from beam_influence.transforms.file_list import FileList, list_shards
from beam_influence.transforms.files import BeamFiles, join
from beam_influence.transforms.folders import delete_folder
from beam_influence.transforms.read_shards import ReadShards

FACTS = "cleaning/facts.json"
"""What was done, below the output folder: in a folder of its own, where no pattern of examples finds it."""

WORK = "cleaning/work"
"""Where the list of many files is while the job runs, and that of ids."""

LARGEST_LIST = 64 << 20
"""Bytes of a list of ids: each worker process holds it."""

FORMATS = (*REWRITTEN, "auto")


@dataclasses.dataclass(frozen=True)
class CleanConfig:
    """What is cleaned, and how.

    Attributes:
      scores: the output folder of a finished run with `self_influence`.
      source: the folder below which all examples are.
      train: the patterns of the run's training files.
      others: the patterns of files that are copied as they are.
      output: where everything goes; a file's path below `source` is its path below `output`.
      data_format: of the training files, one of `FORMATS`.
      share: of the scored examples, those of the largest self-influence are suspicious; equal scores at the edge are
        taken together or not at all. None: `ids` are.
      weight: None drops them; else their weight in `weight_feature` is multiplied by it.
      weight_feature: the feature with the examples' weights.
      ids: the file with the ids of the suspicious examples; see `read_ids`.

    Raises:
      ValueError: an option is wrong; the message names it, its value and what to write instead.
    """

    scores: str
    source: str
    train: tuple[str, ...]
    others: tuple[str, ...]
    output: str
    share: float | None
    data_format: str = "tfrecord"
    weight: float | None = None
    weight_feature: str = "weight"
    ids: str | None = None

    def __post_init__(self) -> None:
        if (self.share is None) == (self.ids is None):
            raise ValueError("give either a share of the examples that is suspicious, or ids")
        if self.share is not None:
            check_share(self.share)
        if self.data_format not in FORMATS:
            raise ValueError(f"data_format {self.data_format!r} must be one of {', '.join(FORMATS)}")
        self.cleaning()

    def cleaning(self) -> Cleaning:
        """What is done to each file."""
        return Cleaning(self.weight, self.weight_feature)


def build_cleaning(pipeline: beam.Pipeline, config: CleanConfig, id_list: str | None = None) -> None:
    """Adds the job to a pipeline.

    Args:
      id_list: where `_publish_ids` has put the ids.

    Raises:
      ValueError: the scores are not of these files, or there are none.
    """
    files = BeamFiles()
    manifest = read_manifest(config.scores, files)
    shards = list_shards("train", list(config.train))
    parts = _parts_scored(table_files(config.scores, "self_influence", files))
    if patterns_of(manifest["config"]["train"] or "") != list(config.train) or len(parts) != len(shards) or not parts.all():
        raise ValueError(
            f"the scores in {config.scores!r} are of {np.count_nonzero(parts):,} files at {manifest['config']['train']}, "
            f"not of {len(shards):,} at {','.join(config.train)}"
        )
    source, target = _folder(config.source), _folder(config.output)
    below = pc.starts_with(shards.table["path"], source)
    if not pc.all(below).as_py():
        outside = shards[pc.index(below, False).as_py()].path
        raise ValueError(f"{outside!r} is not below the folder {source!r}")
    _refuse_in_place(shards, source, target)
    rows = manifest["tables"]["self_influence"]["rows"]
    read = ReadShards(shards.with_columns(parts=parts), None, shards.largest, work=join(config.output, WORK))
    scores_of = beam.Map(_scored, config.scores).with_output_types(ScoredShard)
    shards_in = pipeline | "ReadShards" >> read | "Scored" >> scores_of
    paths = shards_in | "Scores" >> beam.FlatMap(_scores).with_output_types(str)
    if config.share is not None:
        threshold = paths | "SelectThreshold" >> SelectThreshold(count_suspicious(config.share, rows))
    else:
        assert id_list is not None
        threshold = paths | "FindIds" >> FindIds(id_list)
    cleaned = shards_in | "CleanShards" >> CleanShards(
        threshold,
        list(table_files(config.scores, "rejected", files)),
        manifest["config"]["id_feature"] is None,
        config.data_format,
        config.cleaning(),
        source,
        target,
        id_list,
    )
    others = _others(config, shards)
    to_copy = beam.Map(_to_copy, source, target).with_output_types(CopiedFile)
    copied = (
        pipeline
        | "ReadOthers" >> ReadShards(others, None, others.largest, work=join(config.output, WORK))
        | "Others" >> to_copy
        | "CopyFiles" >> CopyFiles()
    )
    facts = {"share": config.share, "weight": config.weight, "weight_feature": config.weight_feature, "scored": rows}
    options = {name: without_secrets(value) if isinstance(value, str) else value for name, value in dataclasses.asdict(config).items()}
    facts["options"] = {name: value for name, value in options.items() if name not in facts}
    _ = cleaned | "WriteFacts" >> WriteCleaningFacts(join(config.output, FACTS), facts, threshold, copied)


def _folder(path: str) -> str:
    return f"{path.rstrip('/')}/" if path else ""


def _refuse_in_place(shards: FileList, source: str, target: str) -> None:
    """A file is read while its cleaned one is written: they must not be the same."""
    if os.path.realpath(source) == os.path.realpath(target) if "://" not in source + target else source == target:
        raise ValueError(f"the output {target!r} is the folder of the training set itself; give another folder")
    paths = shards.table["path"]
    whole, nothing = (pa.scalar(text, pa.large_string()) for text in (target, ""))
    targets = pc.binary_join_element_wise(whole, pc.utf8_slice_codeunits(paths, len(source)), nothing)
    place = pc.index(pc.is_in(targets, paths.combine_chunks()), True).as_py()
    if place >= 0:
        raise ValueError(f"{shards[place].path!r} would be written over {targets[place].as_py()!r}; give another output folder")


def _publish_ids(config: CleanConfig) -> str | None:
    """Puts the list of ids where all workers reach it; its name tells its content.

    Raises:
      ValueError: it can't be read, or is too large.
    """
    if config.ids is None:
        return None
    ids = pa.array(sorted(read_ids(config.ids, LARGEST_LIST)), pa.string())
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"train_id": ids}), sink)
    data = sink.getvalue().to_pybytes()
    path = join(config.output, WORK, f"ids-{hashlib.sha256(data).hexdigest()[:16]}.parquet")
    BeamFiles().write(path, data)
    return path


def _parts_scored(paths: Iterable[str]) -> np.ndarray:
    """The number of files with the scores of each training file: `shard-N.parquet` of the N-th, or `shard-N-P.parquet` of its P-th part."""
    ordinals = (int(path.rpartition("/")[2].removesuffix(".parquet").split("-")[1]) for path in paths)
    return np.bincount(np.fromiter(ordinals, np.int64))


def _scored(shard: Shard, scores: str) -> ScoredShard:
    keys = [dataclasses.replace(shard, part=part).key for part in range(shard.parts)]
    return ScoredShard(shard, tuple(join(scores, "self_influence", f"shard-{key}.parquet") for key in keys))


def _scores(scored: ScoredShard) -> tuple[str, ...]:
    return scored.scores


def _others(config: CleanConfig, shards: FileList) -> FileList:
    """The files that are copied: those of `others` that are not cleaned."""
    if not config.others:
        return FileList.of([])
    found = list_shards("others", list(config.others)).table
    return FileList("others", found.filter(pc.invert(pc.is_in(found["path"], shards.table["path"].combine_chunks()))))


def _to_copy(shard: Shard, source: str, target: str) -> CopiedFile:
    return CopiedFile(shard.path, target + below_of(shard.path, source))


def clean(
    config: CleanConfig, beam_arguments: Iterable[str] = (), make_pipeline: Callable[[], beam.Pipeline] | None = None
) -> dict[str, Any]:
    """Runs the job to its end; returns what was done: counts, and the threshold.

    Args:
      config: the options.
      beam_arguments: the engine and its options (`beam_influence.pipelines.runners`), and any of Beam's.
      make_pipeline: makes the empty pipeline, where a host program wants to.

    Raises:
      ValueError: wrong options or input, found before anything was written.
      RunFailedError: the pipeline failed.
    """
    beam_arguments = list(beam_arguments)
    open_file_systems(beam_arguments)
    engine = choose_engine(beam_arguments)
    pipeline = make_pipeline() if make_pipeline else beam.Pipeline(options=engine.options())
    try:
        build_cleaning(pipeline, config, _publish_ids(config))
        run_pipeline(pipeline, engine)
    finally:
        delete_folder(join(config.output, WORK))
    return json.loads(BeamFiles().read(join(config.output, FACTS)))
