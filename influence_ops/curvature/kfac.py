"""`kfac`: each layer's Fisher as a Kronecker product of the second moments of its inputs and errors.

Martens & Grosse 2015 (1503.05671); over positions as in KFAC-expand (Eschenhagen et al. 2023, 2311.00636).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import tensorflow as tf

from beam_influence.influence_ops.any_batch import CompiledForAnyBatch, weakly
from beam_influence.influence_ops.curvature.base import COUNT, PENDING, Curvature, FinishOptions, Preconditioner, Statistic
from beam_influence.influence_ops.curvature.device_sums import DeviceSums, stay_on_device
from beam_influence.influence_ops.curvature.kronecker import KroneckerPreconditioner, Side, decompose, kronecker
from beam_influence.influence_ops.model.evaluate import evaluate_with_fisher
from beam_influence.influence_ops.model.explained_model import ExplainedModel
from beam_influence.influence_ops.model.fisher import fisher_blocks
from beam_influence.influence_ops.model.gradients import Block, BlockLayout, Factored, Materialised, OneHot
from beam_influence.influence_ops.model.gradients.blocks import positions_of
from beam_influence.influence_ops.reading.example_batch import ExampleBatch, Rejected
from beam_influence.influence_ops.settings import KroneckerSettings

MAX_SIDE = 8192
"""A side with more inputs or outputs keeps only its diagonal."""

LONG_VECTOR = 512
"""A vector of more weights (a scale, a shift) keeps only its diagonal: a network has hundreds of them, whose eigenvectors would take most
of EK-FAC's time. kfac-jax keeps no more of scales and shifts of any length."""

_POSITIONS = "positions"
Sums = dict[str, tf.Tensor]
"""A batch's sums by name, on the device; or other tensors by name."""


class Draw(NamedTuple):
    """How the gradients of a batch are summed.

    Attributes:
      weights: of the examples; None: all are 1.
      first: whether this is the first of the draws.
      most: at least as many as a batch has examples.
      bases: what a later pass turns gradients by.
    """

    weights: tf.Tensor | None
    first: bool
    most: int
    bases: Sums


class Kfac(Curvature):
    """A ⊗ S for each layer, A = Σ a aᵀ and S = Σ g gᵀ over examples and positions.

    Weights that no factors are known for are a block with A = 1, or, above 1,024 of them, a matrix G with A = Σ G Gᵀ and
    S = Σ Gᵀ G over the trace of either (Shampoo's sides, Gupta et al. 2018, 1802.09568); an embedding's A is diagonal, the tokens' counts.
    """

    name: ClassVar[str] = "kfac"
    passes = 1
    Settings = KroneckerSettings
    operators = (KroneckerPreconditioner,)
    has_embedding = True
    takes_rank = "index"
    settings: KroneckerSettings

    def create(self, model: ExplainedModel) -> Statistic:
        return {COUNT: np.zeros(1, dtype=np.int64)}

    def __init__(self, settings: KroneckerSettings | None = None):
        super().__init__(settings)
        self._compiled = CompiledSums()

    def add(self, model: ExplainedModel, statistic: Statistic, batch: ExampleBatch) -> Statistic:
        return self._add_draws(model, statistic, batch, fisher_blocks(model, batch, self.settings.fisher, self.settings.seed))

    def evaluate_and_add(self, model: ExplainedModel, statistic: Statistic, batch: ExampleBatch) -> tuple[Statistic, list[Rejected]]:
        kept, draws, rejected = evaluate_with_fisher(model, batch, self.settings.fisher, self.settings.seed)
        return self._add_draws(model, statistic, kept, draws) if len(kept) else statistic, rejected

    def _add_draws(
        self, model: ExplainedModel, statistic: Statistic, batch: ExampleBatch, draws: Iterable[tuple[Block, ...]]
    ) -> Statistic:
        weights = () if batch.weights is None else (model.curvature_weights(batch),)
        layout = model.layout(batch.inputs).blocks
        of_batch = Sums()
        for draw, blocks in enumerate(draws):
            sums = self._compiled.of(layout, draw == 0, len(batch), self._sums)
            for name, value in sums(weights, *blocks, constants=self._bases_on_device(blocks[0][-1].dtype)).items():
                accumulate(of_batch, name, value)
        if stay_on_device(of_batch):
            statistic.setdefault(PENDING, DeviceSums()).add(of_batch)
        else:
            for name, total in of_batch.items():  # all at once: a batch that does not fit the device leaves no trace
                add_to(statistic, name, total.numpy())
        statistic[COUNT] += len(batch)
        return statistic

    def complete(self, statistic: Statistic) -> Statistic:
        for name, total in statistic.pop(PENDING, DeviceSums()).to_host().items():
            add_to(statistic, name, total)
        return statistic

    def _bases_on_device(self, dtype: tf.DType) -> Sums:
        """What the sums need beside the batch, in its dtype."""
        return {}

    def _sums(
        self, layouts: Sequence[BlockLayout], first: bool, most: int, bases: Sums, weights: tuple[tf.Tensor, ...], *blocks: Block
    ) -> Sums:
        """A batch's sums; `weights`: () where all are 1."""
        draw, sums = Draw(weights[0] if weights else None, first, most, bases), Sums()
        for number, (layout, block) in enumerate(zip(layouts, blocks, strict=True)):
            # One after the other: else what all blocks need besides is in memory at once.
            with tf.control_dependencies(list(sums.values())[-1:]):
                self._add_block(sums, number, layout, block, draw)
        return sums

    def _add_block(self, sums: Sums, number: int | str, layout: BlockLayout, block: Block, draw: Draw) -> None:
        """Adds a batch's gradients in one block to its sums."""
        weights = draw.weights
        if isinstance(block, Materialised) and layout.rows > 1:
            of_rows = _moment(tf.transpose(block.values, [0, 2, 1]), weights, layout.rows)
            squares = tf.cast(of_rows if of_rows.shape.rank == 1 else tf.linalg.diag_part(of_rows), tf.float64)
            accumulate(sums, f"inputs-{number}", of_rows)
            accumulate(sums, f"{_POSITIONS}-{number}", tf.reduce_sum(squares, keepdims=True))
        elif draw.first:  # the inputs are the same for every label
            of_each = tf.ones([tf.shape(block[-1])[0]], block[-1].dtype) if weights is None else weights
            accumulate(sums, f"inputs-{number}", _input_moment(layout, block, of_each, weights))
            accumulate(sums, f"{_POSITIONS}-{number}", tf.reduce_sum(tf.cast(of_each, tf.float64), keepdims=True) * positions_of(block))
        accumulate(sums, f"errors-{number}", _error_moment(layout, block, weights))

    def finish_part(self, name: str, part: Any) -> Any:
        return decompose(part) if name.startswith(("inputs-", "errors-")) else part

    def pack_part(self, name: str, part: Any) -> dict[str, np.ndarray]:
        return part._asdict() if isinstance(part, Side) else super().pack_part(name, part)

    def unpack_part(self, name: str, arrays: Mapping[str, np.ndarray]) -> Any:
        return Side(arrays["values"], arrays["vectors"]) if "values" in arrays else super().unpack_part(name, arrays)

    def finish(self, model: ExplainedModel, statistic: Statistic, options: FinishOptions) -> Preconditioner:
        examples = self._examples(statistic)
        self._check(options)
        sides, eigenvalues = [], []
        for number in range(len(model.layout().blocks)):
            inputs, errors = statistic[f"inputs-{number}"], statistic[f"errors-{number}"]
            sides.append((inputs.vectors, errors.vectors))
            # 1/n Σ_i w_i Σ_s a aᵀ ⊗ g gᵀ, its factors independent: the mean of each times the number of positions.
            scale = 1 / (examples * max(float(statistic[f"{_POSITIONS}-{number}"][0]), np.finfo(float).tiny))
            eigenvalues.append(np.outer(inputs.values, errors.values) * scale)
        facts = {"fisher": self.settings.fisher}
        return kronecker(model, self.name, examples, sides, eigenvalues, options, self.systems is not None, facts)

    def _examples(self, statistic: Statistic) -> int:
        examples = int(statistic[COUNT][0])
        if examples == 0:
            raise ValueError("no training example is left to make a curvature from")
        return examples

    def _check(self, options: FinishOptions) -> None:
        if options.leave_one_out:
            raise ValueError(f"removal='newton' needs the whole matrix; use curvature gauss_newton or exact, not {self.name}")
        if options.rcond is not None:
            raise ValueError(f"rcond is of one matrix's eigenvalues; {self.name} takes only a damping")


