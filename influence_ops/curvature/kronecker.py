"""(H + λI)⁻¹ block by block, each diagonal in the basis U_A ⊗ U_S of a layer's inputs and errors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np
import tensorflow as tf

from beam_influence.influence_ops.blas_threads import eigh
from beam_influence.influence_ops.curvature.base import FinishOptions, Preconditioner
from beam_influence.influence_ops.curvature.solved_block import Quotients, SolvedBlock, turned
from beam_influence.influence_ops.model.explained_model import ExplainedModel
from beam_influence.influence_ops.model.gradients import Block, Factored, Gradients, Layout, Materialised, OneHot
from beam_influence.influence_ops.model.gradients.blocks import materialise, parts_of, positions_of

DEFAULT_RANK = 1024
"""How many numbers `embed` gives when no rank is named."""

_AUTO_FRACTION = 0.1
_FLOOR = 1e-4  # of the whole mean: a layer without any curvature must still be invertible
_ROTATED_AT_ONCE = 1 << 24  # numbers of rotated gradients in memory at once


class Side(NamedTuple):
    """One factor of a block, decomposed: values [d], ascending, and vectors [d, d]; vectors [0, 0] stand for the identity."""

    values: np.ndarray
    vectors: np.ndarray


def decompose(moment: np.ndarray) -> Side:
    """The eigendecomposition of a second moment [d, d], or of a diagonal [d]."""
    if moment.ndim == 1:
        return Side(np.maximum(moment, 0), np.zeros((0, 0)))
    values, vectors = eigh((moment + moment.T) / 2)
    return Side(np.maximum(values, 0), vectors)


class DeviceCopies:
    """Arrays as tensors on the device, each made once."""

    def __init__(self) -> None:
        self._tensors: dict[tuple[str, tf.DType], tf.Tensor] = {}

    def of(self, name: str, array: Callable[[], np.ndarray], dtype: tf.DType) -> tf.Tensor:
        """The tensor `name`, of what `array` gives when it is asked for first."""
        key = (name, dtype)
        if key not in self._tensors:
            self._tensors[key] = tf.constant(array(), dtype)
        return self._tensors[key]

    def all(self, arrays: Mapping[str, np.ndarray], dtype: tf.DType) -> dict[str, tf.Tensor]:
        """All of them, by name."""
        return {name: self.of(name, lambda array=array: array, dtype) for name, array in arrays.items()}

    def rotated(self, arrays: Mapping[str, np.ndarray], number: int | str, block: Block) -> Block:
        """Block `number` in the basis of its sides' vectors."""
        sides = {name: arrays[name] for name in (f"inputs-{number}", f"errors-{number}")}
        return in_basis(self.all(sides, block[-1].dtype), number, block)

    def __reduce__(self) -> tuple[type[DeviceCopies], tuple[()]]:
        return DeviceCopies, ()  # another process makes its own


def in_basis(bases: Mapping[str, tf.Tensor], number: int | str, block: Block) -> Block:
    """Block `number` in the basis of its sides' vectors, `inputs-number` and `errors-number` ([0, 0]: as it is)."""
    inputs, errors = bases[f"inputs-{number}"], bases[f"errors-{number}"]
    if errors.shape[0]:
        block = block._make((*block[:-1], tf.matmul(block[-1], errors)))
    if isinstance(block, Factored) and inputs.shape[0]:
        block = Factored(tf.matmul(block.inputs, inputs), block.errors)
    if isinstance(block, Materialised) and inputs.shape[0]:
        block = Materialised(tf.einsum("ik,bio->bko", inputs, block.values))
    return block


