"""Random projections of P numbers to k that keep inner products, with no P × k matrix: signs, a fast Hadamard transform, a sample.

    S = k^-½ · (k sampled rows of the D × D Hadamard matrix) · diag(random signs),   D ≥ P a power of two, zeros behind P

E[SᵀS] = I, so that E⟨Sx, Sy⟩ = ⟨x, y⟩, with a standard error of at most about √((‖x‖²‖y‖² + ⟨x, y⟩²)/k) (Ailon & Chazelle 2009;
Tropp 2011, 1011.1595; TRAK, Park et al. 2023, 2303.14186, uses one of signs alone). It costs P·log P per row, and everything
about it follows from (P, k, seed): the same on every worker. With k ≥ P it is the identity.
"""

from __future__ import annotations

import functools
from typing import Protocol

import numpy as np

from beam_influence.influence_ops.curvature.sparse_projection import SparseProjection
from beam_influence.influence_ops.model.gradients import Factored, Gradients, Layout, OneHot
from beam_influence.influence_ops.settings import ProjectionKind

_BYTES_AT_ONCE = 128 << 20
_FACTOR_BITS = 6  # the transform is a product of 64 × 64 Hadamard matrices: each a matrix product, at the speed of the BLAS


class Projection(Protocol):
    """S: P numbers to `dim`.

    Attributes:
      size, dim: P, and what comes out.
      exact: whether S is the identity.
    """

    size: int
    dim: int
    exact: bool

    def apply(self, rows: np.ndarray) -> np.ndarray:
        """S x for each row x: [B, P] -> [B, dim]."""
        ...

    def transpose(self, rows: np.ndarray) -> np.ndarray:
        """Sᵀ y for each row y: [B, dim] -> [B, P]."""
        ...

    def of_gradients(self, gradients: Gradients) -> np.ndarray:
        """S g for each example's gradient: [B, dim] float64."""
        ...


def make_projection(kind: ProjectionKind, layout: Layout, dim: int, seed: int) -> Projection:
    """The projection of all watched weights.

    Args:
      kind: `hadamard`: of θ as one vector; `two_sided`: of each layer's matrix from both sides, as of LoGra; `sjlt`: of θ, sparse, and
        from the layers' factors.
      layout: of the model.
      dim: k; of `two_sided`, what the layers share.

    Raises:
      ValueError: an option is wrong.
    """
    if dim < 1:
        raise ValueError(f"projection_dim={dim} must be at least 1")
    if kind == "hadamard":
        return HadamardProjection(layout.size, dim, seed)
    if kind == "two_sided":
        return TwoSidedProjection(layout, dim, seed)
    if kind == "sjlt":
        return SparseProjection(layout, dim, seed)
    raise ValueError(f"projection={kind!r} must be 'hadamard', 'two_sided' or 'sjlt'")


