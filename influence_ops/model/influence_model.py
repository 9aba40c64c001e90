"""One network whose predictions are explained: its watched weights, its loss and their derivatives."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import tensorflow as tf

from beam_influence.influence_ops.model.autodiff import AutodiffDerivatives
from beam_influence.influence_ops.model.compiled import TRACING, CompiledDerivatives
from beam_influence.influence_ops.model.curvature_terms import CurvatureTerms
from beam_influence.influence_ops.model.example_loss import ExampleLoss
from beam_influence.influence_ops.model.explained_model import ExplainedModel, Regularizer
from beam_influence.influence_ops.model.fingerprint import model_fingerprint
from beam_influence.influence_ops.model.gradients.blocks import Block, Gradients, Layout
from beam_influence.influence_ops.model.gradients.placed import PlacedGradients
from beam_influence.influence_ops.model.gradients.places import NoPositions
from beam_influence.influence_ops.model.guard import Agreement, Disagreement, check_agreement
from beam_influence.influence_ops.model.linear_head import LinearHeadDerivatives
from beam_influence.influence_ops.model.losses import resolve_loss
from beam_influence.influence_ops.model.network import Network, Precision, open_network, to_numpy
from beam_influence.influence_ops.model.output_curvature import Likelihood
from beam_influence.influence_ops.model.regularizer import WeightRegularizer, check_weight_decay, flat_values
from beam_influence.influence_ops.model.weights import LAST_WITH_WEIGHTS, StartLayer, refuse_merged_lora, watched_variables
from beam_influence.influence_ops.reading.example_batch import ExampleBatch, Inputs
from beam_influence.influence_ops.reason import reason_of
from beam_influence.influence_ops.settings import Matrix
from beam_influence.influence_ops.types import Float64Matrix, Float64Vector, Loss, ProcessBatch


class InfluenceModel(ExplainedModel):
    """A Keras model, the part of it whose weights are watched, and a per-example loss.

    In float64 the model is copied when this is made; in its own precision it is used as it is, and must not be trained on meanwhile.
    It is evaluated in inference mode (Dropout off, BatchNorm with its moving statistics). ℓ(z_i) is what Keras's `compute_loss` gives
    for a batch of that example alone, with its sample weight where there are any, and without the weights' regularisers
    (docs/quantities.md); `check` compares the two on examples at hand.

    Args:
      model: a built Keras model: Sequential, functional, or subclassed; or a `SavedModelNetwork`.
      start_layer, last_layer, weights: the watched weights; see `watched_variables`. With `weights`
        None the layers decide; the default is the last layer with weights.
      loss_function: see `resolve_loss`; None is the loss the model was compiled with.
      weight_decay: w of a regulariser 0.5·w·‖θ‖² that training used but the model does not carry.
      regularizer: where the regulariser (the model's own and `weight_decay`) stands. `curvature`: in
        H only, as in an objective mean(ℓ) + R. `loss`: also in every example's loss, ℓ + R, train and
        test, as the reference calculator has it.
      precision: `auto` computes in float64 where the model can be rebuilt so, else in its own dtype;
        `float64` insists; `native` keeps the model's own dtype. `tf32` is `native` of a float32 model whose products a GPU may round to
        TensorFloat-32: it is allowed in the process while this model is the one that was called last. `bfloat16` is `native` with solved
        test points held in bfloat16; of `compute_in_memory` and the job.
      process_batch_for_loss_fn: for the calculators over `tf.data`: an element of a dataset -> (inputs, labels, weights or None).

    Raises:
      ValueError: an option is wrong or nothing is watched; the message names the value and the mend.
    """

    def __init__(
        self,
        model: Any,
        start_layer: StartLayer = LAST_WITH_WEIGHTS,
        last_layer: int | str | None = None,
        loss_function: Loss = None,
        weights: str | None = None,
        *,
        weight_decay: float = 0.0,
        regularizer: Regularizer = "curvature",
        precision: Precision = "auto",
        process_batch_for_loss_fn: ProcessBatch | None = None,
    ):
        self.weight_decay = check_weight_decay(weight_decay)
        if regularizer not in ("curvature", "loss"):
            raise ValueError(f"regularizer={regularizer!r} must be 'curvature' or 'loss'")
        if precision not in get_args(Precision):
            raise ValueError(f"precision={precision!r} must be one of {', '.join(get_args(Precision))}")
        self.process_batch_for_loss_fn = process_batch_for_loss_fn
        self.training_loss = resolve_loss(loss_function, model)
        self.regularizer = regularizer
        self._precision = precision
        self._watched = (weights, start_layer, last_layer)
        self._compute_on(open_network(model, precision))
        rounds = self._compiled.rounds if self.network.is_copy else None
        if rounds is not None and precision == "float64":
            raise ValueError(
                f"the model rounds what it has computed ({rounds}), which in float64 may fall to another side than in its own dtype; use "
                "precision 'native'"
            )
        if rounds is not None:
            self._compute_on_original(f"it rounds what it has computed ({rounds}), which in float64 may fall to another side")

    def _compute_on_original(self, why: str) -> None:
        self._compute_on(dataclasses.replace(open_network(self.network.original, "native"), why_native=why))

    def _compute_on(self, network: Network) -> None:
        self.network = network
        self.model = network.model
        self.dtype = network.dtype
        self.query_dtype = "bfloat16" if self._precision == "bfloat16" else network.dtype
        self.variables = watched_variables(self.model, *self._watched)
        refuse_merged_lora(self.model, self.variables)
        self.size = sum(int(np.prod(variable.shape)) for variable in self.variables)
        self.total_size = sum(int(np.prod(variable.shape)) for variable in self.model.trainable_variables)
        self._weight_regularizer = WeightRegularizer(self.variables, self.weight_decay)
        self._compiled = CompiledDerivatives(network, self.variables, self.training_loss)

    @property
    def parts(self) -> tuple[InfluenceModel, ...]:
        return (self,)

    @property
    def derivatives(self) -> LinearHeadDerivatives | AutodiffDerivatives:
        """What is compiled; known once the model declares its inputs or has seen an example."""
        return self._compiled.derivatives

    @property
    def loss(self) -> ExampleLoss:
        """What the loss of an example is; known once the model declares its inputs or has seen an example."""
        return self.derivatives.loss

    @property
    def likelihood(self) -> Likelihood | None:
        """See `ExampleLoss`."""
        return self.loss.likelihood

    def check(self, batch: ExampleBatch) -> Agreement:
        with TRACING:  # it calls the user's model, in which another thread may have put its recorders
            try:
                found = check_agreement(self, batch)
            except Exception as error:
                if self._precision != "auto" or not self.network.is_copy:
                    raise
                why = reason_of(error).partition("; use precision")[0]
                self._compute_on_original(why if isinstance(error, Disagreement) else f"its float64 copy can't be evaluated: {why}")
                found = check_agreement(self, batch)
        if found.examples:  # else none of them could be evaluated
            self.agreement = found
        return found

    def with_weight_decay(self, weight_decay: float) -> InfluenceModel:
        other = copy.copy(self)
        other.weight_decay = check_weight_decay(weight_decay)
        other._weight_regularizer = WeightRegularizer(self.variables, other.weight_decay)
        return other

    @property
    def weight_names(self) -> list[str]:
        return [variable.path for variable in self.variables]

    @property
    def weights_without_factors(self) -> list[str]:
        self.layout()
        return self.derivatives.without_factors

    def parameters(self) -> Float64Vector:
        return flat_values(self.variables)

    def fingerprint(self) -> str:
        with TRACING:  # else another thread's recorders may stand in the place of activations
            return model_fingerprint(self.model, self.variables, f"{self.loss_name}|{self.weight_decay!r}|{self.regularizer}")

    def layout(self, inputs: Inputs | None = None) -> Layout:
        return self._compiled.layout(inputs)

    def losses_and_gradients(self, batch: ExampleBatch) -> tuple[Float64Vector, Gradients]:
        layout = self.layout(batch.inputs)
        told, blocks = self._compiled.call("losses_and_blocks", batch, self.example_weights(batch))
        return self._with_regularizer(told, blocks, layout)

    def _with_regularizer(self, told: tf.Tensor, blocks: Sequence[Block], layout: Layout) -> tuple[Float64Vector, Gradients]:
        losses, bounds = told.numpy()
        if self.regularizer == "curvature":
            return losses, Gradients(layout, tuple(blocks), None, bounds)
        offset = tf.constant(self.regularizer_gradient(), dtype=self.dtype)
        return losses + self.regularizer_value(), Gradients(layout, tuple(blocks), offset, bounds)

    def losses_gradients_and_fisher(
        self, batch: ExampleBatch, numbers: np.ndarray, drawn: bool
    ) -> tuple[Float64Vector, Gradients, tuple[Block, ...]]:
        """`losses_and_gradients` and `fisher_blocks` by one pass forward, two back."""
        layout = self.layout(batch.inputs)
        name = "losses_and_drawn_fisher" if drawn else "losses_and_signed_fisher"
        weights, directions = self.example_weights(batch), tf.constant(numbers, self.dtype)
        told, blocks, fisher = self._compiled.call(name, batch, weights, directions)
        return *self._with_regularizer(told, blocks, layout), tuple(fisher)

    def plain_losses_and_blocks(self, batch: ExampleBatch) -> tuple[Float64Vector, tuple[Block, ...], Layout]:
        """ℓ(z_i) [B] and ∇ℓ(z_i) as blocks, whatever `regularizer` says."""
        layout = self.layout(batch.inputs)
        told, blocks = self._compiled.call("losses_and_blocks", batch, self.example_weights(batch))
        return told.numpy()[0], tuple(blocks), layout

    def placed_gradients(self, batch: ExampleBatch) -> PlacedGradients:
        self.layout(batch.inputs)
        try:
            blocks, places, length = self._compiled.call("placed_blocks", batch, self.example_weights(batch))
        except NoPositions as error:
            raise ValueError(str(error)) from error
        parts = tuple(tuple(np.asarray(tensor) for tensor in block) for block in blocks)
        return PlacedGradients(parts, tuple(np.asarray(each) for each in places), int(length))

    def loss_blocks(self, batch: ExampleBatch) -> tuple[Block, ...]:
        """∇ℓ(z_i) without the examples' weights and the regulariser, as blocks."""
        self.layout(batch.inputs)
        return tuple(self._compiled.call("losses_and_blocks", batch, tf.ones(len(batch), dtype=self.dtype))[1])

    def output_blocks(self, batch: ExampleBatch, directions: tf.Tensor) -> tuple[Block, ...]:
        """J_iᵀ u_i as blocks, for `directions` u [B, C] along the outputs before their activation."""
        self.layout(batch.inputs)
        return tuple(self._compiled.call_on_inputs("output_blocks", batch, directions))

    def fisher_blocks(self, batch: ExampleBatch, numbers: np.ndarray, drawn: bool) -> tuple[Block, ...]:
        """J_iᵀ u_i as blocks, for the u of `ExampleLoss.fisher_directions`: one pass forward, one back."""
        self.layout(batch.inputs)
        name = "drawn_fisher_blocks" if drawn else "signed_fisher_blocks"
        return tuple(self._compiled.call(name, batch, tf.constant(numbers, self.dtype)))

    def output_shape(self, batch: ExampleBatch) -> tuple[int, ...]:
        """The shape of one example's packed outputs; they are computed only where it depends on the batch."""
        known = self._compiled.output_shape(batch)
        return tuple(int(size) for size in self.packed_outputs(batch).numpy().shape[1:]) if known is None else known

    def packed_outputs(self, batch: ExampleBatch) -> tf.Tensor:
        """The outputs before their activation, all in one tensor: [B, C], or the only output's shape."""
        return self._compiled.call_on_inputs("packed_outputs", batch)

    def position_weights(self, batch: ExampleBatch) -> tf.Tensor:
        """What each position's loss is multiplied by in its example's, without the example's weight: [B, ...]; where `likelihood` is."""
        return self._compiled.call("position_weights", batch)

    def output_curvature_root(self, batch: ExampleBatch) -> tf.Tensor:
        """R: [B, C, C] with R Rᵀ the positive part of ∂²ℓ/∂z²."""
        return self._compiled.call("output_curvature_root", batch)

    def losses(self, batch: ExampleBatch) -> Float64Vector:
        self.layout(batch.inputs)
        losses = to_numpy(self._compiled.call("losses", batch, self.example_weights(batch)))
        return losses + (self.regularizer_value() if self.regularizer == "loss" else 0.0)

    def gauss_newton_factors(self, batch: ExampleBatch) -> tf.Tensor:
        return self._compiled.call("gauss_newton_factors", batch) * tf.sqrt(self.curvature_weights(batch))[:, None, None]

    def check_second_derivatives(self) -> None:
        stopped = getattr(self.model, "stopped_gradients", 0)
        if stopped:
            raise ValueError(
                f"the SavedModel's graph has {stopped} StopGradient operations (normalisation layers have them), through which "
                "its exact Hessian is wrong; use --curvature gauss_newton, or the .keras file"
            )

    def hessian_sum(self, batch: ExampleBatch, rows: slice | None = None) -> Float64Matrix:
        self.check_second_derivatives()
        return to_numpy(self._compiled.call("hessian_sum", batch, self.example_weights(batch), self._span(rows)))

    def gauss_newton_sum(self, batch: ExampleBatch, rows: slice | None = None) -> Float64Matrix:
        return to_numpy(self._compiled.call("gauss_newton_sum", batch, self.curvature_weights(batch), self._span(rows)))

    def curvature_terms(self, batch: ExampleBatch, matrix: Matrix) -> CurvatureTerms | None:
        call, weights = self._compiled.call, self._weights_in(matrix, batch)
        return CurvatureTerms(batch.ids, *call(f"{matrix}_terms", batch, weights)) if self._compiled.has_terms else None

    def losses_gradients_and_terms(self, batch: ExampleBatch, matrix: Matrix) -> tuple[Float64Vector, Gradients, CurvatureTerms] | None:
        if not self._compiled.has_terms or (matrix == "gauss_newton" and not self.likelihood):
            return None  # the positive part, which can be had of finite numbers alone
        told, blocks, *terms = self._compiled.call("losses_and_hessian_terms", batch, self._weights_in(matrix, batch))
        return *self._with_regularizer(told, blocks, self.layout(batch.inputs)), CurvatureTerms(batch.ids, *terms)

    def _weights_in(self, matrix: Matrix, batch: ExampleBatch) -> tf.Tensor:
        return self.example_weights(batch) if matrix == "hessian" else self.curvature_weights(batch)

    def _span(self, rows: slice | None) -> tf.Tensor:
        return tf.constant([0, self.size] if rows is None else [rows.start, rows.stop], tf.int32)

    def hessian_vector_products(self, batch: ExampleBatch, vectors: Float64Matrix) -> Float64Matrix:
        self.check_second_derivatives()
        return self._compiled.products("hessian_vector_products", batch, self.example_weights(batch), vectors)

    def gauss_newton_products(self, batch: ExampleBatch, vectors: Float64Matrix) -> Float64Matrix:
        return self._compiled.products("gauss_newton_products", batch, self.curvature_weights(batch), vectors)

    def regularizer_value(self) -> float:
        return self._weight_regularizer.value()

    def regularizer_gradient(self) -> Float64Vector:
        return self._weight_regularizer.gradient()

    def regularizer_products(self, vectors: Float64Matrix) -> Float64Matrix:
        return self._weight_regularizer.products(vectors)

    def block_penalties(self) -> list[float]:
        return self._weight_regularizer.mean_second_derivatives(self.layout())

    def add_regularizer_hessian(self, matrix: Float64Matrix) -> None:
        self._weight_regularizer.add_hessian(matrix)
