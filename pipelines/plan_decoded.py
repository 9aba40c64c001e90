"""`--decoded_cache`: whether passes after the first read decoded examples from the work folder, by what the first examples took."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import shutil
import time
from importlib import metadata
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from beam_influence.influence_ops.import_path import source_digest
from beam_influence.influence_ops.reading import READERS
from beam_influence.influence_ops.reading.decode import RowDecoder
from beam_influence.influence_ops.reading.decoded_file import DecodedWriter, NotKept, ReadBatch, read_decoded
from beam_influence.influence_ops.reading.features import FeatureSpec
from beam_influence.pipelines.machine_memory import machine_memory, parse_bytes, size_text
from beam_influence.pipelines.options.run import AUTO, OFF
from beam_influence.pipelines.planning.sample import count_examples
from beam_influence.pipelines.planning.short_plan import count_passes
from beam_influence.transforms.decoded_cache import DecodedCache
from beam_influence.transforms.elements import Shard
from beam_influence.transforms.files import join
from beam_influence.transforms.read_shards import open_shard

if TYPE_CHECKING:
    from beam_influence.pipelines.config import InfluenceConfig
    from beam_influence.pipelines.prepare import PreparedRun

_ROWS, _BATCHES, _SECONDS = 32, 16, 0.5  # that are looked at
_FILES = 2  # in which rows are counted
_LEAST_SECONDS, _LEAST_SHARE = 1.0, 0.1  # what auto wants to save, of the processors' and of what all passes take to decode
_STORE_RATE, _DISK_RATE, _CACHED_RATE = 100e6, 300e6, 2e9  # bytes a second that are assumed: an object store, a disk, memory before it
_OF_FREE_DISK = 0.5
_OF_SOURCE = 4  # on an object store, bytes for each of the files' own


@dataclasses.dataclass(frozen=True)
class DecodedPlan:
    """What `--decoded_cache` came to.

    Attributes:
      cache: where decoded examples are kept; None: nowhere.
      passes: over the training set.
      size: the bytes of all of its examples, decoded, by the first ones.
      decode, keep, read: seconds that an example takes to be decoded, to be written as it is then, and to be read so.
      why: in words.
    """

    cache: DecodedCache | None
    passes: int
    size: int
    decode: float
    keep: float
    read: float
    why: str

    @property
    def text(self) -> str:
        """A line for the terminal."""
        return f"decoded examples: {self.why}"

    def as_json(self) -> dict[str, Any]:
        """For the manifest."""
        numbers = {name: getattr(self, name) for name in ("passes", "size", "decode", "keep", "read", "why")}
        return {"used": self.cache is not None, **numbers}


def plan_decoded(config: InfluenceConfig, prepared: PreparedRun) -> DecodedPlan | None:
    """What is kept between passes; None where that is not asked, or there is one pass.

    Raises:
      ValueError: `--decoded_cache SIZE` is smaller than what is decoded, or that can't be kept.
    """
    features, passes = prepared.train_features, count_passes(config, prepared)
    if config.decoded_cache == OFF or features is None or not prepared.train or passes < 2:
        return None
    cost = _cost(prepared.train, features)
    if isinstance(cost, str):
        return _refused(config, DecodedPlan(None, passes, 0, 0.0, 0.0, 0.0, f"decoded anew in each pass: {cost}"))
    rows = count_examples(prepared.train, features, _FILES).count
    size = round(rows * cost.size)
    most = _most_bytes(config, prepared.train.total_bytes)
    found = DecodedPlan(None, passes, size, *cost[1:], "")
    if size > most:
        why = f"decoded anew in each pass: {size_text(size)} are more than {size_text(most)}"
        return _refused(config, dataclasses.replace(found, why=why))
    saved, decoding = _seconds_saved(config, found, rows, prepared.train.total_bytes)
    if config.decoded_cache == AUTO and saved < max(_LEAST_SECONDS, _LEAST_SHARE * decoding):
        why = f"decoded anew in each pass: that takes {decoding:.1f} s, and keeping them would save {max(saved, 0):.1f}"
        return dataclasses.replace(found, why=why)
    folder = join(config.work_folder, "decoded", _digest(config, prepared, features))
    cache = DecodedCache(folder, prepared.train[0].split, most / max(prepared.train.total_bytes, 1))
    why = (
        f"kept, about {size_text(size)} in the work folder; {passes - 1:,} of {passes:,} passes read them there "
        f"({1e6 * cost.decode:,.0f} µs to decode one, {1e6 * cost.read:,.0f} to read it decoded)"
    )
    return dataclasses.replace(found, cache=cache, why=why)


def _refused(config: InfluenceConfig, found: DecodedPlan) -> DecodedPlan:
    if config.decoded_cache != AUTO:
        raise ValueError(f"--decoded_cache {config.decoded_cache}: {found.why}; give more, or off")
    return found


class _Cost(NamedTuple):
    """What an example takes: bytes decoded; seconds to decode, to write decoded, to read decoded."""

    size: float
    decode: float
    keep: float
    read: float


def _cost(files: list[Shard] | Any, features: FeatureSpec) -> _Cost | str:
    """Of the first examples; or why they can't be kept."""
    batches, decode = _decoded(files[0], features)
    rows = sum(len(batch) for batch, _ in batches)
    if not rows:
        return "none of the first can be used"
    sink, started = io.BytesIO(), time.process_time()
    try:
        writer = DecodedWriter(sink, features.id is not None)
        for batch, rejected in batches:
            writer.add(batch, rejected)
        writer.end(files[0].name)
    except NotKept as error:
        return f"they can't be kept ({error})"
    written = time.process_time()
    for _ in read_decoded(pa.py_buffer(sink.getbuffer())):
        pass
    return _Cost(sink.tell() / rows, decode, (written - started) / rows, (time.process_time() - written) / rows)


