"""Several checkpoints of one training run as one model, so that influence sums over them with every curvature.

    I(z, t) = Σ_c η_c g_c(t)ᵀ (H_c + λI)⁻¹ g_c(z)

TracIn (Pruthi et al. 2020, 2002.08484, equation 4) is this with H = I and η the learning rates. The gradients of all
checkpoints stand side by side, each times √η_c: C·P numbers. Curvatures see the same model without η: H is block diagonal,
and one λ is added to all of it.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from beam_influence.influence_ops.model.explained_model import ExplainedModel
from beam_influence.influence_ops.model.gradients import Gradients, Layout
from beam_influence.influence_ops.model.gradients.blocks import scaled
from beam_influence.influence_ops.model.guard import Agreement
from beam_influence.influence_ops.model.influence_model import InfluenceModel
from beam_influence.influence_ops.reading.example_batch import ExampleBatch, Inputs
from beam_influence.influence_ops.types import Float64Matrix, Float64Vector


class CheckpointSum(ExplainedModel):
    """The same network at several points of its training.

    Args:
      parts: a model for each checkpoint, with the same inputs, loss and options.
      weights: η_c > 0 for each; None: 1/C each, so that influence is the checkpoints' mean.

    Raises:
      ValueError: there are none, they do not fit each other, or the weights do not fit them.
    """

    def __init__(self, parts: Sequence[InfluenceModel], weights: Sequence[float] | None = None):
        if not parts:
            raise ValueError("at least one checkpoint is needed")
        weights = [1 / len(parts)] * len(parts) if weights is None else [float(weight) for weight in weights]
        if len(weights) != len(parts) or not all(np.isfinite(weight) and weight > 0 for weight in weights):
            raise ValueError(f"checkpoint_weights={weights} must be {len(parts)} numbers above 0, one for each checkpoint")
        self._parts = tuple(parts)
        self.part_weights = tuple(weights)
        first = parts[0]
        for number, part in enumerate(parts):
            for name in ("size", "dtype", "query_dtype", "loss_name", "regularizer", "weight_decay"):
                if getattr(part, name) != getattr(first, name):
                    found, wanted = getattr(part, name), getattr(first, name)
                    raise ValueError(f"checkpoint {number} has {name} {found!r}, the first has {wanted!r}: checkpoints are of one network")
        self.model = parts[-1].model
        self.dtype, self.query_dtype, self.training_loss = first.dtype, first.query_dtype, first.training_loss
        self.weight_decay, self.regularizer = first.weight_decay, first.regularizer
        self.variables = [variable for part in parts for variable in part.variables]
        self.size = sum(part.size for part in parts)
        self.total_size = sum(part.total_size for part in parts)
        self.network = parts[-1].network
        self.process_batch_for_loss_fn = first.process_batch_for_loss_fn
        self._starts = np.cumsum([0, *(part.size for part in parts)]).tolist()
        self._layout: Layout | None = None

    @property
    def parts(self) -> tuple[InfluenceModel, ...]:
        return self._parts

    def with_weight_decay(self, weight_decay: float) -> CheckpointSum:
        return CheckpointSum([part.with_weight_decay(weight_decay) for part in self.parts], self.part_weights)

    def check(self, batch: ExampleBatch) -> Agreement:
        """See `ExplainedModel`; the largest difference of any checkpoint."""
        found = [dataclasses.astuple(part.check(batch)) for part in self.parts]
        if any(part.dtype != self.dtype for part in self.parts):  # one gave up its float64 copy
            raise ValueError(
                "a checkpoint's float64 copy is not the checkpoint, or can't be evaluated; use precision 'native' for all of them"
            )
        worst = Agreement(found[0][0], *(max(values) for values in list(zip(*found, strict=True))[1:]))
        if worst.examples:
            self.agreement = worst
        return worst

    @property
    def weight_names(self) -> list[str]:
        return [f"checkpoint-{number}/{name}" for number, part in enumerate(self.parts) for name in part.weight_names]

    @property
    def weights_without_factors(self) -> list[str]:
        return [f"checkpoint-{number}/{name}" for number, part in enumerate(self.parts) for name in part.weights_without_factors]

    def parameters(self) -> Float64Vector:
        return np.concatenate([part.parameters() for part in self.parts])

    def fingerprint(self) -> str:
        told = "|".join(f"{part.fingerprint()}:{weight!r}" for part, weight in zip(self.parts, self.part_weights, strict=True))
        return hashlib.sha256(told.encode()).hexdigest()

    def layout(self, inputs: Inputs | None = None) -> Layout:
        if self._layout is None:
            blocks = []
            for number, (part, start) in enumerate(zip(self.parts, self._starts, strict=False)):
                for block in part.layout(inputs).blocks:
                    pieces = tuple(dataclasses.replace(piece, start=piece.start + start) for piece in block.pieces)
                    blocks.append(dataclasses.replace(block, name=f"checkpoint-{number}/{block.name}", pieces=pieces))
            self._layout = Layout(tuple(blocks), self.size)
        return self._layout

    def losses_and_gradients(self, batch: ExampleBatch) -> tuple[Float64Vector, Gradients]:
        losses, blocks, offsets = np.zeros(len(batch)), [], []
        layout = self.layout(batch.inputs)
        for part, weight in zip(self.parts, self.part_weights, strict=True):
            own, gradients = part.losses_and_gradients(batch)
            losses += weight * own
            root = tf.constant(weight**0.5, dtype=self.dtype)
            blocks += scaled(gradients.blocks, tf.fill([len(batch)], root))
            if gradients.offset is not None:
                offsets.append(gradients.offset * root)
        return losses / sum(self.part_weights), Gradients(layout, tuple(blocks), tf.concat(offsets, axis=0) if offsets else None)

    def losses(self, batch: ExampleBatch) -> Float64Vector:
        weighted = [weight * part.losses(batch) for part, weight in zip(self.parts, self.part_weights, strict=True)]
        return np.sum(weighted, axis=0) / sum(self.part_weights)

    def gauss_newton_factors(self, batch: ExampleBatch) -> tf.Tensor:
        padded = []
        for part, start in zip(self.parts, self._starts, strict=False):
            room = [[0, 0], [0, 0], [start, self.size - start - part.size]]
            padded.append(tf.pad(part.gauss_newton_factors(batch), room))
        return tf.concat(padded, axis=1)

    def check_second_derivatives(self) -> None:
        for part in self.parts:
            part.check_second_derivatives()

    def hessian_sum(self, batch: ExampleBatch, rows: slice | None = None) -> Float64Matrix:
        return self._block_diagonal(lambda part, own: part.hessian_sum(batch, own), rows)

    def gauss_newton_sum(self, batch: ExampleBatch, rows: slice | None = None) -> Float64Matrix:
        return self._block_diagonal(lambda part, own: part.gauss_newton_sum(batch, own), rows)

    def hessian_vector_products(self, batch: ExampleBatch, vectors: Float64Matrix) -> Float64Matrix:
        return self._by_part(vectors, lambda part, own: part.hessian_vector_products(batch, own))

    def gauss_newton_products(self, batch: ExampleBatch, vectors: Float64Matrix) -> Float64Matrix:
        return self._by_part(vectors, lambda part, own: part.gauss_newton_products(batch, own))

    def regularizer_value(self) -> float:
        values = [weight * part.regularizer_value() for part, weight in zip(self.parts, self.part_weights, strict=True)]
        return sum(values) / sum(self.part_weights)

    def regularizer_gradient(self) -> Float64Vector:
        weighted = zip(self.parts, self.part_weights, strict=True)
        return np.concatenate([part.regularizer_gradient() * weight**0.5 for part, weight in weighted])

    def regularizer_products(self, vectors: Float64Matrix) -> Float64Matrix:
        return self._by_part(vectors, lambda part, own: part.regularizer_products(own))

    def block_penalties(self) -> list[float]:
        return [penalty for part in self.parts for penalty in part.block_penalties()]

    def add_regularizer_hessian(self, matrix: Float64Matrix) -> None:
        for part, rows in self._rows():
            part.add_regularizer_hessian(matrix[rows, rows])  # a view

    def _rows(self) -> Iterator[tuple[InfluenceModel, slice]]:
        for part, start in zip(self.parts, self._starts, strict=False):
            yield part, slice(start, start + part.size)

    def _by_part(self, vectors: Float64Matrix, multiply: Callable[[InfluenceModel, Float64Matrix], Float64Matrix]) -> Float64Matrix:
        return np.concatenate([multiply(part, np.ascontiguousarray(vectors[:, rows])) for part, rows in self._rows()], axis=1)

    def _block_diagonal(self, matrix: Callable[[InfluenceModel, slice], Float64Matrix], rows: slice | None) -> Float64Matrix:
        first, last = (0, self.size) if rows is None else (rows.start, rows.stop)
        whole = np.zeros((last - first, self.size - first))
        for part, place in self._rows():
            start, stop = max(first, place.start), min(last, place.stop)
            if start < stop:
                own = slice(start - place.start, stop - place.start)
                whole[start - first : stop - first, start - first : place.stop - first] = matrix(part, own)
        return whole
