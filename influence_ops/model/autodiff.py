"""Per-example derivatives of any model by automatic differentiation.

Every method takes tensors of one batch and returns tensors; P is the number of watched weights,
flattened variable by variable in row-major order.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from beam_influence.influence_ops.model.additional_losses import AdditionalLosses
from beam_influence.influence_ops.model.example_loss import ExampleLoss, Targets
from beam_influence.influence_ops.model.gradients.blocks import Block, Layout
from beam_influence.influence_ops.model.gradients.discover import GradientPlan, discover
from beam_influence.influence_ops.model.gradients.layers import why_not_vectorised
from beam_influence.influence_ops.model.gradients.places import PlacedBlocks, PlacedPlan
from beam_influence.influence_ops.model.gradients.recorded import recorded
from beam_influence.influence_ops.model.gradients.unrolled import unrolled
from beam_influence.influence_ops.model.heads import Outputs
from beam_influence.influence_ops.model.output_curvature import matrix_root, output_hessian
from beam_influence.influence_ops.model.packed import pack, unpack
from beam_influence.influence_ops.model.vectorised_map import VectorisedMap
from beam_influence.influence_ops.types import Tensors

_ROWS_AT_ONCE = 64  # Hessian rows in one vectorised pass: bounds memory to 64 copies of the activations


class _Total(NamedTuple):
    """A sum over examples whose gradient is wanted of each of them.

    Attributes:
      of_each: what is summed, or made it: [B, ...].
      total: the sum.
      one: the gradients of one example by the weights that no rule covers, of that example's part of `elements`.
      elements: tensors with an axis of examples first.
    """

    of_each: tf.Tensor
    total: tf.Tensor
    one: Callable[[Tensors], Tensors]
    elements: Tensors


class AutodiffDerivatives:
    """Derivatives of a model's per-example loss with respect to its watched variables."""

    def __init__(self, model: keras.Model, loss: ExampleLoss, variables: list[keras.Variable]):
        self._model = model
        self.loss = loss
        self._additional = AdditionalLosses(model)
        self._keras_variables = variables
        self._variables = [variable.value for variable in variables]
        self._size = sum(int(tf.size(variable)) for variable in self._variables)
        self._map = VectorisedMap(why_not_vectorised(model, variables))

    def outputs(self, inputs: Tensors) -> Outputs:
        """The model's outputs before their activation, in inference mode."""
        return self.loss.heads.split(self._model(inputs, training=False), self._variables[0].dtype)

    def losses(self, inputs: Tensors, targets: Targets, weights: tf.Tensor) -> tf.Tensor:
        """w_i ℓ(z_i): [B]."""
        found = weights * self.loss(targets, self.outputs(inputs))
        return found + self._additional_of_each(inputs) if self._additional.kinds else found

    def _additional_of_each(self, inputs: Tensors) -> tf.Tensor:
        """What layers add to each example's loss (`add_loss`, activity regularisers): [B]; the examples' weights are not on it."""
        return self._map.examples(lambda x: self._additional.alone(tf.nest.map_structure(lambda leaf: leaf[None], x)), inputs)

    def discover(self, inputs: Tensors) -> Layout:
        """Finds the factored blocks of the watched weights; see `gradients.discover`. Once, before the methods with blocks."""
        if self.loss.heads.additional:
            self._additional.find(inputs)

        def packed(examples: Tensors) -> tf.Tensor:
            return pack(self.outputs(examples).values)

        self._plan = discover(self._model, self._keras_variables, packed, inputs)
        return self._plan.layout

    @property
    def without_factors(self) -> list[str]:
        """The weights that no rule covers, by path; known after `discover`."""
        return [variable.path for variable in self._plan.rest]

    def losses_and_blocks(self, inputs: Tensors, targets: Targets, weights: tf.Tensor) -> tuple[tf.Tensor, tuple[Block, ...]]:
        """w_i ℓ(z_i) [B] and its gradients as blocks."""
        found, (blocks,) = self._blocks(inputs, [lambda outputs: self._of_losses(inputs, targets, weights, outputs)], self._plan)
        return self._with_additional(found, inputs), blocks

    def losses_and_signed_fisher(
        self, inputs: Tensors, targets: Targets, weights: tf.Tensor, signs: tf.Tensor
    ) -> tuple[tf.Tensor, tuple[Block, ...], tuple[Block, ...]]:
        """`losses_and_blocks` and `signed_fisher_blocks` by one pass forward."""
        return self._losses_and_fisher(inputs, targets, weights, signs, drawn=False)

    def losses_and_drawn_fisher(
        self, inputs: Tensors, targets: Targets, weights: tf.Tensor, numbers: tf.Tensor
    ) -> tuple[tf.Tensor, tuple[Block, ...], tuple[Block, ...]]:
        """`losses_and_blocks` and `drawn_fisher_blocks` by one pass forward."""
        return self._losses_and_fisher(inputs, targets, weights, numbers, drawn=True)

    def _losses_and_fisher(
        self, inputs: Tensors, targets: Targets, weights: tf.Tensor, numbers: tf.Tensor, drawn: bool
    ) -> tuple[tf.Tensor, tuple[Block, ...], tuple[Block, ...]]:
        def fisher(outputs: Outputs) -> _Total:
            return self._along(inputs, self.loss.fisher_directions(targets, outputs, numbers, drawn), outputs)

        totals = [lambda outputs: self._of_losses(inputs, targets, weights, outputs), fisher]
        found, (blocks, of_fisher) = self._blocks(inputs, totals, self._plan)
        return self._with_additional(found, inputs), blocks, of_fisher

    def _of_losses(self, inputs: Tensors, targets: Targets, weights: tf.Tensor, outputs: Outputs) -> _Total:
        found = weights * self.loss(targets, outputs)
        total = tf.reduce_sum(found)
        if self._additional.kinds:
            total += self._additional.total(tf.shape(weights)[0])

        def one(example: Tensors) -> list[tf.Tensor]:
            x, y, weight = tf.nest.map_structure(lambda leaf: leaf[None], example)
            with unrolled(self._model), self._rest_tape() as tape:
                loss = tf.reduce_sum(weight * self.loss(y, self.outputs(x)))
                if self._additional.kinds:
                    loss += self._additional.total(1)
            return self._rest_gradients(tape, loss)

        return _Total(found, total, one, (inputs, targets, weights))

    def _with_additional(self, losses: tf.Tensor, inputs: Tensors) -> tf.Tensor:
        return losses + self._additional_of_each(inputs) if self._additional.kinds else losses

    def placed_blocks(self, inputs: Tensors, targets: Targets, weights: tf.Tensor) -> PlacedBlocks:
        """The gradients with every position by itself, the sequence's position of each, and the sequence's length; see `PlacedPlan`."""
        plan = PlacedPlan(self._plan, self._model, inputs)
        _, (blocks,) = self._blocks(inputs, [lambda outputs: self._of_losses(inputs, targets, weights, outputs)], plan)
        return blocks, tuple(plan.places), tf.constant(plan.length)

    def output_blocks(self, inputs: Tensors, directions: tf.Tensor) -> tuple[Block, ...]:
        """J_iᵀ u_i as blocks, for u [B, C] along the packed outputs."""
        return self._blocks_along(inputs, lambda _: directions)

    def signed_fisher_blocks(self, inputs: Tensors, targets: Targets, signs: tf.Tensor) -> tuple[Block, ...]:
        """J_iᵀ u_i as blocks, for the directions u that signs [B, C] give; see `ExampleLoss.fisher_directions`."""
        return self._blocks_along(inputs, lambda outputs: self.loss.fisher_directions(targets, outputs, signs, drawn=False))

    def drawn_fisher_blocks(self, inputs: Tensors, targets: Targets, numbers: tf.Tensor) -> tuple[Block, ...]:
        """The same for labels that numbers in [0, 1) draw."""
        return self._blocks_along(inputs, lambda outputs: self.loss.fisher_directions(targets, outputs, numbers, drawn=True))

    def _blocks_along(self, inputs: Tensors, directions: Callable[[Outputs], tf.Tensor]) -> tuple[Block, ...]:
        return self._blocks(inputs, [lambda outputs: self._along(inputs, directions(outputs), outputs)], self._plan)[1][0]

    def _along(self, inputs: Tensors, directions: tf.Tensor, outputs: Outputs) -> _Total:
        directions = tf.stop_gradient(directions)

        def one(example: Tensors) -> list[tf.Tensor]:
            x, direction = tf.nest.map_structure(lambda leaf: leaf[None], example)
            with unrolled(self._model), self._rest_tape() as tape:
                total = tf.reduce_sum(direction * pack(self.outputs(x).values))
            return self._rest_gradients(tape, total)

        return _Total(directions, tf.reduce_sum(directions * pack(outputs.values)), one, (inputs, directions))

    def packed_outputs(self, inputs: Tensors) -> tf.Tensor:
        """All outputs, before their activation: [B, C]."""
        return pack(self.outputs(inputs).values)

    def position_weights(self, inputs: Tensors, targets: Targets) -> tf.Tensor:
        """What each position's loss is multiplied by: [B, ...]; see `ExampleLoss`."""
        return self.loss.position_weights(targets, self.outputs(inputs))

    def output_curvature_root(self, inputs: Tensors, targets: Targets) -> tf.Tensor:
        """R [B, C, C] with R Rᵀ the positive part of H_out = ∂²ℓ/∂z²."""
        return self._output_root(targets, self.outputs(inputs))

    def _output_root(self, targets: Targets, outputs: Outputs) -> tf.Tensor:
        def loss_of_packed(packed: tf.Tensor) -> tf.Tensor:
            return self.loss(targets, outputs._replace(values=unpack(packed, outputs.values)))

        return matrix_root(output_hessian(loss_of_packed, tf.stop_gradient(pack(outputs.values))))

    def _blocks(
        self, inputs: Tensors, totals: Sequence[Callable[[Outputs], _Total]], plan: GradientPlan
    ) -> tuple[tf.Tensor, list[tuple[Block, ...]]]:
        """The first total's value of each example, and the blocks of each total's gradients."""
        with tf.GradientTape(persistent=len(totals) > 1, watch_accessed_variables=False) as tape:
            with recorded(plan.layers, tape) as calls:
                outputs = self.outputs(inputs)
            found = [total(outputs) for total in totals]
        sources, by_total = [call.outputs for call in calls], []
        wide = self._variables[0].dtype  # in mixed precision, activations and errors are narrower than weights
        for value in found:
            errors = tape.gradient(value.total, sources, unconnected_gradients=tf.UnconnectedGradients.ZERO) if sources else []
            rest = self._map.examples(value.one, value.elements) if plan.rest else []
            blocks = plan.blocks(calls, [tf.convert_to_tensor(error) for error in errors], rest)
            by_total.append(
                tuple(block._make(tf.cast(part, wide) if part.dtype.is_floating else part for part in block) for block in blocks)
            )
        return found[0].of_each, by_total

    @contextlib.contextmanager
    def _rest_tape(self) -> Iterator[tf.GradientTape]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            for variable in self._plan.rest:
                tape.watch(variable.value)
            yield tape

    def _rest_gradients(self, tape: tf.GradientTape, target: tf.Tensor) -> list[tf.Tensor]:
        rest = [variable.value for variable in self._plan.rest]
        gradients = tape.gradient(target, rest, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return [tf.reshape(tf.convert_to_tensor(gradient), [-1]) for gradient in gradients]

    def gauss_newton_factors(self, inputs: Tensors, targets: Targets) -> tf.Tensor:
        """F [B, C, P] with Σ_c F_icᵀ F_ic = J_iᵀ H_out,i J_i: the positive part of each example's curvature.

        What layers add to the loss is not in it: it is no function of the outputs.
        """
        roots = self.output_curvature_root(inputs, targets)

        def one(example: Tensors) -> tf.Tensor:
            x, root = example
            with unrolled(self._model), tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
                self._watch(tape)
                z = tf.reshape(pack(self.outputs(tf.nest.map_structure(lambda leaf: leaf[None], x)).values)[0], [-1])
                rows = [tf.reduce_sum(root[:, c] * z) for c in range(z.shape.num_elements() or 0)]
            return tf.stack([self._flatten(tape.gradient(row, self._variables)) for row in rows])

        return self._map.examples(one, (inputs, roots))

    def gauss_newton_sum(self, inputs: Tensors, targets: Targets, weights: tf.Tensor, span: tf.Tensor) -> tf.Tensor:
        """Σ_i w_i J_iᵀ H_out,i J_i, the rows from span[0] to span[1], from column span[0] on: [R, P − span[0]]."""
        factors = self.gauss_newton_factors(inputs, targets)
        rows = tf.reshape(factors * tf.sqrt(weights)[:, None, None], [-1, self._size])
        return tf.matmul(rows[:, span[0] : span[1]], rows[:, span[0] :], transpose_a=True)

    def hessian_vector_products(self, inputs: Tensors, targets: Targets, weights: tf.Tensor, vectors: tf.Tensor) -> tf.Tensor:
        """(Σ_i w_i ∇²ℓ(z_i)) v for each row v of `vectors` [R, P]: [R, P]."""
        with unrolled(self._model), tf.GradientTape(persistent=True, watch_accessed_variables=False) as outer:
            self._watch(outer)
            with tf.GradientTape(watch_accessed_variables=False) as inner:
                self._watch(inner)
                total = tf.reduce_sum(self.losses(inputs, targets, weights))
            gradient = self._flatten(inner.gradient(total, self._variables))

        def one(vector: tf.Tensor) -> tf.Tensor:
            return self._flatten(outer.gradient([gradient], self._variables, output_gradients=[vector]))

        return self._map.rows(one, vectors)

    def gauss_newton_products(self, inputs: Tensors, targets: Targets, weights: tf.Tensor, vectors: tf.Tensor) -> tf.Tensor:
        """(Σ_i w_i J_iᵀ H_out,i J_i) v for each row v of `vectors` [R, P]: [R, P].

        J v is the derivative of the product u ↦ Jᵀu, which is linear in u (Townsend 2017), so that no forward mode is needed.
        H_out's negative part, where a loss is not convex in the outputs, is left out as in `gauss_newton_factors`.
        """
        with unrolled(self._model), tf.GradientTape(persistent=True, watch_accessed_variables=False) as outer:
            with tf.GradientTape(persistent=True, watch_accessed_variables=False) as inner:
                self._watch(inner)
                structured = self.outputs(inputs)
                packed = pack(structured.values)
            outputs = tf.stop_gradient(packed)
            any_rows = tf.zeros_like(outputs)
            outer.watch(any_rows)
            pulled = self._flatten(inner.gradient([packed], self._variables, output_gradients=[any_rows]))

        roots = self._output_root(targets, structured) * tf.sqrt(weights)[:, None, None]
        curvatures = tf.matmul(roots, roots, transpose_b=True)

        def one(vector: tf.Tensor) -> tf.Tensor:
            pushed = outer.gradient([pulled], any_rows, output_gradients=[vector])
            flat = tf.reshape(pushed, [tf.shape(curvatures)[0], -1, 1])
            curved = tf.reshape(tf.matmul(curvatures, flat), tf.shape(outputs))
            return self._flatten(inner.gradient([packed], self._variables, output_gradients=[curved]))

        return self._map.rows(one, vectors)

    def hessian_sum(self, inputs: Tensors, targets: Targets, weights: tf.Tensor, span: tf.Tensor) -> tf.Tensor:
        """Σ_i w_i ∇²ℓ(z_i), as `gauss_newton_sum`, some rows at a time."""
        starts = tf.range(span[0], span[1], _ROWS_AT_ONCE)
        dtype = self._variables[0].dtype

        def block(start: tf.Tensor) -> tf.Tensor:
            # Rows past the end are zeros, so that every block has one shape.
            rows = tf.one_hot(start + tf.range(_ROWS_AT_ONCE), self._size, dtype=dtype)
            return self.hessian_vector_products(inputs, targets, weights, rows)

        blocks = tf.map_fn(block, starts, fn_output_signature=dtype, parallel_iterations=1)
        return tf.reshape(blocks, [-1, self._size])[: span[1] - span[0], span[0] :]

    def _watch(self, tape: tf.GradientTape) -> None:
        for variable in self._variables:
            tape.watch(variable)

    def _flatten(self, gradients: list[Any]) -> tf.Tensor:
        pairs = zip(gradients, self._variables, strict=True)
        dense = [tf.zeros_like(variable) if gradient is None else tf.convert_to_tensor(gradient) for gradient, variable in pairs]
        return tf.concat([tf.reshape(part, [-1]) for part in dense], axis=0)
