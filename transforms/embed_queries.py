"""Test examples to blocks of solved gradients, which every worker of the scoring stage gets."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam import pvalue
from apache_beam.utils.shared import Shared

from beam_influence.influence_ops.model.gradients.placed import PlacedGradients
from beam_influence.influence_ops.reading.example_batch import ExampleBatch, Rejected
from beam_influence.influence_ops.results.text_arrays import bytes_to_texts, texts_to_bytes
from beam_influence.influence_ops.scoring.index import embed_for_index
from beam_influence.influence_ops.scoring.query_block import QUERY_ARRAYS, QueryArray, QueryBlock, concatenate_queries
from beam_influence.influence_ops.scoring.scores import embed_queries
from beam_influence.influence_ops.scoring.stored_form import WHOLE, FactoredSolutions, StoredForm
from beam_influence.transforms.broadcast import INLINE_LIMIT, Broadcast
from beam_influence.transforms.elements import QueryReference, Shard
from beam_influence.transforms.files import join
from beam_influence.transforms.finish_curvature import open_operator
from beam_influence.transforms.open_model import ModelSpec
from beam_influence.transforms.read_shards import COUNTS, REJECTED, REPORT_TYPES, ShardDoFn, ShardReader
from beam_influence.transforms.typed import outputs

QUERIES = "queries"
QUERY_ERROR = "query_error"
"""The largest relative error of test points that are kept as factors, in the description of their block and in the facts of a table."""
_LENGTH = "sequence_length"
_TURNED = "turned_blocks"


def block_key(shard: str, number: int) -> str:
    """The key of a block of the shard with this key: they order as the test points do."""
    return f"{shard}-{number:05d}"


class Embedder:
    """Model and operator of one process (`Shared` can't hold a tuple)."""

    def __init__(self, model: ModelSpec, broadcast: Broadcast):
        self.model, self.preconditioner = open_operator(model, broadcast)


class _EmbedDoFn(ShardDoFn):
    def __init__(
        self,
        reader: ShardReader,
        model: ModelSpec,
        block_size: int,
        work: str,
        for_index: bool,
        inline_limit: int,
        needs: Collection[QueryArray] = QUERY_ARRAYS,
        form: StoredForm = WHOLE,
    ):
        super().__init__(reader)
        self._inline_limit = inline_limit
        self._spec = model
        self._block_size = block_size
        self._work = work
        self._embed = embed_for_index if for_index else functools.partial(embed_queries, needs=needs, form=form)
        self._shared = Shared()
        self._blocks: list[QueryBlock] = []
        self._references: list[QueryReference] = []

    def open(self, sides: tuple) -> None:
        (preconditioner,) = sides
        self._embedder = self._shared.acquire(
            lambda: Embedder(self._spec, preconditioner), tag=f"{self._spec}|{preconditioner.digest}"
        )

    def begin_shard(self, shard: Shard) -> None:
        self._shard = shard
        self._blocks, self._references = [], []

    def use(self, batch: ExampleBatch) -> list[Rejected]:
        block, rejected = self._embed(self._embedder.model, self._embedder.preconditioner, batch)
        self._blocks.append(block)
        if sum(map(len, self._blocks)) >= self._block_size:
            blocks = concatenate_queries(self._blocks, self._block_size)
            self._blocks = [] if len(blocks[-1]) == self._block_size else [blocks.pop()]
            self._publish(self._shard, blocks)
        return rejected

    def end_shard(self, shard: Shard) -> Iterator[object]:
        self._publish(shard, concatenate_queries(self._blocks, self._block_size))
        yield from self._references
        self._blocks, self._references = [], []

    def _publish(self, shard: Shard, blocks: Iterable[QueryBlock]) -> None:
        left = self._inline_limit // shard.parts - sum(reference.broadcast.inline_bytes for reference in self._references)
        for block in blocks:
            key = block_key(shard.key, len(self._references))
            broadcast = publish_queries(block, join(self._work, QUERIES, key), left)
            left -= broadcast.inline_bytes
            self._references.append(QueryReference(key, broadcast))


def publish_queries(block: QueryBlock, folder: str, inline_limit: int = INLINE_LIMIT) -> Broadcast:
    """A query block as a broadcast; ids travel as UTF-8, since saved arrays hold no objects."""
    arrays = {"ids": texts_to_bytes(block.ids)}
    arrays |= {name: array for name in QUERY_ARRAYS if (array := getattr(block, name)).shape[1]}
    for number, part in enumerate(block.factored.parts if block.factored is not None else ()):
        arrays |= {f"solved-{number}-{place}": array for place, array in enumerate(part)}
    if block.errors is not None:
        arrays["errors"] = block.errors
    if block.groups is not None:
        arrays["groups"] = texts_to_bytes(block.groups)
    meta: dict[str, Any] = {} if block.factored is None else {QUERY_ERROR: block.factored.error, _TURNED: block.factored.turned}
    if block.placed is not None:
        arrays |= dict(block.placed.arrays())
        meta[_LENGTH] = block.placed.length
    return Broadcast.publish(arrays, meta, folder, inline_limit)


def open_block(reference: QueryReference, needs: Collection[QueryArray] = QUERY_ARRAYS) -> QueryBlock:
    """A block with those of its arrays that are needed."""
    arrays, meta = reference.broadcast.open(lambda name: name.partition("-")[0] in ("ids", "groups", *needs))
    ids = bytes_to_texts(arrays["ids"])
    nothing = np.zeros((len(ids), 0))
    gradients, solved = (arrays.get(name, nothing) for name in QUERY_ARRAYS)
    parts: dict[int, list[np.ndarray]] = {}
    for _, number, place in sorted((*name.split("-"),) for name in arrays if name.startswith("solved-")):
        parts.setdefault(int(number), []).append(arrays[f"solved-{number}-{place}"])
    in_order = tuple(tuple(parts[number]) for number in sorted(parts))
    factored = FactoredSolutions(in_order, turned=tuple(meta[_TURNED])) if parts else None
    placed = PlacedGradients.of_arrays(arrays, int(meta[_LENGTH])) if "placed" in needs and len(ids) else None
    groups = bytes_to_texts(arrays["groups"]) if "groups" in arrays else None
    return QueryBlock(ids, gradients, solved, groups, factored, placed, arrays.get("errors"))


def open_queries(
    references: Iterable[QueryReference], needs: Collection[QueryArray] = QUERY_ARRAYS
) -> tuple[list[str], list[QueryBlock]]:
    """The keys and the blocks, in the order of the keys."""
    known = sorted(references, key=lambda reference: reference.key)
    return [reference.key for reference in known], [open_block(reference, needs) for reference in known]


@dataclasses.dataclass
class EmbedQueries(beam.PTransform):
    """Computes and solves the test examples' gradients, once.

    Args:
      reader: reads the test shards.
      model: the model.
      preconditioner: the operator, one `Broadcast`.
      block_size: test examples in a block; a block's results are one key and one row group.
      work: a folder for temporary files that all workers reach.
      inline_limit: how many bytes the blocks of each file may hold inline.
      for_index: whether blocks hold the r numbers that an index is searched with, in place of gradients and solutions.
      needs: which of gradients and solutions later steps look at; the others are not kept.
      form: how solutions are kept.
      accelerator: Beam's resource hint for this step alone, or None.

    In: `Shard`. Out: a dictionary of PCollections: `queries` (`QueryReference`), `rejected`, `counts`.
    """

    reader: ShardReader
    model: ModelSpec
    preconditioner: pvalue.PCollection[Broadcast]
    block_size: int
    work: str
    inline_limit: int
    for_index: bool = False
    needs: tuple[QueryArray, ...] = QUERY_ARRAYS
    form: StoredForm = WHOLE
    accelerator: str | None = None

    def expand(self, shards: pvalue.PCollection[Shard]) -> dict[str, pvalue.PCollection]:
        embed = beam.ParDo(
            _EmbedDoFn(
                self.reader,
                self.model,
                self.block_size,
                self.work,
                self.for_index,
                self.inline_limit,
                self.needs,
                self.form,
            ),
            pvalue.AsSingleton(self.preconditioner),
        )
        if self.accelerator:
            embed.with_resource_hints(accelerator=self.accelerator)  # it changes `embed` and returns it
        typed = embed.with_output_types(QueryReference, **REPORT_TYPES)
        embedded = outputs(shards | "Embed" >> typed.with_outputs(REJECTED, COUNTS, main=QUERIES))
        return {tag: embedded[tag] for tag in (QUERIES, REJECTED, COUNTS)}
