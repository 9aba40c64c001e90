"""Which files an index lacks. A file is known by its content; its name is its path below a base folder that the manifest keeps."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from beam_influence.influence_ops.arrow_compute import pc
from beam_influence.influence_ops.results.listed_files import LISTED
from beam_influence.influence_ops.results.result_files import list_batches, read_manifest, table_files
from beam_influence.influence_ops.results.text_arrays import texts_to_bytes
from beam_influence.influence_ops.scoring.index import INDEX
from beam_influence.pipelines.config import InfluenceConfig
from beam_influence.transforms.broadcast import INLINE_LIMIT, Broadcast
from beam_influence.transforms.elements import Shard
from beam_influence.transforms.file_list import FileList
from beam_influence.transforms.files import BeamFiles, join
from beam_influence.transforms.read_shards import content_digest

BASE = "source_base"
_SAME = ("id_feature", "label_feature", "weight_feature", "input_features", "preprocess", "default", "schema", "index_dtype")
NOTHING_KNOWN = Broadcast.publish({"digests": np.array([], "S64"), "names": np.array([], "S1")}, {}, "")


def source_base(shards: Sequence[Shard]) -> str:
    """The folder, with its final '/', that the names of files are relative to, wherever the next call comes from."""
    first = shards[0]
    return _absolute(first.path[: len(first.path) - len(first.name)])


def index_to_grow(config: InfluenceConfig, train: FileList) -> tuple[dict[str, Any], FileList]:
    """The manifest of the index, with its base folder, and the training files with the names and numbers that theirs have, or will
    have, in it.

    Raises:
      ValueError: there is no index, it was made with other options, or a file is not what it was when it was indexed.
    """
    files = BeamFiles()
    table_files(config.output, INDEX, files)  # refuses a folder without an index
    manifest = read_manifest(config.output, files)
    before = manifest["config"]
    for name in _SAME:
        made = before.get(name)
        if made != getattr(config, name):
            raise ValueError(f"--{name} {getattr(config, name)}: the index in {config.output!r} was made with {made}; use the same")
    listed = _indexed(config.output, manifest)
    known = listed["source"].combine_chunks().cast(pa.large_string())
    base = _base(manifest.get(BASE), train, listed)
    names = pa.array((_name_below(_absolute_file(path.as_py()), base) for path in train.table["path"]), pa.large_string())
    places = pc.index_in(names, known)
    sizes, had = train.table["size"].combine_chunks(), listed["source_bytes"].take(places).combine_chunks()
    for place in pc.indices_nonzero(pc.fill_null(pc.not_equal(sizes, had), False)).to_pylist():
        raise ValueError(
            f"{train[place].path} has {sizes[place].as_py():,} bytes; when {names[place].as_py()!r} was indexed it had "
            f"{had[place].as_py():,}: an index only grows; make a new one, or give the new file another name"
        )
    # shard-N.parquet, or shard-N-P.parquet for a part
    taken = pc.struct_field(pc.extract_regex(listed["path"].combine_chunks(), r"shard-(?P<number>\d+)"), "number").cast(pa.int64())
    free = np.setdiff1d(np.arange(len(taken) + len(train)), taken.to_numpy(zero_copy_only=False))
    of_known = pc.fill_null(listed["source_sha256"].take(places), "")
    return {**manifest, BASE: base}, train.with_columns(name=names, ordinal=free[: len(train)], known=of_known)


def known_contents(output: str, manifest: Mapping[str, Any], work: str) -> Broadcast:
    """The files that an index was made from, for its workers; see `IndexExamples`."""
    listed = _indexed(output, manifest).sort_by("source_sha256")
    digests = listed["source_sha256"].to_pylist()
    arrays = {"digests": np.array(digests, dtype="S64"), "names": texts_to_bytes(listed["source"].to_pylist())}
    return Broadcast.publish(arrays, {}, join(work, "known"), INLINE_LIMIT // 10)  # it is in the job's graph


def _indexed(output: str, manifest: Mapping[str, Any]) -> pa.Table:
    """The index's files in the list of its result files."""
    of_index = (pc.field("table") == INDEX) & pc.field("source").is_valid()
    return pa.Table.from_batches((rows.filter(of_index) for rows in list_batches(output, manifest, BeamFiles())), LISTED)


def _base(kept: object, train: FileList, listed: pa.Table) -> str:
    """The index's base folder, or where that has been moved to, which is seen by a known file under its name below it."""
    base = kept if isinstance(kept, str) else None
    if base is not None:
        paths = [_absolute_file(path.as_py()) for path in train.table["path"]]
        names = pa.array([_name_below(path, base) for path in paths], pa.string())
        if any(path.startswith(base) for path in paths) or pc.any(pc.is_in(names, listed["source"].combine_chunks())).as_py():
            return base
    by_last: dict[str, dict[str, tuple[int, str]]] = {}
    for name, size, digest in zip(*(listed[column].to_pylist() for column in ("source", "source_bytes", "source_sha256")), strict=True):
        by_last.setdefault(posixpath.basename(name), {})[name] = (size, digest)
    tried = set()
    for shard in train:
        path = _absolute_file(shard.path)
        for name, (size, digest) in by_last.get(posixpath.basename(path), {}).items():
            folder = path.removesuffix(name)
            if path.endswith(f"/{name}") and size == shard.size and folder not in tried:
                tried.add(folder)  # one file of each folder is read
                if content_digest(shard) == digest:
                    return folder
    return source_base(train) if base is None else base


def _name_below(path: str, base: str) -> str:
    """A name that no other path has: relative to the base folder, with `..` where it lies outside; the path itself in another store."""
    if path.startswith(base):
        return path[len(base) :]
    store, inner = _split(path)
    of_base, folder = _split(base)
    return posixpath.relpath(inner, folder) if store == of_base else path


def _split(path: str) -> tuple[str, str]:
    """The store, such as `gs://bucket`, empty for the local disk, and the path in it."""
    scheme, separator, rest = path.partition("://")
    if not separator:
        return "", path
    bucket, _, inner = rest.partition("/")
    return f"{scheme}://{bucket}", f"/{inner}"


def _absolute(folder: str) -> str:
    return folder if "://" in folder else os.path.abspath(folder).rstrip("/") + "/"


def _absolute_file(path: str) -> str:
    return path if "://" in path else os.path.abspath(path)