def _decoded(shard: Shard, features: FeatureSpec) -> tuple[list[ReadBatch], float]:
    """Some of the first rows of a file, and the seconds that one takes; the first ones, for which functions may be compiled, count where
    there are no others."""
    reader, decoder = READERS[features.format](features.features()), RowDecoder(features)
    batches: list[ReadBatch] = []
    spent: list[tuple[float, int]] = []
    stop = time.monotonic() + _SECONDS
    with open_shard(shard) as file:
        read = reader.read(file, _ROWS, shard.span)
        for _ in range(_BATCHES):
            started = time.process_time()
            rows = next(read, None)
            if rows is None:
                break
            batches.append(decoder.decode(rows, shard.name))
            spent.append((time.process_time() - started, len(rows.positions)))
            if time.monotonic() > stop:
                break
    counted = spent[1:] or spent
    return batches, sum(seconds for seconds, _ in counted) / max(sum(rows for _, rows in counted), 1)


def _most_bytes(config: InfluenceConfig, source: int) -> int:
    if config.decoded_cache != AUTO:
        return parse_bytes(config.decoded_cache)
    return int(_OF_FREE_DISK * shutil.disk_usage(_existing(config.work_folder)).free) if _is_local(config) else _OF_SOURCE * source


def _seconds_saved(config: InfluenceConfig, found: DecodedPlan, rows: int, source: int) -> tuple[float, float]:
    """What keeping examples saves in all passes, and what they take to decode in all without."""
    rate = _STORE_RATE
    if _is_local(config):
        rate = _CACHED_RATE if found.size < machine_memory() / 4 else _DISK_RATE
    once = rows * found.decode + (0 if _is_local(config) else source / rate)
    moved = found.size / rate
    others = found.passes - 1
    return others * (once - rows * found.read - moved) - rows * found.keep - moved, found.passes * once


def _is_local(config: InfluenceConfig) -> bool:
    return "://" not in config.work_folder


def _existing(folder: str) -> str:
    """The folder, or the nearest above it that is there."""
    path = os.path.abspath(folder)
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return path


def _digest(config: InfluenceConfig, prepared: PreparedRun, features: FeatureSpec) -> str:
    """Of all that decides what is kept: a resumed run reads no other."""
    content = {
        "version": metadata.version("beam-influence"),
        "files": prepared.train.digest(),
        "features": repr(features),
        "preprocess": source_digest((config.preprocess or "").partition(":")[0]) if config.preprocess else "",
        "rows": (prepared.batch_size, config.shard_size),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
