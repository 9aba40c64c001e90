"""Matrices as sums of few products, by the singular value decomposition: the shortest such sum for an error (Eckart & Young 1936).

Many small matrices are decomposed by TensorFlow, not by NumPy, whose LAPACK splits each among all cores: where other processes use these,
the cores spend a hundred times the work on waiting for each other.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from beam_influence.influence_ops.blas_threads import threads_for
from beam_influence.influence_ops.curvature.solved_block import Quotients
from beam_influence.influence_ops.model.gradients import BlockLayout

_FLOAT64 = np.dtype(np.float64)
_TRIED = 4  # queries whose rank is looked for first
LARGE = 256
"""Up to this many rows or columns a full decomposition is cheap."""
_FIRST = 8  # products that are tried first
_OVERSAMPLED = 8  # columns of the range finder beyond the rank (Halko, Martinsson & Tropp 2011)
_AT_ONCE = 1 << 19  # numbers in float64 at once, some times over


@dataclasses.dataclass(frozen=True)
class OfBlock:
    """A block's matrices of solutions [T, P], some of which are copied at a time: a block of several pieces is in no order of its own."""

    layout: BlockLayout
    solved: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """T, I, O."""
        return len(self.solved), self.layout.rows, self.layout.columns

    def __len__(self) -> int:
        return len(self.solved)

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self.layout.matrices(self.solved[rows])

    def built(self) -> np.ndarray:
        """[T, I, O]."""
        return self[:]


Matrices = np.ndarray | Quotients | OfBlock
"""[T, I, O], built or not."""
Factors = tuple[np.ndarray, np.ndarray]
"""l [T, r, I] and r [T, r, O]."""
_Times = Callable[[np.ndarray], np.ndarray]


def search_flops(rows: int, columns: int, queries: int, most: int) -> float:
    """What `low_rank` takes, in flops at the speed of a large matrix product; decompositions of small matrices run at a tenth of it."""
    small = min(rows, columns)
    if small <= LARGE:
        return queries * (4.0 * rows * columns * small + 250.0 * small**3)
    return 80.0 * queries * rows * columns * (most + _OVERSAMPLED)


