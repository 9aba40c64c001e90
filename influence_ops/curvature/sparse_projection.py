"""Sparse random projections (SJLT) of P numbers to k: every weight is added, with a random sign, to s of the k numbers.

    S = s^-½ · [S_1; …; S_s],   S_j has k/s rows, and in each column one entry, ±1

E[SᵀS] = I, so that E⟨Sx, Sy⟩ = ⟨x, y⟩ (Kane & Nelson 2014, 1012.1577; for gradients, GraSS, Hu et al. 2025, 2505.18976). The weight in
row i and column o of a layer's matrix [I, O] goes to the bucket (h(i) + h'(o)) mod k/s with the sign σ(i)·σ'(o), h, h' and σ, σ' uniform:
the sketch of a product a ⊗ g is then the circular convolution of those of a and g (Pham & Pagh 2013, TensorSketch), so that a layer's
gradient Σ a ⊗ g is projected from its factors and need not be built. GraSS samples coordinates of the factors first, which is coarser.

The variance of ⟨Sx, Sy⟩ is about (‖x‖²‖y‖² + ⟨x, y⟩²)/k for any s, as of a Gaussian matrix; for one layer and one position,
x = a ⊗ g, y = b ⊗ e, it is (1 + cos²(a, b))(1 + cos²(g, e))‖x‖²‖y‖²/k: at most twice that. A weight costs s additions, whatever k is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from beam_influence.influence_ops.model.gradients import Block, BlockLayout, Factored, Gradients, Layout, OneHot

ENTRIES = 1
"""s. The mean and the variance of an inner product are the same for any."""

_BYTES_AT_ONCE = 2 << 20  # about a core's cache: several times as fast as at once
_WEIGHTS_AT_ONCE = 1 << 20
_LONG = 2048  # from so many numbers on, a row is added up alone
# Nanoseconds, seen on one core: of an addition to a bucket, of a multiplication in a product of matrices, of a number in a transform.
_ADDING, _MULTIPLYING, _TRANSFORMING = 2.3, 0.1, 10.0


class _Side(NamedTuple):
    """Where the rows, or the columns, of a layer's matrix go: buckets int64 and signs ±1, one of each for a row."""

    buckets: np.ndarray
    signs: np.ndarray

    def part(self, places: np.ndarray | slice) -> _Side:
        """Those of some rows, of any shape."""
        return _Side(self.buckets[places], self.signs[places])


