"""Which files an index lacks. A file is known by its content; its name is its path below a base folder that the manifest keeps."""

from __future__ import annotations

import dataclasses
import itertools
import os
import posixpath
from typing import Any

from beam_influence.influence_ops.results.result_files import SourceFile, read_manifest, table_files, written_files
from beam_influence.influence_ops.scoring.index import INDEX
from beam_influence.pipelines.config import InfluenceConfig
from beam_influence.transforms.elements import Shard
from beam_influence.transforms.files import BeamFiles
from beam_influence.transforms.read_shards import content_digest

BASE = "source_base"


def source_base(shards: list[Shard]) -> str:
    """The folder, with its final '/', that the names of files are relative to, wherever the next call comes from."""
    return _absolute(shards[0].path[: len(shards[0].path) - len(shards[0].name)])


def index_to_grow(config: InfluenceConfig, train: list[Shard]) -> tuple[dict[str, Any], list[Shard]]:
    """The manifest of the index, with its base folder, and the training files with the names and numbers that theirs have, or will
    have, in it.

    Raises:
      ValueError: there is no index, it was made with other options, or a file is not what it was when it was indexed.
    """
    files = BeamFiles()
    table_files(config.output, INDEX, files)  # refuses a folder without an index
    manifest = read_manifest(config.output, files)
    before = manifest["config"]
    for name in ("id_feature", "index_dtype"):
        if before.get(name) != getattr(config, name):
            made = before.get(name)
            raise ValueError(f"--{name} {getattr(config, name)}: the index in {config.output!r} was made with {made}; use the same")
    written = written_files(manifest)
    known = {file.source.name: file.source for file in written if file.source is not None}
    base = _base(manifest.get(BASE), train, known)
    # shard-N.parquet, or shard-N-P.parquet for a part
    taken = {file.path.removesuffix(".parquet").partition("-")[2].partition("-")[0] for file in written if file.table == INDEX}
    numbers = (number for number in itertools.count() if f"{number:05d}" not in taken)
    shards = []
    for shard in train:
        name = _name_below(_absolute_file(shard.path), base)
        if name in known and shard.size != known[name].size:
            raise ValueError(
                f"{shard.path} has {shard.size:,} bytes; when {name!r} was indexed it had {known[name].size:,}: an index only "
                "grows; make a new one, or give the new file another name"
            )
        shards.append(dataclasses.replace(shard, name=name, ordinal=next(numbers)))
    return {**manifest, BASE: base}, shards


def _base(kept: object, train: list[Shard], known: dict[str, SourceFile]) -> str:
    """The index's base folder, or where that has been moved to, which is seen by a known file under its name below it."""
    base = kept if isinstance(kept, str) else None
    paths = [_absolute_file(shard.path) for shard in train]
    if base is not None and any(path.startswith(base) or _name_below(path, base) in known for path in paths):
        return base
    by_last: dict[str, list[SourceFile]] = {}
    for source in known.values():
        by_last.setdefault(posixpath.basename(source.name), []).append(source)
    tried = set()
    for path, shard in zip(paths, train, strict=True):
        for source in by_last.get(posixpath.basename(path), ()):
            folder = path.removesuffix(source.name)
            if path.endswith(f"/{source.name}") and source.size == shard.size and folder not in tried:
                tried.add(folder)  # one file of each folder is read
                if content_digest(shard) == source.sha256:
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