def low_rank(matrices: Matrices, most: int, tolerance: float, dtype: np.dtype[Any] = _FLOAT64) -> Factors | None:
    """l [T, r, I] and r [T, r, O] with ‖V_t − Σ_r l_tr ⊗ r_tr‖ ≤ tolerance · ‖V_t‖ for each matrix V [T, I, O]; None: r > `most`.

    A few of the matrices are tried first. All is computed in float64, and rounded to `dtype`.
    """
    few = matrices[slice(None, None, max(1, len(matrices) // _TRIED))]
    if len(few) < len(matrices) and _factors(few, most, tolerance) is None:
        return None
    return _in_parts(matrices, most, tolerance, cut=False, dtype=dtype)


def shortest(matrices: Matrices, most: int, tolerance: float) -> Factors | None:
    """The same with the fewest products that all matrices can have; of large matrices, fewer are tried before more."""
    tried = most if min(matrices.shape[1:]) <= LARGE else _FIRST
    while True:
        tried = min(tried, most)
        found = low_rank(matrices, tried, tolerance)
        if found is not None or tried == most:
            return found
        tried *= 2


def truncated(matrices: Matrices, most: int, tolerance: float) -> Factors:
    """The same, but of rank `most` where the tolerance wants a larger one."""
    found = _in_parts(matrices, most, tolerance, cut=True)
    assert found is not None
    return found


def with_rank(factors: Factors, rank: int) -> Factors:
    """The same sums with products of zeros up to `rank` of them."""
    left, right = (np.pad(each, ((0, 0), (0, rank - each.shape[1]), (0, 0))) for each in factors)
    return left, right


def _in_parts(matrices: Matrices, most: int, tolerance: float, cut: bool, dtype: np.dtype[Any] = _FLOAT64) -> Factors | None:
    queries, rows, columns = matrices.shape
    step = max(1, _AT_ONCE // max(1, rows * columns))
    bound = max(1, min(most, rows, columns))
    left, right = np.zeros((queries, bound, rows), dtype), np.zeros((queries, bound, columns), dtype)
    rank = 1
    for first in range(0, queries, step):
        part = _factors(matrices[slice(first, first + step)], most, tolerance, cut)
        if part is None:
            return None
        for side, own in zip((left, right), part, strict=True):
            side[first : first + step, : own.shape[1]] = own
        rank = max(rank, part[0].shape[1])
    return left[:, :rank], right[:, :rank]


def _factors(matrices: Matrices, most: int, tolerance: float, cut: bool = False) -> Factors | None:
    _, rows, columns = matrices.shape
    with threads_for(max(rows, columns)) if min(rows, columns) <= LARGE else contextlib.nullcontext():  # many small products
        return _found(matrices, most, tolerance, cut)


def _found(matrices: Matrices, most: int, tolerance: float, cut: bool) -> Factors | None:
    _, rows, columns = matrices.shape
    if min(rows, columns) <= LARGE:
        # Right singular vectors of V, or of its transpose, from the smaller Gram matrix: squared errors to float64's rounding.
        wide = np.asarray(matrices if isinstance(matrices, np.ndarray) else matrices.built(), dtype=np.float64)
        squared = np.linalg.norm(wide, axis=(1, 2)) ** 2
        turned = columns > rows
        tall = wide.transpose(0, 2, 1) if turned else wide
        values, vectors = _eigh(tall.transpose(0, 2, 1) @ tall)
        inside, rotation = tall, vectors[:, :, ::-1]
        basis = rotation
        tail = np.maximum(np.cumsum(np.maximum(values, 0), axis=1)[:, ::-1], 0)
    else:
        # A randomised range finder with one power iteration (Halko, Martinsson & Tropp 2011, algorithm 4.4); its error is computed.
        turned = False
        times, transposed_times, squared = _products(matrices)
        start = np.random.default_rng(0).standard_normal((rows, min(most + _OVERSAMPLED, rows, columns)))
        range_of = _orthonormal(transposed_times(np.broadcast_to(start, (len(matrices), *start.shape))))
        range_of = _orthonormal(transposed_times(times(range_of)))
        inside = times(range_of)
        values, vectors = _eigh(inside.transpose(0, 2, 1) @ inside)
        rotation = vectors[:, :, ::-1]
        basis = range_of @ rotation
        outside = np.maximum(squared - np.linalg.norm(inside, axis=(1, 2)) ** 2, 0)
        tail = np.cumsum(np.maximum(values, 0), axis=1)[:, ::-1] + outside[:, None]
    # tail[:, r]: what is left out, squared, when r terms are kept.
    fits = tail <= (tolerance**2 * squared)[:, None]
    if not (cut or (fits.any(axis=1) | (tail.shape[1] <= most)).all()):
        return None
    needed = np.where(fits.any(axis=1), fits.argmax(axis=1), tail.shape[1])
    rank = max(int(needed.max(initial=0)), 1)
    if rank > most:
        if not cut:
            return None
        rank = most
    right = basis[:, :, :rank].transpose(0, 2, 1)
    left = (inside @ rotation[:, :, :rank]).transpose(0, 2, 1)  # V times the basis
    return (right, left) if turned else (left, right)


def _eigh(matrices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The eigenvalues [T, k], from the least on, and eigenvectors [T, k, k], as columns, of symmetric matrices."""
    with tf.device("CPU"):
        values, vectors = tf.linalg.eigh(tf.convert_to_tensor(matrices))
    return values.numpy(), vectors.numpy()


def _orthonormal(columns: np.ndarray) -> np.ndarray:
    """Orthonormal columns that span those of each matrix [T, n, k]."""
    with tf.device("CPU"):
        return tf.linalg.qr(tf.convert_to_tensor(columns))[0].numpy()


def _products(matrices: Matrices) -> tuple[_Times, _Times, np.ndarray]:
    """V and Vᵀ times columns of each, and ‖V‖²."""
    if isinstance(matrices, Quotients):
        return matrices.times, matrices.transposed_times, matrices.squares
    wide = np.asarray(matrices if isinstance(matrices, np.ndarray) else matrices.built(), dtype=np.float64)
    return wide.__matmul__, wide.transpose(0, 2, 1).__matmul__, np.linalg.norm(wide, axis=(1, 2)) ** 2