def accumulate(of_batch: Sums, name: str, value: tf.Tensor) -> None:
    """Adds to a sum of a batch, in float64 where it is of several draws, or makes it."""
    of_batch[name] = tf.cast(of_batch[name], tf.float64) + tf.cast(value, tf.float64) if name in of_batch else value


def add_to(statistic: Statistic, name: str, value: np.ndarray) -> None:
    """Adds to a part in place, in float64, or makes it."""
    if name in statistic:
        np.add(statistic[name], value, out=statistic[name])
    else:
        statistic[name] = np.array(value, dtype=np.float64)


class CompiledSums:
    """The sums over a batch as compiled functions, by layout: of the first draw, and of the others. Another process makes its own."""

    def __init__(self) -> None:
        self._most = 64
        self._functions: dict[tuple[Sequence[BlockLayout], bool, int], CompiledForAnyBatch[Sums]] = {}

    def of(self, layouts: Sequence[BlockLayout], first: bool, count: int, sums: Callable[..., Sums]) -> CompiledForAnyBatch[Sums]:
        """`sums`, of the layout and the draw, for batches of `count` examples or fewer."""
        while self._most < count:
            self._most *= 2
        key = layouts, first, self._most
        if key not in self._functions:
            self._functions[key] = CompiledForAnyBatch(functools.partial(weakly(sums), *key))
        return self._functions[key]

    def __reduce__(self) -> tuple[type[CompiledSums], tuple[()]]:
        return CompiledSums, ()


def _input_moment(layout: BlockLayout, block: Block, of_each: tf.Tensor, weights: tf.Tensor | None) -> tf.Tensor:
    if isinstance(block, OneHot):
        counts = tf.repeat(of_each, tf.shape(block.ids)[1])
        return tf.math.unsorted_segment_sum(counts, tf.reshape(block.ids, [-1]), layout.rows)
    if isinstance(block, Factored):
        return _moment(block.inputs, weights, layout.rows)
    return tf.reduce_sum(of_each, keepdims=True)


def _error_moment(layout: BlockLayout, block: Block, weights: tf.Tensor | None) -> tf.Tensor:
    is_vector = layout.kind == "materialised" and all(len(piece.shape) == 1 for piece in layout.pieces)
    return _moment(block[-1], weights, layout.columns, LONG_VECTOR if is_vector else MAX_SIDE)


def _moment(x: tf.Tensor, weights: tf.Tensor | None, size: int, most: int = MAX_SIDE) -> tf.Tensor:
    """Σ_i w_i Σ_s x xᵀ of x [B, S, d]: [d, d], or its diagonal where d is above `most`."""
    rows = tf.reshape(x, [-1, size])
    weighted = rows if weights is None else tf.reshape(x * weights[:, None, None], [-1, size])
    if size > most:
        return tf.reduce_sum(rows * weighted, axis=0)
    return tf.matmul(rows, weighted, transpose_a=True)
