"""The search behind `top_k` of the calculator: which stored vectors have the largest inner product with a query."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Protocol

import numpy as np

from beam_influence.influence_ops.scoring.ranking import Order
from beam_influence.influence_ops.scoring.top_k import TopK

Block = tuple[np.ndarray, np.ndarray]
"""Positions (B,) of examples in their data set, and their vectors [B, P]."""


class NearestNeighbors(Protocol):
    """A search: `build` once, then `query` any number of times."""

    def build(self, blocks: Iterable[Block], k: int, order: Order) -> None:
        """Takes in the vectors that will be searched for the k best."""
        ...

    def query(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The k best inner products with each row of [T, P], best first: values [T, k] and positions [T, k]."""
        ...


class LinearSearch:
    """Exact: every vector against every query, a block at a time. `blocks` must be iterable again for each query."""

    def build(self, blocks: Iterable[Block], k: int, order: Order) -> None:
        self._blocks = blocks
        self._k = k
        self._order: Order = order

    def query(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        top = TopK(len(queries), self._k, self._order)
        for positions, vectors in self._blocks:
            top.add(queries @ vectors.T, positions)
        return top.values, top.ids.astype(np.int64)


class FaissSearch:
    """FAISS's exact inner-product index in float32; for many queries over vectors that fit in memory.

    Raises:
      ValueError: FAISS is not installed.
    """

    def __init__(self) -> None:
        try:
            self._faiss = importlib.import_module("faiss")
        except ImportError as error:
            raise ValueError("FaissSearch needs FAISS: pip install faiss-cpu") from error

    def build(self, blocks: Iterable[Block], k: int, order: Order) -> None:
        self._sign = 1.0 if order == "descending" else -1.0
        self._index = None
        positions = []
        for at, vectors in blocks:
            if self._index is None:
                self._index = self._faiss.IndexFlatIP(vectors.shape[1])
            self._index.add(np.ascontiguousarray(vectors, dtype=np.float32))
            positions.append(at)
        self._positions = np.concatenate(positions) if positions else np.zeros(0, dtype=np.int64)
        self._k = min(k, len(self._positions))

    def query(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self._index is None:
            return np.zeros((len(queries), 0)), np.zeros((len(queries), 0), dtype=np.int64)
        values, rows = self._index.search(np.ascontiguousarray(self._sign * queries, dtype=np.float32), self._k)
        return self._sign * values.astype(np.float64), self._positions[rows]
