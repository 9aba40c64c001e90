"""Eigenpairs of a symmetric matrix from its products with blocks of vectors: block Lanczos with full reorthogonalisation.

Golub & Underwood 1977; one vector at a time it is the Arnoldi iteration of Schioppa et al. 2022 (2112.03052, section 3). Where
a product is a pass over a data set, the state travels to the workers and their sum comes back: a block of b vectors costs one
pass and adds b dimensions to the space, so few passes reach many eigenpairs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from beam_influence.influence_ops.blas_threads import eigh


class KrylovState(NamedTuple):
    """A of size P × P, seen through m dimensions.

    Attributes:
      basis: orthonormal rows [m, P].
      projected: basis · A · basisᵀ [m, m].
      block: the rows [b, P] that `advance` wants multiplied by A; none when the space holds all of A's range already.
    """

    basis: np.ndarray
    projected: np.ndarray
    block: np.ndarray


def start(size: int, block_size: int, seed: int) -> KrylovState:
    """The state before the first product. Its block is the same on every machine: no factorisation has touched it."""
    if 2 * block_size > size:  # the whole space, or nearly: no random block is well enough conditioned
        block = np.eye(size)
    else:
        block = np.random.default_rng(seed).standard_normal((block_size, size))
    return KrylovState(np.zeros((0, size)), np.zeros((0, 0)), block)


def advance(state: KrylovState, image: np.ndarray) -> KrylovState:
    """Takes in A times the block, [b, P], and finds the next block, orthogonal to all before it."""
    block = state.block
    if not len(block):
        return state
    if not len(state.basis):  # the first block is orthonormalised here, and its image with it
        factor = np.linalg.qr(block.T).R.T
        block, image = np.linalg.solve(factor, block), np.linalg.solve(factor, image)
    basis = np.concatenate([state.basis, block])
    along = basis @ image.T  # [m + b, b]
    size = len(state.basis)
    projected = np.zeros((len(basis), len(basis)))
    projected[:size, :size] = state.projected
    projected[:, size:] = along
    projected[size:, :size] = along[:size].T
    projected[size:, size:] = 0.5 * (along[size:] + along[size:].T)
    return KrylovState(basis, projected, _next_block(basis, image))


def _next_block(basis: np.ndarray, image: np.ndarray) -> np.ndarray:
    """An orthonormal basis [b, P] of what the image adds; b is smaller where it adds little but rounding."""
    room = min(len(image), basis.shape[1] - len(basis))
    if room <= 0:
        return image[:0]
    smallest = basis.shape[1] * np.finfo(np.float64).eps * np.abs(image).max(initial=0.0)
    rest = image
    for _ in range(2):  # twice is enough (Parlett 1980, section 6.9)
        rest = rest - (rest @ basis.T) @ basis
    _, lengths, rows = np.linalg.svd(rest, full_matrices=False)
    rows = rows[:room][lengths[:room] > smallest]
    rows = rows - (rows @ basis.T) @ basis  # short rows have been stretched, and what they had along the basis with them
    return np.linalg.qr(rows.T)[0].T if len(rows) else rows


def eigenpairs(state: KrylovState) -> tuple[np.ndarray, np.ndarray]:
    """Ritz values [m], largest first, and their vectors [m, P]: A's own where the space holds them."""
    values, rotation = eigh(state.projected)
    return values[::-1], rotation.T[::-1] @ state.basis
