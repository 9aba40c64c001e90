"""Decoded examples that one pass over the files leaves in the work folder for the next ones."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from typing import BinaryIO, cast

import pyarrow as pa

from beam_influence.influence_ops.reading.decoded_file import DecodedWriter, NotKept, ReadBatch, read_decoded
from beam_influence.transforms.elements import Shard
from beam_influence.transforms.files import BeamFiles, join

_BUFFER = 1 << 22


@dataclasses.dataclass(frozen=True)
class DecodedCache:
    """A file for each shard of one split, as `decoded_file` has them. Whoever reads a shard that has none writes it; it appears when it is
    complete, and a bundle that runs twice writes the same again.

    Attributes:
      folder: where the files are, named for all that decides what is in them.
      split: whose shards are kept.
      bytes_for_byte: how many bytes each byte of a shard may take; a shard that takes more is not kept.
    """

    folder: str
    split: str
    bytes_for_byte: float

    def find(self, shard: Shard) -> str | None:
        """The file of a shard; None: it has none yet."""
        path = self._path(shard)
        return path if self._keeps(shard) and BeamFiles().exists(path) else None

    def keep(self, shard: Shard, batches: Iterator[ReadBatch], with_ids: bool) -> Iterator[ReadBatch]:
        """The batches of a shard as they are, written on the way where they can be kept."""
        if not self._keeps(shard):
            yield from batches
            return
        most = shard.size / shard.parts * self.bytes_for_byte
        waiting: list[ReadBatch] = []  # what is read and not yet given on
        try:
            with BeamFiles().open_write(self._path(shard)) as file:
                writer = DecodedWriter(file, with_ids, most)
                for read in batches:
                    waiting.append(read)
                    writer.add(*read)
                    yield waiting.pop()
                writer.end(shard.name)
        except NotKept:
            yield from waiting
            yield from batches

    def _keeps(self, shard: Shard) -> bool:
        return shard.split == self.split and shard.limit is None

    def _path(self, shard: Shard) -> str:
        return join(self.folder, f"{shard.key}.arrow")


def read_kept(path: str) -> Iterator[ReadBatch]:
    """The batches in a file that `DecodedCache.find` found; one on this machine's disk is mapped."""
    if os.path.isfile(path):
        with pa.memory_map(path) as mapped:
            yield from read_decoded(mapped)
        return
    with BeamFiles().open_read(path) as file:
        yield from read_decoded(cast(BinaryIO, pa.BufferedInputStream(pa.PythonFile(file), _BUFFER)))
