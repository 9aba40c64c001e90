"""A gradient is a list of blocks, one for a layer's weights; a block keeps the factors that its gradient is a product of.

The weights of a layer form a matrix [I, O] (its bias is the last row), and example i's gradient is Σ_s a_is ⊗ g_is over
the S positions at which the layer was used: a sequence's steps, an image's patches, several calls. [B, I, O] is built only
where that is cheaper.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

import numpy as np
import tensorflow as tf

from beam_influence.influence_ops.any_batch import CompiledForAnyBatch


class Factored(NamedTuple):
    """Σ_s a_s ⊗ g_s.

    Attributes:
      inputs: a [B, S, I], the layer's inputs (with a constant 1 for a bias).
      errors: g [B, S, O], the loss's derivative by the layer's outputs before their activation.
    """

    inputs: tf.Tensor
    errors: tf.Tensor


class OneHot(NamedTuple):
    """Σ_s e_id ⊗ g_s: an embedding's rows.

    Attributes:
      ids: [B, S] int32, below I.
      errors: g [B, S, O].
    """

    ids: tf.Tensor
    errors: tf.Tensor


class Materialised(NamedTuple):
    """The gradient itself.

    Attributes:
      values: [B, I, O].
    """

    values: tf.Tensor


Block = Factored | OneHot | Materialised
_B = TypeVar("_B", bound=Block)
KINDS: dict[str, type[Factored] | type[OneHot] | type[Materialised]] = {
    "factored": Factored,
    "one_hot": OneHot,
    "materialised": Materialised,
}


@dataclasses.dataclass(frozen=True)
class Piece:
    """A variable's place in its block's matrix.

    Attributes:
      start: where it begins in θ.
      shape: of the variable.
      axes: its axes in the order in which they make rows, then columns.
      first_row, rows: which rows of the matrix it fills.
    """

    start: int
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    first_row: int
    rows: int

    @property
    def size(self) -> int:
        """The number of its weights."""
        return int(np.prod(self.shape))


@dataclasses.dataclass(frozen=True)
class BlockLayout:
    """What a block covers.

    Attributes:
      name: the paths of its variables.
      kind: a key of `KINDS`.
      rows, columns: I and O.
      pieces: its variables.
    """

    name: str
    kind: str
    rows: int
    columns: int
    pieces: tuple[Piece, ...]

    @property
    def size(self) -> int:
        """I·O."""
        return self.rows * self.columns

    def matrices(self, flat: np.ndarray) -> np.ndarray:
        """The block's part of each row of `flat` [B, P]: [B, I, O]."""
        count = len(flat)
        parts = []
        for piece in self.pieces:
            part = flat[:, piece.start : piece.start + piece.size].reshape(count, *piece.shape)
            parts.append(part.transpose(0, *(1 + axis for axis in piece.axes)).reshape(count, piece.rows, self.columns))
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def write(self, matrices: np.ndarray, flat: np.ndarray) -> None:
        """The inverse of `matrices`: fills the block's part of `flat` [B, P] in place."""
        for piece in self.pieces:
            part = matrices[:, piece.first_row : piece.first_row + piece.rows]
            permuted = part.reshape(len(part), *(piece.shape[axis] for axis in piece.axes))
            back = permuted.transpose(0, *(1 + int(axis) for axis in np.argsort(piece.axes)))
            flat[:, piece.start : piece.start + piece.size] = back.reshape(len(part), piece.size)

    def flat_pieces(self, matrices: tf.Tensor) -> list[tuple[int, tf.Tensor]]:
        """(start in θ, [B, n]) for each piece of `matrices` [B, I, O]."""
        found = []
        for piece in self.pieces:
            part = matrices[:, piece.first_row : piece.first_row + piece.rows]
            if piece.axes != tuple(range(len(piece.axes))):
                part = tf.reshape(part, [-1, *(piece.shape[axis] for axis in piece.axes)])
                part = tf.transpose(part, [0, *(1 + int(axis) for axis in np.argsort(piece.axes))])
            found.append((piece.start, tf.reshape(part, [-1, piece.size])))
        return found


@dataclasses.dataclass(frozen=True)
class Layout:
    """All blocks of the watched weights.

    Attributes:
      blocks: in the order of θ's first weight in each.
      size: P.
    """

    blocks: tuple[BlockLayout, ...]
    size: int

    def flatten(self, matrices: list[tf.Tensor]) -> tf.Tensor:
        """One [B, I, O] for each block as [B, P]."""
        pieces = [piece for layout, matrix in zip(self.blocks, matrices, strict=True) for piece in layout.flat_pieces(matrix)]
        return tf.concat([part for _, part in sorted(pieces, key=lambda piece: piece[0])], axis=1)


