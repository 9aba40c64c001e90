"""Closed-form derivatives when the watched weights are the model's final Dense layer.

With features a_i (a constant 1 appended for the bias) and outputs z_i = Wᵀ a_i, the outputs are linear in
the weights, so ∇ℓ_i = a_i ⊗ ∂ℓ/∂z_i and the Hessian is Σ a aᵀ ⊗ H_out (Koh & Liang 2017, section 4); the Gauss–Newton
matrix has H_out's positive part, which is all of it where the loss is convex in the outputs. The layout is Keras's:
kernel[d, c] at d·C + c, then the bias.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from keras.src.models import Functional

from beam_influence.influence_ops.model.curvature_terms import sum_of_terms
from beam_influence.influence_ops.model.example_loss import ExampleLoss, Targets
from beam_influence.influence_ops.model.gradients.blocks import Block, BlockLayout, Factored, Layout, Piece
from beam_influence.influence_ops.model.gradients.places import NoPositions, PlacedBlocks
from beam_influence.influence_ops.model.heads import Heads, Outputs
from beam_influence.influence_ops.model.output_curvature import matrix_root, output_hessian, positive_part
from beam_influence.influence_ops.types import Tensors


def is_linear_head(model: keras.Model, variables: list[keras.Variable], heads: Heads) -> bool:
    """Whether `variables` are all the weights of a final Dense layer on a vector of features, and its outputs, before its
    activation, are all that the loss sees of it."""
    if not isinstance(model, (keras.Sequential, Functional)) or len(model.outputs) != 1:
        return False
    last = model.layers[-1]
    if type(last) is not keras.layers.Dense or last.activation is not keras.activations.get(heads.activations[0]):
        return False
    if heads.masked or heads.additional:
        return False
    if model.outputs[0]._keras_history.operation is not last:  # an operation that is no layer comes after it
        return False
    # Called twice, or fed by a shared tensor of several inputs, `input` does not exist.
    if len(last._inbound_nodes) != 1 or getattr(last, "lora_enabled", False):
        return False
    if len(last.input.shape) != 2:  # pyright: ignore[reportAttributeAccessIssue]  # a Dense layer takes one tensor, no list
        return False
    own = [last.kernel, *([last.bias] if last.use_bias else [])]
    return len(own) == len(variables) and all(a is b for a, b in zip(own, variables, strict=True))


class LinearHeadDerivatives:
    """The methods of `AutodiffDerivatives` in closed form: D = features (+ 1), C outputs, P = D·C."""

    def __init__(self, model: keras.Model, loss: ExampleLoss):
        self._head: Any = model.layers[-1]
        self._trunk = keras.Model(model.inputs, self._head.input)
        self.loss = loss

    def _features(self, inputs: Tensors) -> tf.Tensor:
        features = tf.cast(self._trunk(inputs, training=False), self._head.kernel.dtype)  # integers may go straight in
        if self._head.use_bias:
            features = tf.concat([features, tf.ones_like(features[:, :1])], axis=1)
        return features

    def _outputs(self, features: tf.Tensor) -> tf.Tensor:
        weights = self._head.kernel.value
        if self._head.use_bias:
            weights = tf.concat([weights, self._head.bias.value[None]], axis=0)
        return features @ weights

    def outputs(self, inputs: Tensors) -> tf.Tensor:
        """z [B, C]."""
        return self._outputs(self._features(inputs))

    def losses(self, inputs: Tensors, targets: Targets, weights: tf.Tensor) -> tf.Tensor:
        """w_i ℓ(z_i): [B]."""
        return weights * self._losses(targets)(self.outputs(inputs))

    def _losses(self, targets: Targets) -> Callable[[tf.Tensor], tf.Tensor]:
        return lambda outputs: self.loss(targets, Outputs(outputs, (None,)))

    def discover(self, inputs: Tensors) -> Layout:
        """Kernel and bias as one block."""
        head = self._head
        shape = tuple(int(size) for size in head.kernel.shape)
        pieces = [Piece(0, shape, (0, 1), 0, shape[0])]
        if head.use_bias:
            pieces.append(Piece(shape[0] * shape[1], (shape[1],), (0,), shape[0], 1))
        name = " + ".join(variable.path for variable in (head.kernel, head.bias) if variable is not None)
        rows = shape[0] + len(pieces) - 1
        return Layout((BlockLayout(name, "factored", rows, shape[1], tuple(pieces)),), rows * shape[1])

    @property
    def without_factors(self) -> list[str]:
        """None: the layer is covered."""
        return []

    def losses_and_blocks(self, inputs: Tensors, targets: Targets, weights: tf.Tensor) -> tuple[tf.Tensor, tuple[Block, ...]]:
        """w_i ℓ(z_i) [B] and its gradients a_i ⊗ w_i ∂ℓ/∂z_i as one block."""
        return self._losses_and_blocks(self._features(inputs), targets, weights)

    def _losses_and_blocks(self, features: tf.Tensor, targets: Targets, weights: tf.Tensor) -> tuple[tf.Tensor, tuple[Block, ...]]:
        outputs = self._outputs(features)
        with tf.GradientTape() as tape:
            tape.watch(outputs)
            losses = weights * self._losses(targets)(outputs)
        errors = tf.convert_to_tensor(tape.gradient(losses, outputs))  # sparse where the loss looks something up
        return losses, (Factored(features[:, None], errors[:, None]),)

    def losses_and_signed_fisher(
        self, inputs: Tensors, targets: Targets, weights: tf.Tensor, signs: tf.Tensor
    ) -> tuple[tf.Tensor, tuple[Block, ...], tuple[Block, ...]]:
        """`losses_and_blocks` and `signed_fisher_blocks` by one pass forward."""
        features = self._features(inputs)
        return *self._losses_and_blocks(features, targets, weights), self._fisher_blocks(features, targets, signs, drawn=False)

    def losses_and_drawn_fisher(
        self, inputs: Tensors, targets: Targets, weights: tf.Tensor, numbers: tf.Tensor
    ) -> tuple[tf.Tensor, tuple[Block, ...], tuple[Block, ...]]:
        """`losses_and_blocks` and `drawn_fisher_blocks` by one pass forward."""
        features = self._features(inputs)
        return *self._losses_and_blocks(features, targets, weights), self._fisher_blocks(features, targets, numbers, drawn=True)

    def placed_blocks(self, inputs: Tensors, targets: Targets, weights: tf.Tensor) -> PlacedBlocks:
        """Refused: a layer on one vector of each example has no positions."""
        raise NoPositions(f"the watched layer {self._head.name} sees one vector of each example; watch others too (--weights all)")

    def output_blocks(self, inputs: Tensors, directions: tf.Tensor) -> tuple[Block, ...]:
        """J_iᵀ u_i as one block, for u [B, C]."""
        return (Factored(self._features(inputs)[:, None], directions[:, None]),)

    def signed_fisher_blocks(self, inputs: Tensors, targets: Targets, signs: tf.Tensor) -> tuple[Block, ...]:
        """J_iᵀ u_i as one block, for the directions u that signs [B, C] give; see `ExampleLoss.fisher_directions`."""
        return self._fisher_blocks(self._features(inputs), targets, signs, drawn=False)

    def drawn_fisher_blocks(self, inputs: Tensors, targets: Targets, numbers: tf.Tensor) -> tuple[Block, ...]:
        """The same for labels that numbers in [0, 1) draw."""
        return self._fisher_blocks(self._features(inputs), targets, numbers, drawn=True)

    def _fisher_blocks(self, features: tf.Tensor, targets: Targets, numbers: tf.Tensor, drawn: bool) -> tuple[Block, ...]:
        directions = self.loss.fisher_directions(targets, Outputs(self._outputs(features), (None,)), numbers, drawn)
        return (Factored(features[:, None], directions[:, None]),)

    packed_outputs = outputs

    def position_weights(self, inputs: Tensors, targets: Targets) -> tf.Tensor:
        """What each position's loss is multiplied by; see `ExampleLoss`."""
        return self.loss.position_weights(targets, Outputs(self.outputs(inputs), (None,)))

    def output_curvature_root(self, inputs: Tensors, targets: Targets) -> tf.Tensor:
        """R [B, C, C] with R Rᵀ the positive part of H_out = ∂²ℓ/∂z²."""
        return matrix_root(output_hessian(self._losses(targets), self.outputs(inputs)))

    def gauss_newton_factors(self, inputs: Tensors, targets: Targets) -> tf.Tensor:
        """F [B, C, P], F_ic = a_i ⊗ R_i[:, c] with R Rᵀ = H_out."""
        features = self._features(inputs)
        roots = matrix_root(output_hessian(self._losses(targets), self._outputs(features)))
        factors = features[:, None, :, None] * tf.transpose(roots, [0, 2, 1])[:, :, None, :]
        return tf.reshape(factors, [tf.shape(factors)[0], _size(factors, 1), _size(factors, 2) * _size(factors, 3)])

    def hessian_terms(self, inputs: Tensors, targets: Targets, weights: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """a_i [B, D] and w_i H_out,i [B, C, C]; see `CurvatureTerms`."""
        return self._hessian_terms(self._features(inputs), targets, weights)

    def _hessian_terms(self, features: tf.Tensor, targets: Targets, weights: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return features, output_hessian(self._losses(targets), self._outputs(features)) * weights[:, None, None]

    def losses_and_hessian_terms(
        self, inputs: Tensors, targets: Targets, weights: tf.Tensor
    ) -> tuple[tf.Tensor, tuple[Block, ...], tf.Tensor, tf.Tensor]:
        """`losses_and_blocks` and `hessian_terms` by one pass forward."""
        features = self._features(inputs)
        return *self._losses_and_blocks(features, targets, weights), *self._hessian_terms(features, targets, weights)

    def gauss_newton_terms(self, inputs: Tensors, targets: Targets, weights: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The same with the positive part of H_out."""
        features, hessians = self.hessian_terms(inputs, targets, weights)
        return features, hessians if self.loss.likelihood else positive_part(hessians)  # of these likelihoods none is negative

    def hessian_sum(self, inputs: Tensors, targets: Targets, weights: tf.Tensor, span: tf.Tensor) -> tf.Tensor:
        """Σ_i w_i H_out,i ⊗ a_i a_iᵀ, the rows from span[0] to span[1], from column span[0] on: [R, P − span[0]]."""
        return sum_of_terms(*self.hessian_terms(inputs, targets, weights), span)

    def gauss_newton_sum(self, inputs: Tensors, targets: Targets, weights: tf.Tensor, span: tf.Tensor) -> tf.Tensor:
        """The same with the positive part of H_out."""
        return sum_of_terms(*self.gauss_newton_terms(inputs, targets, weights), span)

    def hessian_vector_products(self, inputs: Tensors, targets: Targets, weights: tf.Tensor, vectors: tf.Tensor) -> tf.Tensor:
        """(Σ_i w_i ∇²ℓ(z_i)) v for each row v of `vectors` [R, P]: [R, P], with no P × P matrix."""
        return _products(*self.hessian_terms(inputs, targets, weights), vectors)

    def gauss_newton_products(self, inputs: Tensors, targets: Targets, weights: tf.Tensor, vectors: tf.Tensor) -> tf.Tensor:
        """The same with the positive part of H_out."""
        return _products(*self.gauss_newton_terms(inputs, targets, weights), vectors)


def _products(features: tf.Tensor, hessians: tf.Tensor, vectors: tf.Tensor) -> tf.Tensor:
    """(Σ_i H_i ⊗ a_i a_iᵀ) v for each row v of `vectors` [R, P]: [R, P]."""
    directions = tf.reshape(vectors, [-1, features.shape[1], hessians.shape[1]])
    moved = tf.einsum("bd,rdc->brc", features, directions)
    return _rows(tf.einsum("bd,brk->rdk", features, tf.einsum("brc,bck->brk", moved, hessians)))


def _rows(tensor: tf.Tensor) -> tf.Tensor:
    """[B, X, Y] -> [B, X·Y], its static size kept."""
    return tf.reshape(tensor, [tf.shape(tensor)[0], _size(tensor, 1) * _size(tensor, 2)])


def _size(tensor: tf.Tensor, axis: int) -> int:
    size = tensor.shape[axis]
    assert size is not None  # only B is unknown
    return size