class HadamardProjection:
    """S as above."""

    def __init__(self, size: int, dim: int, seed: int):
        self.size = size
        self.exact = dim >= size
        self.dim = size if self.exact else dim
        if self.exact:
            return
        self._padded = 1 << (size - 1).bit_length()
        random = np.random.default_rng([seed, size, dim])
        self._signs = random.choice(np.array([-1, 1], dtype=np.int8), size=size)
        self._sampled = np.sort(random.choice(self._padded, size=min(dim, self._padded), replace=False))

    def apply(self, rows: np.ndarray) -> np.ndarray:
        if self.exact:
            return rows
        found = np.empty((len(rows), self.dim), dtype=rows.dtype)
        for part in self._parts(rows):
            padded = np.zeros((part.stop - part.start, self._padded), dtype=rows.dtype)
            np.multiply(rows[part], self._signs, out=padded[:, : self.size])
            found[part] = hadamard_transform(padded)[:, self._sampled]
        found *= self.dim**-0.5
        return found

    def transpose(self, rows: np.ndarray) -> np.ndarray:
        if self.exact:
            return rows
        found = np.empty((len(rows), self.size), dtype=rows.dtype)
        for part in self._parts(rows):
            padded = np.zeros((part.stop - part.start, self._padded), dtype=rows.dtype)
            padded[:, self._sampled] = rows[part]
            np.multiply(hadamard_transform(padded)[:, : self.size], self._signs, out=found[part])
        found *= self.dim**-0.5
        return found

    def of_gradients(self, gradients: Gradients) -> np.ndarray:
        return self.apply(np.asarray(gradients, dtype=np.float64))

    def of_units(self, places: np.ndarray) -> np.ndarray:
        """S e for the unit vectors at `places`, of any shape: [..., dim]. Entry (i, j) of the Hadamard matrix is −1 to the bits of i&j."""
        if self.exact:
            return np.eye(self.size)[places]
        odd = np.bitwise_count(places[..., None] & self._sampled) & 1
        return np.where(odd, -1.0, 1.0) * self._signs[places][..., None] * self.dim**-0.5

    def _parts(self, rows: np.ndarray) -> list[slice]:
        step = max(1, _BYTES_AT_ONCE // (self._padded * rows.itemsize))
        return [slice(start, min(start + step, len(rows))) for start in range(0, len(rows), step)]


class TwoSidedProjection:
    """S_inᵀ M S_out for each layer's matrix M (LoGra, Choe et al. 2024, 2405.13954), one after the other.

    A layer's gradient is Σ a ⊗ g: its projection is Σ (S_in a) ⊗ (S_out g), and the gradient itself is never built.
    The layers share `dim` in proportion to their sizes, each at least 1; a side that is short enough is left whole.
    """

    def __init__(self, layout: Layout, dim: int, seed: int):
        self.size = layout.size
        self._layout = layout
        self._sides: list[tuple[HadamardProjection, HadamardProjection]] = []
        for number, block in enumerate(layout.blocks):
            inner, outer = _sides(block.rows, block.columns, max(1, round(dim * block.size / self.size)))
            self._sides.append(
                (
                    HadamardProjection(block.rows, inner, _sub_seed(seed, number, 0)),
                    HadamardProjection(block.columns, outer, _sub_seed(seed, number, 1)),
                )
            )
        self.dim = sum(inner.dim * outer.dim for inner, outer in self._sides)
        self.exact = all(inner.exact and outer.exact for inner, outer in self._sides)

    def apply(self, rows: np.ndarray) -> np.ndarray:
        parts = []
        for block, (inner, outer) in zip(self._layout.blocks, self._sides, strict=True):
            halved = outer.apply(block.matrices(rows).reshape(-1, outer.size)).reshape(len(rows), inner.size, outer.dim)
            turned = np.swapaxes(halved, 1, 2).reshape(-1, inner.size)
            parts.append(inner.apply(turned).reshape(len(rows), outer.dim * inner.dim))
        return np.concatenate(parts, axis=1)

    def transpose(self, rows: np.ndarray) -> np.ndarray:
        found = np.empty((len(rows), self.size), dtype=rows.dtype)
        start = 0
        for block, (inner, outer) in zip(self._layout.blocks, self._sides, strict=True):
            part = rows[:, start : start + inner.dim * outer.dim].reshape(-1, inner.dim)
            start += inner.dim * outer.dim
            halved = inner.transpose(part).reshape(len(rows), outer.dim, inner.size)
            turned = np.swapaxes(halved, 1, 2).reshape(-1, outer.dim)
            block.write(outer.transpose(turned).reshape(len(rows), inner.size, outer.size), found)
        return found

    def of_gradients(self, gradients: Gradients) -> np.ndarray:
        if gradients.offset is not None:
            return self.apply(np.asarray(gradients, dtype=np.float64))
        parts = []
        for block, (inner, outer) in zip(gradients.blocks, self._sides, strict=True):
            errors = np.asarray(block[-1], dtype=np.float64)
            shape = (len(errors), -1)
            right = outer.apply(errors.reshape(-1, outer.size)).reshape(*shape, outer.dim)
            if isinstance(block, Factored):
                left = inner.apply(np.asarray(block.inputs, dtype=np.float64).reshape(-1, inner.size)).reshape(*shape, inner.dim)
            elif isinstance(block, OneHot):
                left = inner.of_units(np.asarray(block.ids))
            else:
                left = np.broadcast_to(inner.of_units(np.arange(inner.size)), (len(errors), inner.size, inner.dim))
            parts.append(np.matmul(np.swapaxes(right, 1, 2), left).reshape(len(errors), outer.dim * inner.dim))
        return np.concatenate(parts, axis=1)


def _sub_seed(seed: int, layer: int, side: int) -> int:
    return int(np.random.default_rng([seed, layer, side]).integers(1 << 62))


def _sides(rows: int, columns: int, dim: int) -> tuple[int, int]:
    """Two sides of about the same length whose product is at most `dim`; where one is whole, the other is longer."""
    inner = min(rows, max(1, int(dim**0.5)))
    outer = min(columns, max(1, dim // inner))
    return min(rows, max(1, dim // outer)), outer


def hadamard_transform(rows: np.ndarray) -> np.ndarray:
    """Each row times the (unnormalised, symmetric) Hadamard matrix of its length, a power of two: [B, D] -> [B, D]."""
    count, size = rows.shape
    bits = size.bit_length() - 1
    if size != 1 << bits:
        raise ValueError(f"a Hadamard transform needs a power of two, not {size}")
    # H of 2^(a+b) is the Kronecker product of H of 2^a and of 2^b: one axis at a time.
    behind = 1
    while bits:
        step = min(_FACTOR_BITS, bits)
        matrix = _hadamard(step).astype(rows.dtype)
        if behind == 1:
            rows = rows.reshape(-1, 1 << step) @ matrix
        else:
            rows = matrix @ rows.reshape(-1, 1 << step, behind)
        behind <<= step
        bits -= step
    return rows.reshape(count, size)


@functools.cache
def _hadamard(bits: int) -> np.ndarray:
    matrix = np.ones((1, 1))
    for _ in range(bits):
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix
