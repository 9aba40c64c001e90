"""Every training example to the r numbers of an index, a file of it for each shard; what is in it already is left alone."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam import pvalue
from apache_beam.utils.shared import Shared

from beam_influence.influence_ops.model.evaluate import evaluate
from beam_influence.influence_ops.reading.example_batch import ExampleBatch, Rejected
from beam_influence.influence_ops.results.result_files import ParquetFile, SourceFile
from beam_influence.influence_ops.results.text_arrays import bytes_to_texts
from beam_influence.influence_ops.scoring.index import INDEX
from beam_influence.influence_ops.scoring.index_rows import IndexDtype, index_schema, index_table, stored_error
from beam_influence.influence_ops.scoring.outputs.base import run_facts
from beam_influence.influence_ops.scoring.scores import ScoreOptions
from beam_influence.transforms.broadcast import Broadcast
from beam_influence.transforms.elements import FILES, Shard, WrittenFile
from beam_influence.transforms.embed_queries import Embedder
from beam_influence.transforms.files import BeamFiles
from beam_influence.transforms.open_model import ModelSpec
from beam_influence.transforms.read_shards import REPORT_TYPES, ShardDoFn, ShardReader
from beam_influence.transforms.typed import outputs

_LOG = logging.getLogger(__name__)


class _IndexEmbedder(Embedder):
    """The facts that an index tells, too, and how many numbers each example has in it."""

    def __init__(self, model: ModelSpec, broadcast: Broadcast):
        super().__init__(model, broadcast)
        self.facts = run_facts(self.preconditioner.meta, ScoreOptions())[1]
        self.dim = self.preconditioner.embed(np.zeros((1, self.model.size))).shape[1]


class _IndexDoFn(ShardDoFn):
    def __init__(self, reader: ShardReader, model: ModelSpec, wanted: IndexExamples):
        super().__init__(reader)
        self._spec = model
        self._dtype: IndexDtype = wanted.dtype
        self._known = wanted.known
        self._contents: dict[str, np.ndarray] | None = None
        self._output = wanted.output
        self._shared = Shared()
        self._file: ParquetFile | None = None

    def process(self, shard: Shard, *sides: Any) -> Iterator[object]:
        if shard.known and shard.known == shard.sha256:
            return
        if shard.known:
            raise ValueError(
                f"{shard.path} is not what it was when {shard.name!r} was indexed: an index only grows; make a new one, or give the new "
                "file another name"
            )
        same = self._name_with(shard.sha256)
        if same is not None and not shard.part:
            _LOG.warning("%s is left out: it has the content of %s, which is in the index", shard.path, same)
        if same is not None:
            return
        self._source = SourceFile(shard.name, shard.size, shard.sha256)
        yield from super().process(shard, *sides)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_contents": None}

    def _name_with(self, sha256: str) -> str | None:
        """The name of the file in the index that has this content."""
        if self._contents is None:
            self._contents = self._known.open()[0]
        digests, digest = self._contents["digests"], sha256.encode()
        place = int(np.searchsorted(digests, digest))
        if place == len(digests) or digests[place] != digest:
            return None
        return str(bytes_to_texts(self._contents["names"][place : place + 1])[0])

    def open(self, sides: tuple) -> None:
        preconditioner = sides[0]  # the second makes it wait for the verdict on rejected examples
        self._embedder = self._shared.acquire(
            lambda: _IndexEmbedder(self._spec, preconditioner), tag=f"{self._spec}|{preconditioner.digest}"
        )

    def begin_shard(self, shard: Shard) -> None:
        schema = index_schema(self._embedder.dim, self._dtype)
        name = f"shard-{shard.key}"
        self._error = 0.0
        self._file = ParquetFile(self._output, INDEX, name, schema, self._embedder.facts, BeamFiles(), self._source)

    def use(self, batch: ExampleBatch) -> list[Rejected]:
        assert self._file is not None
        kept, _, gradients, rejected = evaluate(self._embedder.model, batch)
        if len(kept):
            embedded = self._embedder.preconditioner.embed(gradients)
            rows = index_table(kept.ids, embedded, self._dtype)
            self._error = max(self._error, stored_error(embedded, rows))
            self._file.write(rows)
        return rejected

    def end_shard(self, shard: Shard) -> Iterator[object]:
        assert self._file is not None
        yield pvalue.TaggedOutput(FILES, dataclasses.replace(self._file.close(), error=self._error))
        self._file = None

    def abandon_shard(self) -> None:
        if self._file is not None:
            self._file.abandon()
        self._file = None


@dataclasses.dataclass
class IndexExamples(beam.PTransform):
    """Embeds training examples where they are read, and writes them.

    Args:
      reader: reads the training shards.
      model: the model.
      preconditioner: the operator, one `Broadcast`; it must have an embedding.
      gate: any collection that must be complete before this starts.
      dtype: how the numbers are stored.
      known: the files that are in the index already, a `Broadcast` of `digests`, sorted SHA-256 (N,) as text, and `names` (N,): what has
        the content of one is read only to see that.
      output: the folder of the index.
      accelerator: Beam's resource hint for this step alone, or None.

    In: `Shard` with its file's SHA-256. Out: a dictionary of PCollections: `files` (`WrittenFile`), `rejected`, `counts`.
    """

    reader: ShardReader
    model: ModelSpec
    preconditioner: pvalue.PCollection[Broadcast]
    gate: pvalue.PCollection
    dtype: IndexDtype
    known: Broadcast
    output: str
    accelerator: str | None = None

    def expand(self, shards: pvalue.PCollection[Shard]) -> dict[str, pvalue.PCollection]:
        index = beam.ParDo(
            _IndexDoFn(self.reader, self.model, self), pvalue.AsSingleton(self.preconditioner), pvalue.AsIter(self.gate)
        )
        if self.accelerator:
            index.with_resource_hints(accelerator=self.accelerator)  # it changes `index` and returns it
        types = {FILES: WrittenFile, **REPORT_TYPES}
        indexed = outputs(shards | "Index" >> index.with_output_types(type(None), **types).with_outputs(*types))
        return {tag: indexed[tag] for tag in types}
