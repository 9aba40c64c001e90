"""An index: r numbers for each training example, whose inner products with those of a test point are influence.

It is made once, from the gradients; afterwards test points are answered from it alone. With `random_projection` the inner
products are exactly the influence that the curvature gives; with `arnoldi` they are the influence within its r eigenvectors,
without the residual term, which r numbers can't carry.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from beam_influence.influence_ops.curvature import Preconditioner, load_preconditioner
from beam_influence.influence_ops.model.evaluate import evaluate
from beam_influence.influence_ops.model.explained_model import ExplainedModel
from beam_influence.influence_ops.reading.example_batch import ExampleBatch, Rejected
from beam_influence.influence_ops.results import schemas, tables
from beam_influence.influence_ops.results.array_folder import FileStore
from beam_influence.influence_ops.results.result_files import iterate_table, read_facts, table_files
from beam_influence.influence_ops.scoring.index_rows import as_stored, stored_vectors
from beam_influence.influence_ops.scoring.nearest_neighbors import FaissSearch
from beam_influence.influence_ops.scoring.outputs.base import run_facts
from beam_influence.influence_ops.scoring.query_block import QueryBlock, concatenate_queries
from beam_influence.influence_ops.scoring.ranking import Order
from beam_influence.influence_ops.scoring.scores import ScoreOptions
from beam_influence.influence_ops.scoring.top_k import TopK

INDEX = "index"
"""The table's name, and its folder's."""

Search = Literal["linear", "faiss"]

_SCORE_BYTES = 32 << 20
_MOST_ROWS = 8192


def embed_for_index(model: ExplainedModel, preconditioner: Preconditioner, batch: ExampleBatch) -> tuple[QueryBlock, list[Rejected]]:
    """The batch's test points as a query block in the index's r numbers, in place of gradients and solutions."""
    kept, _, gradients, rejected = evaluate(model, batch)
    embedded = preconditioner.embed(gradients)
    return QueryBlock(kept.ids, embedded, np.zeros((len(embedded), 0)), kept.groups), rejected


def rows_at_once(queries: int, dim: int) -> int:
    """How many rows of r numbers are multiplied with all queries at once: scores, and the rows in float64, take 32 MiB each at most."""
    return min(_MOST_ROWS, max(1, _SCORE_BYTES // (8 * max(queries, dim, 1))))


def best_of_file(rows: Iterable[pa.RecordBatch], blocks: list[QueryBlock], k: int, order: Order) -> tuple[list[TopK], int]:
    """The k best of one file's examples for each query of each block, by FAISS in float32; and how many examples there are."""
    search = FaissSearch()
    ids: list[np.ndarray] = [np.zeros(0, dtype=object)]
    schema = pa.schema([])

    def stored() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        nonlocal schema
        count = 0
        for part in rows:
            names, vectors = stored_vectors(part)
            schema = part.schema
            ids.append(names)
            yield np.arange(count, count + len(names)), vectors
            count += len(names)

    search.build(stored(), k, order)
    names = np.concatenate(ids)
    tops = []
    for block in blocks:
        top = TopK(len(block), k, order)
        values, positions = search.query(as_stored(block.gradients, schema))
        top.replace(values, names[positions])
        tops.append(top)
    return tops, len(names)


@dataclasses.dataclass(frozen=True)
class InfluenceIndex:
    """A finished index, read in this process alone.

    Attributes:
      folder: where it is.
      files: its Parquet files, in order.
      preconditioner: the curvature that it was made with.
      facts: n, damping, and what else a reader must know.
      store: how its files are read; None: from the local disk.
    """

    folder: str
    files: tuple[str, ...]
    preconditioner: Preconditioner
    facts: dict[str, Any]
    store: FileStore | None = None

    @classmethod
    def open(cls, folder: str, store: FileStore | None = None) -> InfluenceIndex:
        """The index that `beam-influence index` wrote.

        Raises:
          ValueError: none has been finished there.
        """
        files = tuple(table_files(folder, INDEX, store))
        preconditioner = load_preconditioner(f"{folder.rstrip('/')}/curvature", store)
        return cls(folder, files, preconditioner, read_facts(files[0], store), store)

    def top_k(
        self, model: ExplainedModel, test: Iterable[ExampleBatch], k: int = 10, order: Order = "descending", search: Search = "linear"
    ) -> pa.Table:
        """The k most influential training examples for each test point: the table `top_k`, see `schemas`.

        Raises:
          ValueError: the model is not the one that was indexed, or FAISS is wanted and not installed.
        """
        operator = self.preconditioner.bind(model)
        embedded = [embed_for_index(model, operator, batch)[0] for batch in test]
        blocks = concatenate_queries(embedded, max(1, sum(len(block) for block in embedded)))
        if not blocks:
            return schemas.TOP_K.empty_table()
        (block,) = blocks
        top = TopK(len(block), k, order)
        for path in self.files:
            rows = iterate_table(path, self.store, rows_at_once(*block.gradients.shape))
            if search == "faiss":
                top.merge(best_of_file(rows, blocks, k, order)[0][0])
                continue
            for part in rows:
                ids, vectors = stored_vectors(part)
                top.add(as_stored(block.gradients, part.schema) @ vectors.T, ids)
        return tables.top_k_table(block.ids, top, run_facts(self.preconditioner.meta, ScoreOptions())[0])