class SparseProjection:
    """S as above; see `Projection`. With k ≥ P it is the identity.

    Args:
      layout: of the model.
      dim: k.
      seed: S follows from it, from k and from the layers' sizes: the same on every worker.
      entries: s, at most k.
    """

    def __init__(self, layout: Layout, dim: int, seed: int, entries: int = ENTRIES):
        self.size = layout.size
        self.exact = dim >= self.size
        self.dim = self.size if self.exact else dim
        widths = [dim // entries + (number < dim % entries) for number in range(entries)]
        self._sketches = [] if self.exact else [_Sketch(layout, width, [seed, number]) for number, width in enumerate(widths)]

    def apply(self, rows: np.ndarray) -> np.ndarray:
        """S x for each row x: [B, P] -> [B, k] float64; the rows themselves where S is the identity."""
        return rows if self.exact else self._scaled([sketch.of_rows(rows) for sketch in self._sketches])

    def transpose(self, rows: np.ndarray) -> np.ndarray:
        """Sᵀ y for each row y: [B, k] -> [B, P]."""
        if self.exact:
            return rows
        found, start = np.zeros((len(rows), self.size)), 0
        for sketch in self._sketches:
            found += sketch.transpose(rows[:, start : start + sketch.width])
            start += sketch.width
        return found * len(self._sketches) ** -0.5

    def of_gradients(self, gradients: Gradients) -> np.ndarray:
        """S g for each example's gradient, from its factors where that is cheaper: [B, k] float64."""
        if self.exact:
            return np.asarray(gradients, dtype=np.float64)
        return self._scaled([sketch.of_gradients(gradients) for sketch in self._sketches])

    def _scaled(self, parts: list[np.ndarray]) -> np.ndarray:
        return np.concatenate(parts, axis=1) * len(parts) ** -0.5


class _Sketch:
    """One entry for each weight: S_j."""

    def __init__(self, layout: Layout, width: int, seed: list[int]):
        self.width = width
        self._layout = layout
        self._sides: list[tuple[_Side, _Side]] = []
        for number, block in enumerate(layout.blocks):
            random = np.random.default_rng([*seed, number, block.rows, block.columns, width])
            self._sides.append((self._draw(random, block.rows), self._draw(random, block.columns)))

    def _draw(self, random: np.random.Generator, count: int) -> _Side:
        return _Side(random.integers(0, self.width, count), random.choice([-1.0, 1.0], count))

    def of_rows(self, rows: np.ndarray) -> np.ndarray:
        found = np.zeros((len(rows), self.width))
        for block, sides in zip(self._layout.blocks, self._sides, strict=True):
            parts = _parts(len(rows), 8 * block.size)
            self._add_matrices([(part, block.matrices(rows[part])) for part in parts], sides, found)
        return found

    def _add_matrices(self, parts: Iterable[tuple[slice, np.ndarray]], sides: tuple[_Side, _Side], found: np.ndarray) -> None:
        """Adds the sketch of each of [B, I, O] to [B, width], some examples at a time."""
        inner, outer = sides
        step = max(1, _WEIGHTS_AT_ONCE // len(outer.buckets))
        chunks = [slice(start, start + step) for start in range(0, len(inner.buckets), step)]
        kept = self._flat(inner, outer) if len(chunks) == 1 else None  # of a large matrix they are found out again for each part
        for part, matrices in parts:
            for chunk in chunks:
                side = self._flat(inner.part(chunk), outer) if kept is None else kept
                found[part] += self._bucketed(matrices[:, chunk].reshape(len(matrices), -1), side)

    def _flat(self, inner: _Side, outer: _Side) -> _Side:
        side = self._product(inner, outer)
        return _Side(side.buckets.ravel(), side.signs.ravel())

    def _product(self, inner: _Side, outer: _Side) -> _Side:
        """Of the weights in the rows `inner`, of any shape, and all columns: [..., O]."""
        return _Side((inner.buckets[..., None] + outer.buckets) % self.width, inner.signs[..., None] * outer.signs)

    def _bucketed(self, rows: np.ndarray, side: _Side) -> np.ndarray:
        """[N, M] -> [N, width]: each number added to its bucket, which may be another in each row."""
        count, length = rows.shape
        found = np.empty((count, self.width))
        if length >= _LONG:
            buckets, signs = np.broadcast_to(side.buckets, rows.shape), np.broadcast_to(side.signs, rows.shape)
            for number in range(count):
                found[number] = np.bincount(buckets[number], rows[number] * signs[number], self.width)
            return found
        for part in _parts(count, 16 * max(length, self.width)):
            signed = rows[part] * (side.signs if side.signs.ndim == 1 else side.signs[part])
            buckets = side.buckets if side.buckets.ndim == 1 else side.buckets[part]
            places = buckets + np.arange(len(signed))[:, None] * self.width
            found[part] = np.bincount(places.ravel(), signed.ravel(), len(signed) * self.width).reshape(len(signed), self.width)
        return found

    def transpose(self, rows: np.ndarray) -> np.ndarray:
        found = np.empty((len(rows), self._layout.size))
        for block, (inner, outer) in zip(self._layout.blocks, self._sides, strict=True):
            for part in _parts(len(rows), 16 * block.size):
                side = self._product(inner, outer)
                block.write(rows[part][:, side.buckets] * side.signs, found[part])
        return found

    def of_gradients(self, gradients: Gradients) -> np.ndarray:
        found = np.zeros((len(gradients), self.width))
        for layout, block, sides in zip(gradients.layout.blocks, gradients.blocks, self._sides, strict=True):
            self._add_block(layout, block, sides, found)
        if gradients.offset is not None:
            found += self.of_rows(np.asarray(gradients.offset, dtype=np.float64)[None])
        return found

    def _add_block(self, layout: BlockLayout, block: Block, sides: tuple[_Side, _Side], found: np.ndarray) -> None:
        inner, outer = sides
        errors = np.asarray(block[-1], dtype=np.float64)
        if isinstance(block, Factored):
            inputs = np.asarray(block.inputs, dtype=np.float64)
            if self._is_cheaper_built(layout, errors.shape[1]):
                parts = _parts(len(errors), 8 * layout.size)
                self._add_matrices(((part, np.swapaxes(inputs[part], 1, 2) @ errors[part]) for part in parts), sides, found)
            else:
                self._add_convolved(inputs, errors, sides, found)
        elif isinstance(block, OneHot):
            ids = np.asarray(block.ids)
            for part in _parts(len(errors), 48 * errors[:1].size):
                side, rows = self._product(inner.part(ids[part]), outer), errors[part].reshape(len(ids[part]), -1)
                found[part] += self._bucketed(rows, _Side(side.buckets.reshape(rows.shape), side.signs.reshape(rows.shape)))
        else:
            self._add_matrices([(slice(None), errors)], sides, found)

    def _is_cheaper_built(self, layout: BlockLayout, positions: int) -> bool:
        """Whether an example's gradient is sketched sooner as a matrix than from its factors."""
        built = layout.size * (positions * _MULTIPLYING + _ADDING)
        convolved = positions * ((layout.rows + layout.columns) * _ADDING + self.width * _TRANSFORMING)
        return built <= convolved

    def _add_convolved(self, inputs: np.ndarray, errors: np.ndarray, sides: tuple[_Side, _Side], found: np.ndarray) -> None:
        """Adds Σ_s (sketch of a_s) ∗ (sketch of g_s), [B, S, I] and [B, S, O], summed as their Fourier transforms are multiplied."""
        positions = errors.shape[1]
        step = max(1, _BYTES_AT_ONCE // (48 * self.width))
        for part in _parts(len(errors), 48 * self.width * min(positions, step)):
            total = np.zeros((part.stop - part.start, self.width // 2 + 1), dtype=np.complex128)
            for start in range(0, positions, step):
                where = (part, slice(start, start + step))
                total += (self._transformed(inputs[where], sides[0]) * self._transformed(errors[where], sides[1])).sum(axis=1)
            found[part] += np.fft.irfft(total, self.width, axis=1)

    def _transformed(self, factors: np.ndarray, side: _Side) -> np.ndarray:
        """The Fourier transform of each sketch: [B, S, M] -> [B, S, width // 2 + 1]."""
        sketches = self._bucketed(factors.reshape(-1, factors.shape[2]), side)
        return np.fft.rfft(sketches, axis=1).reshape(*factors.shape[:2], -1)


def _parts(count: int, bytes_each: int) -> Iterator[slice]:
    """Rows that take at most `_BYTES_AT_ONCE` together, or one."""
    step = max(1, _BYTES_AT_ONCE // max(bytes_each, 1))
    return (slice(start, min(start + step, count)) for start in range(0, count, step))