def squared_sum(layout: Any, block: Block, weights: tf.Tensor | None, most: int) -> tf.Tensor:
    """Σ_i w_i G_i² elementwise, G_i [I, O] the gradient of example i of at most `most` in `block`; weights None: all are 1."""
    if isinstance(block, Factored) and block.inputs.shape[1] == 1:
        a, g = block.inputs[:, 0], tf.square(block.errors[:, 0])
        return tf.matmul(tf.square(a), g if weights is None else g * weights[:, None], transpose_a=True)
    if isinstance(block, OneHot):
        # Positions of one token add up before the square.
        count = tf.cast(tf.shape(block.ids)[0], tf.int64)
        keys = tf.cast(block.ids, tf.int64) + tf.range(count)[:, None] * layout.rows
        unique, place = tf.unique(tf.reshape(keys, [-1]))
        summed = tf.math.unsorted_segment_sum(tf.reshape(block.errors, [-1, layout.columns]), place, tf.size(unique))
        squares = tf.square(summed)
        if weights is not None:
            squares *= tf.gather(weights, unique // layout.rows)[:, None]
        return tf.math.unsorted_segment_sum(squares, unique % layout.rows, layout.rows)

    def of_rows(rows: slice) -> tf.Tensor:
        gradients = tf.reshape(materialise(layout, block._make(tensor[rows] for tensor in block)), [-1, layout.size])
        of_each = tf.ones_like(gradients[:, 0]) if weights is None else weights[rows]
        return tf.linalg.matvec(tf.square(gradients), of_each, transpose_a=True)

    step = max(1, _ROTATED_AT_ONCE // layout.size)
    if step >= most:
        return tf.reshape(of_rows(slice(None)), [layout.rows, layout.columns])

    def add(start: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return start + step, total + of_rows(slice(start, start + step))

    zeros = tf.zeros([layout.size], block[-1].dtype)
    total = tf.while_loop(lambda start, _: start < tf.shape(block[0])[0], add, (tf.constant(0), zeros), parallel_iterations=1)[1]
    return tf.reshape(total, [layout.rows, layout.columns])


@dataclasses.dataclass(frozen=True)
class KroneckerPreconditioner(Preconditioner):
    """Σ over blocks of (U_A ⊗ U_S) diag(1/(Λ + s)) (U_A ⊗ U_S)ᵀ, s the block's shift.

    Attributes:
      arrays: for block b, `inputs-b` [I, I] and `errors-b` [O, O] ([0, 0]: the identity) and `eigenvalues-b` Λ [I, O] of
        the data's curvature; `embedding` [r], the directions of `embed`, numbered through all blocks.
      meta: besides the usual, for each block `shifts` s and `penalties` r, the regulariser's second derivative.
      layout: of the bound model.
    """

    layout: Layout | None = None
    _device: DeviceCopies = dataclasses.field(default_factory=DeviceCopies, init=False, repr=False, compare=False)
    kind: ClassVar[str] = "kronecker"
    solves_blocks: ClassVar[bool] = True

    def bind(self, model: ExplainedModel) -> Preconditioner:
        self.check(model)
        layout = model.layout()
        for number, block in enumerate(layout.blocks):
            found = self.arrays[f"eigenvalues-{number}"].shape if f"eigenvalues-{number}" in self.arrays else None
            if found != (block.rows, block.columns):
                raise ValueError(f"the curvature's block {number} is {found}, the model's {block.name} is {(block.rows, block.columns)}")
        return dataclasses.replace(self, layout=layout)

    def with_damping(self, damping: float) -> Preconditioner:
        return self._redamped(damping, shifts=[penalty + damping for penalty in self.meta["penalties"]])

    def damped(self, number: int) -> np.ndarray:
        """Λ + s of a block: [I, O]."""
        return self.arrays[f"eigenvalues-{number}"] + self.meta["shifts"][number]

    def sides(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """U_A and U_S of a block; [0, 0] is the identity."""
        return self.arrays[f"inputs-{number}"], self.arrays[f"errors-{number}"]

    def apply(self, gradients: np.ndarray) -> np.ndarray:
        gradients = np.asarray(gradients, dtype=np.float64)
        solved = np.empty_like(gradients)
        for number, block in enumerate(self._bound().blocks):
            inputs, errors = self.sides(number)
            divisor = self.damped(number)
            step = max(1, _ROTATED_AT_ONCE // block.size)
            for start in range(0, len(gradients), step):
                rows = slice(start, start + step)
                rotated = turned(block.matrices(gradients[rows]), inputs, errors) / divisor
                block.write(turned(rotated, inputs.T, errors.T), solved[rows])
        return solved

    def solve_blocks(self, gradients: Gradients) -> Iterator[SolvedBlock]:
        if gradients.offset is not None:
            yield from super().solve_blocks(gradients)
            return
        for number, (layout, block) in enumerate(zip(self._bound().blocks, gradients.blocks, strict=True)):
            inputs, errors = self.sides(number)
            wide = block._make(tf.cast(tensor, tf.float64) if tensor.dtype.is_floating else tensor for tensor in block)
            if isinstance(wide, Factored) and positions_of(wide) < min(layout.rows, layout.columns):  # less to turn than a matrix is
                wide = DeviceCopies().rotated(self.arrays, number, wide)  # once for the test points: not kept
                if positions_of(wide) == 1:
                    a, g = (np.asarray(factor)[:, 0] for factor in wide)
                    yield SolvedBlock(Quotients(a, g, 1 / self.damped(number)), inputs, errors)
                    continue
                matrices = materialise(layout, wide).numpy()
            else:
                matrices = turned(materialise(layout, wide).numpy(), inputs, errors)
            yield SolvedBlock(matrices / self.damped(number), inputs, errors)

    def turned(self, number: int, block: Block) -> tuple[Block, tf.Tensor]:
        """Block `number` of gradients in its basis, and 1/(Λ + s) [I, O] in its dtype."""
        rotated = self._device.rotated(self.arrays, number, block)
        return rotated, self._device.of(f"weights-{number}", lambda: 1 / self.damped(number), rotated[-1].dtype)

    def embed(self, gradients: np.ndarray | Gradients) -> np.ndarray:
        """g in the r directions of the eigenbasis that carry most of the influence, scaled: [B, r]. Of factors, no gradient is built."""
        if not isinstance(gradients, Gradients) or gradients.offset is not None:
            gradients = np.asarray(gradients, dtype=np.float64)
        chosen = self.arrays["embedding"]
        embedded = np.empty((len(gradients), len(chosen)))
        first = 0
        for number, layout in enumerate(self._bound().blocks):
            inside = np.flatnonzero((chosen >= first) & (chosen < first + layout.size))
            rows, columns = np.unravel_index(chosen[inside] - first, (layout.rows, layout.columns))
            first += layout.size
            if isinstance(gradients, Gradients):
                found = _entries(self._device.rotated(self.arrays, number, gradients.blocks[number]), rows, columns)
            else:
                found = turned(layout.matrices(gradients), *self.sides(number))[:, rows, columns]
            embedded[:, inside] = found / np.sqrt(self.damped(number)[rows, columns])
        return embedded

    def self_influence(self, gradients: Gradients) -> np.ndarray:
        if gradients.offset is not None:
            return super().self_influence(gradients)
        total = tf.zeros([len(gradients)], tf.float64)
        for number, (layout, block) in enumerate(zip(self._bound().blocks, gradients.blocks, strict=True)):
            rotated, weights = self.turned(number, block)
            if isinstance(rotated, Factored) and rotated.inputs.shape[1] == 1:
                a, g = tf.square(rotated.inputs[:, 0]), tf.square(rotated.errors[:, 0])
                total += tf.cast(tf.reduce_sum(tf.matmul(a, weights) * g, axis=1), tf.float64)
                continue
            parts = parts_of(rotated, max(1, _ROTATED_AT_ONCE // layout.size))
            found = [tf.einsum("bio,io->b", tf.square(materialise(layout, part)), weights) for _, part in parts]
            total += tf.cast(tf.concat(found, axis=0), tf.float64)
        return total.numpy()

    def _bound(self) -> Layout:
        if self.layout is None:
            raise ValueError("a curvature by layers needs the model's layout; call bind(model) first")
        return self.layout


def _entries(block: Block, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Some entries of each example's gradient in `block`: [B, r]."""
    if isinstance(block, Factored):
        left, right = tf.gather(block.inputs, rows, axis=2), tf.gather(block.errors, columns, axis=2)
        return np.asarray(tf.einsum("bsr,bsr->br", left, right), dtype=np.float64)
    if isinstance(block, OneHot):
        here = tf.cast(tf.equal(block.ids[:, :, None], tf.constant(rows, tf.int32)), block.errors.dtype)
        return np.asarray(tf.einsum("bsr,bsr->br", here, tf.gather(block.errors, columns, axis=2)), dtype=np.float64)
    return np.asarray(block.values, dtype=np.float64)[:, rows, columns]


def kronecker(
    model: ExplainedModel,
    name: str,
    examples: int,
    sides: list[tuple[np.ndarray, np.ndarray]],
    eigenvalues: list[np.ndarray],
    options: FinishOptions,
    system: bool,
    facts: Mapping[str, Any],
) -> KroneckerPreconditioner:
    """The operator from each block's vectors and eigenvalues, the data's, already divided by n.

    A damping λ that is a number makes the shift r + λ. `auto` is 0.1 × the mean eigenvalue of the layer's own block, which
    makes up the whole shift, as Grosse et al. 2023 (section 3.1) have it: a layer's block alone, without its ties to other
    layers, is stiffer than the layer is within the network, so r is not added to it.

    Args:
      system: whether the operator is the preconditioner of the whole matrix's system, whose own λ by `auto` is 0.1 × the mean
        eigenvalue of the whole matrix, r included, as for `gauss_newton`. The shifts stay: they make the faster preconditioner.
    """
    penalties, damping = model.block_penalties(), options.damping
    mean = sum(float(values.sum()) + penalty * values.size for values, penalty in zip(eigenvalues, penalties, strict=True)) / model.size
    if not isinstance(damping, str):
        shifts = [penalty + damping for penalty in penalties]
    else:
        shifts = [_AUTO_FRACTION * max(float(values.mean()), _FLOOR * mean) for values in eigenvalues]
    # The rule of the pseudo-inverse, layer by layer: what is smaller is 0 but for rounding.
    shifted = [values + shift for values, shift in zip(eigenvalues, shifts, strict=True)]
    if any(values.min() <= values.size * np.finfo(np.float64).eps * values.max() for values in shifted):
        if not mean:
            why = "no gradient of the examples reaches the watched weights, or the outputs are saturated (a probability of exactly 1)"
            raise ValueError(f"the {name} curvature is 0 in every direction: {why}; give damping a number above 0 to score all the same")
        what = "eigenvalues of 0, or below the rounding of its largest"
        raise ValueError(f"the {name} curvature has {what}, so damping={damping!r} gives no inverse; use a larger one, or auto")
    arrays: dict[str, np.ndarray] = {}
    for number, ((inputs, errors), values) in enumerate(zip(sides, eigenvalues, strict=True)):
        arrays |= {f"inputs-{number}": inputs, f"errors-{number}": errors, f"eigenvalues-{number}": values}
    # A direction's part of the mean self-influence is Λ / (Λ + s).
    parts = np.concatenate([(values / (values + shift)).ravel() for values, shift in zip(eigenvalues, shifts, strict=True)])
    arrays["embedding"] = np.sort(np.argsort(-parts, kind="stable")[: options.rank or DEFAULT_RANK])
    sizes = [values.size for values in eigenvalues]
    automatic = _AUTO_FRACTION * mean if system else float(np.average(shifts, weights=sizes))
    meta = {
        "curvature": name,
        "damping": automatic if isinstance(damping, str) else float(damping),
        "damping_rule": ("auto" if system else "auto by layer") if isinstance(damping, str) else "fixed",
        "leave_one_out": False,
        "examples": examples,
        "size": model.size,
        "fingerprint": model.fingerprint(),
        "penalties": penalties,
        "shifts": shifts,
        "blocks": [block.name for block in model.layout().blocks],
        "smallest_eigenvalue": min(float(values.min()) for values in eigenvalues),
        "largest_eigenvalue": max(float(values.max()) for values in eigenvalues),
        "rank": model.size,
        **facts,
    }
    return KroneckerPreconditioner(arrays, meta, model.layout())