@dataclasses.dataclass(frozen=True)
class Gradients:
    """∇ℓ(z_i) of B examples.

    Attributes:
      layout: what the blocks cover.
      blocks: tensors on the device, in the computation's dtype.
      offset: [P], a constant part of each example's gradient (a regulariser inside the loss), or None.
      bounds: of each example, as `bounds_of` gives them: [B] float64; None: not known yet.
    """

    layout: Layout
    blocks: tuple[Block, ...]
    offset: tf.Tensor | None = None
    bounds: np.ndarray | None = None

    def __len__(self) -> int:
        return count_of(self.blocks[0])

    def finite(self) -> np.ndarray:
        """Which examples' gradients are finite: bool [B]. Where all are, the bounds tell, or one small transfer from the device."""
        if not len(self):
            return np.ones(0, dtype=bool)
        fine = np.isfinite(_compiled_bounds(*self.blocks).numpy() if self.bounds is None else self.bounds)
        return fine if fine.all() else _finite_exactly(self.blocks).numpy()

    def select(self, rows: np.ndarray) -> Gradients:
        """The gradients of some of the examples."""
        blocks = tuple(block._make(tf.gather(tensor, rows) for tensor in block) for block in self.blocks)
        return Gradients(self.layout, blocks, self.offset, None if self.bounds is None else self.bounds[rows])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """`dense` for NumPy."""
        return np.asarray(self.dense(), dtype=dtype)

    def dense(self) -> tf.Tensor:
        """[B, P]."""
        flat = self.layout.flatten([materialise(layout, block) for layout, block in zip(self.layout.blocks, self.blocks, strict=True)])
        return flat if self.offset is None else flat + self.offset

    def total(self) -> tf.Tensor:
        """Their sum: [P]. Of factors, no example's gradient is built."""
        sums = [sum_of(layout, block)[None] for layout, block in zip(self.layout.blocks, self.blocks, strict=True)]
        flat = self.layout.flatten(sums)[0]
        return flat if self.offset is None else flat + len(self) * self.offset


def bounds_of(*blocks: Block, for_xla: bool = False) -> tf.Tensor:
    """At least the largest number of each example's gradient: [B]; NaN or infinite wherever one of them is, and rarely elsewhere."""
    sums = [tf.ones([tf.shape(block[-1])[0]], block[-1].dtype) for block in blocks]
    for number, block in enumerate(blocks):
        for tensor in block:
            if tensor.dtype.is_floating:
                axes = list(range(1, len(tensor.shape)))
                if for_xla:
                    sums[number] *= tf.sqrt(tf.reduce_sum(tf.square(tensor), axis=axes))
                else:  # on a CPU in half the time, by an operation that XLA lacks
                    sums[number] *= tf.math.reduce_euclidean_norm(tensor, axis=axes)
    return tf.add_n([tf.cast(one, tf.float64) for one in sums])


@CompiledForAnyBatch
def _compiled_bounds(*blocks: Block) -> tf.Tensor:
    return bounds_of(*blocks)



@tf.function(autograph=False, reduce_retracing=True)
def _finite_exactly(blocks: tuple[Block, ...]) -> tf.Tensor:
    fine = tf.ones([tf.shape(blocks[0][-1])[0]], tf.bool)
    for block in blocks:
        largest = tf.ones([tf.shape(block[-1])[0]], block[-1].dtype)
        for tensor in block:
            if tensor.dtype.is_floating:
                flat = tf.reshape(tf.abs(tensor), [tf.shape(tensor)[0], -1])
                fine &= tf.reduce_all(tf.math.is_finite(flat), axis=1)
                largest *= tf.reduce_max(flat, axis=1)
        fine &= tf.math.is_finite(largest)  # the product of two large factors may not be finite
    return fine


def scaled(blocks: Iterable[Block], weights: tf.Tensor) -> tuple[Block, ...]:
    """Each example's gradient times its weight [B]."""
    def one(block: Block) -> Block:
        by_row = tf.reshape(weights, [-1, *[1] * (len(block[-1].shape) - 1)])
        return block._make((*block[:-1], block[-1] * by_row))

    return tuple(one(block) for block in blocks)


def count_of(block: Block) -> int:
    """B, of tensors outside a graph."""
    count = block[0].shape[0]
    assert count is not None
    return count


def positions_of(block: Block) -> int:
    """S, of tensors outside a graph; 1 where a block has none."""
    return int(block[0].shape[1] or 1) if isinstance(block, (Factored, OneHot)) else 1


def parts_of(block: _B, size: int) -> Iterator[tuple[slice, _B]]:
    """The block in parts of at most `size` examples: which ones, and their part."""
    for start in range(0, count_of(block), size):
        rows = slice(start, start + size)
        yield rows, block._make(tensor[rows] for tensor in block)


def materialise(layout: BlockLayout, block: Block) -> tf.Tensor:
    """The block's gradients: [B, I, O]."""
    if isinstance(block, Factored):
        return tf.matmul(block.inputs, block.errors, transpose_a=True)
    if isinstance(block, OneHot):
        return tf.map_fn(
            lambda example: tf.math.unsorted_segment_sum(example[1], example[0], layout.rows),
            (block.ids, block.errors),
            fn_output_signature=block.errors.dtype,
        )
    return block.values


def sum_of(layout: BlockLayout, block: Block) -> tf.Tensor:
    """The sum of the block's gradients: [I, O]."""
    if isinstance(block, Materialised):
        return tf.reduce_sum(block.values, axis=0)
    errors = tf.reshape(block.errors, [-1, layout.columns])
    if isinstance(block, OneHot):
        return tf.math.unsorted_segment_sum(errors, tf.reshape(block.ids, [-1]), layout.rows)
    return tf.matmul(tf.reshape(block.inputs, [-1, layout.rows]), errors, transpose_a=True)
