"""What is asked of a model whose predictions are explained, be it one network or several checkpoints of one."""

from __future__ import annotations

import abc
import functools
from typing import TYPE_CHECKING, Any, Literal

import keras
import numpy as np
import tensorflow as tf

from beam_influence.influence_ops.model.curvature_terms import CurvatureTerms
from beam_influence.influence_ops.model.gradients.blocks import Gradients, Layout
from beam_influence.influence_ops.model.gradients.placed import PlacedGradients
from beam_influence.influence_ops.model.guard import Agreement
from beam_influence.influence_ops.model.losses import TrainingLoss
from beam_influence.influence_ops.model.network import Network
from beam_influence.influence_ops.reading.example_batch import ExampleBatch, Inputs
from beam_influence.influence_ops.reading.features import ModelInput
from beam_influence.influence_ops.settings import Matrix
from beam_influence.influence_ops.types import Float64Matrix, Float64Vector, ProcessBatch

if TYPE_CHECKING:
    from beam_influence.influence_ops.model.influence_model import InfluenceModel

Regularizer = Literal["curvature", "loss"]
"""Where the regulariser stands; see `InfluenceModel`."""


class ExplainedModel(abc.ABC):
    """Losses, gradients and curvature products by the watched weights θ, P numbers: all that curvatures, scores and jobs use of a model.

    `InfluenceModel` is one network and its loss; `CheckpointSum` is several. The first has the name and the constructor that users of
    Influenciae know (docs/migrating.md), which is why what both have in common is called otherwise.

    Attributes:
      model: the network that is computed on, a `keras.Model` or a `SavedModelNetwork`; of checkpoints, the last one.
      network: the same, with the user's model beside it.
      dtype: what is computed in.
      query_dtype: in which solved test points are held on the device while training examples are scored: `dtype`, or bfloat16.
      variables: the watched weights, in the order of θ.
      size: P.
      total_size: how many trainable weights there are.
      training_loss, loss_name: the loss, and a name for it that is the same from run to run.
      weight_decay, regularizer, process_batch_for_loss_fn: see `InfluenceModel`.
      agreement: what `check` found; None before.
      batches_evaluated: how many batches of more than one example `evaluate` was given; see `guard`.
    """

    model: Any
    network: Network
    dtype: str
    query_dtype: str
    variables: list[keras.Variable]
    size: int
    total_size: int
    training_loss: TrainingLoss
    weight_decay: float
    regularizer: Regularizer
    process_batch_for_loss_fn: ProcessBatch | None
    agreement: Agreement | None = None
    batches_evaluated: int = 0

    @property
    @abc.abstractmethod
    def parts(self) -> tuple[InfluenceModel, ...]:
        """The networks that this model is made of: itself, or each checkpoint. θ is theirs, one after the other."""

    @property
    def loss_name(self) -> str:
        """The loss's name."""
        return self.training_loss.name

    @property
    def inputs(self) -> tuple[ModelInput, ...]:
        """The model's inputs, in the dtypes it was made with.

        Raises:
          ValueError: it declares none.
        """
        if not self.network.inputs:
            raise ValueError(
                "the model declares no inputs (a subclassed model); wrap it: keras.Model(inputs, model(inputs)) with "
                "inputs = keras.Input(shape, name=...)"
            )
        return self.network.inputs

    @abc.abstractmethod
    def check(self, batch: ExampleBatch) -> Agreement:
        """Compares everything that is computed here with the user's own model and loss, on the first examples of `batch`; see `guard`.

        `evaluate` does so with the first batch of a model that was not checked yet. With precision `auto`, a float64 copy that does not
        agree, or can't be evaluated, gives way to the model itself.

        Raises:
          ValueError: something differs; the message says what, by how much, and the mend.
        """

    @abc.abstractmethod
    def with_weight_decay(self, weight_decay: float) -> ExplainedModel:
        """The same model under another `weight_decay`.

        Raises:
          ValueError: it is no number of at least 0.
        """

    @property
    @abc.abstractmethod
    def weight_names(self) -> list[str]:
        """The path of each watched variable, in the order of θ."""

    @property
    @abc.abstractmethod
    def weights_without_factors(self) -> list[str]:
        """The watched weights whose per-example gradients are built one by one, since no rule knows how their layer uses them."""

    @abc.abstractmethod
    def parameters(self) -> Float64Vector:
        """θ: [P] float64."""

    @abc.abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 over the loss, the regulariser, the layers and all weights (watched ones marked): what a curvature fits."""

    # Per-example quantities. Each takes an ExampleBatch of B examples.

    @abc.abstractmethod
    def layout(self, inputs: Inputs | None = None) -> Layout:
        """How ∇ℓ falls into blocks, a layer's weights each.

        Args:
          inputs: examples, for a model that declares no inputs; used the first time.
        """

    @abc.abstractmethod
    def losses_and_gradients(self, batch: ExampleBatch) -> tuple[Float64Vector, Gradients]:
        """ℓ(z_i): [B] float64, and ∇ℓ(z_i) as blocks on the device, in the computation's dtype."""

    def placed_gradients(self, batch: ExampleBatch) -> PlacedGradients:
        """∇ℓ(z_i) with every position of the example's sequence by itself; without the regulariser where that stands in the loss.

        Raises:
          ValueError: the watched layers follow no sequence, or several; or these are several checkpoints.
        """
        raise ValueError("influence by position is of one network, not of several checkpoints")

    @abc.abstractmethod
    def losses(self, batch: ExampleBatch) -> Float64Vector:
        """ℓ(z_i): [B] float64."""

    @abc.abstractmethod
    def gauss_newton_factors(self, batch: ExampleBatch) -> tf.Tensor:
        """F: [B, C, P] with F_iᵀ F_i the Gauss–Newton matrix of example i."""

    def example_weights(self, batch: ExampleBatch) -> tf.Tensor:
        """The weight of each example: [B], 1 where there are none."""
        if batch.weights is None or batch.weights.ndim > 1 or self.training_loss.takes_weights:
            return _ones(len(batch), self.dtype)
        return tf.constant(batch.weights, dtype=self.dtype)

    def curvature_weights(self, batch: ExampleBatch) -> tf.Tensor:
        """The weight of each example in a curvature that is never negative: [B].

        Raises:
          ValueError: one is negative; its example takes curvature away.
        """
        if batch.weights is not None and (batch.weights < 0).any():
            row = int(np.flatnonzero((batch.weights < 0).reshape(len(batch), -1).any(axis=1))[0])
            raise ValueError(
                f"example {batch.ids[row]} has the weight {np.min(batch.weights[row]):.6g}: a negative one has no part in a Gauss–Newton "
                "or Fisher matrix; use --curvature exact, with a damping that makes it positive, or leave such examples out"
            )
        return self.example_weights(batch)

    # Sums over the batch, without the regulariser.

    @abc.abstractmethod
    def check_second_derivatives(self) -> None:
        """Refuses a SavedModel whose second derivatives may be wrong.

        Raises:
          ValueError: its graph stops gradients, as that of a normalisation layer does; see `exact_moments`.
        """

    @abc.abstractmethod
    def hessian_sum(self, batch: ExampleBatch, rows: slice | None = None) -> Float64Matrix:
        """Σ_i ∇²ℓ(z_i): [P, P] float64; of some rows alone, from the diagonal on: [R, P − rows.start]."""

    @abc.abstractmethod
    def gauss_newton_sum(self, batch: ExampleBatch, rows: slice | None = None) -> Float64Matrix:
        """Σ_i J_iᵀ (∂²ℓ/∂z²) J_i: [P, P] float64, or some rows, as `hessian_sum`."""

    def curvature_terms(self, batch: ExampleBatch, matrix: Matrix) -> CurvatureTerms | None:
        """What `hessian_sum` or `gauss_newton_sum` adds up, where the watched weights are a final Dense layer's, in float64; else None."""
        return None

    def losses_gradients_and_terms(self, batch: ExampleBatch, matrix: Matrix) -> tuple[Float64Vector, Gradients, CurvatureTerms] | None:
        """`losses_and_gradients` and `curvature_terms` by one pass forward; None where that is not how they are found."""
        return None

    @abc.abstractmethod
    def hessian_vector_products(self, batch: ExampleBatch, vectors: Float64Matrix) -> Float64Matrix:
        """(Σ_i ∇²ℓ(z_i)) v for each row v of `vectors` [R, P]: [R, P] float64."""

    @abc.abstractmethod
    def gauss_newton_products(self, batch: ExampleBatch, vectors: Float64Matrix) -> Float64Matrix:
        """(Σ_i J_iᵀ (∂²ℓ/∂z²) J_i) v for each row v of `vectors` [R, P]: [R, P] float64."""

    # The regulariser R(θ): the watched variables' own Keras regularisers and weight_decay.

    @abc.abstractmethod
    def regularizer_value(self) -> float:
        """R(θ)."""

    @abc.abstractmethod
    def regularizer_gradient(self) -> Float64Vector:
        """∇R(θ): [P] float64."""

    @abc.abstractmethod
    def regularizer_products(self, vectors: Float64Matrix) -> Float64Matrix:
        """∇²R(θ) v for each row v of `vectors` [R, P]: [R, P]."""

    @abc.abstractmethod
    def block_penalties(self) -> list[float]:
        """The regulariser's mean second derivative over each block of `layout`; exact where the penalties are Keras's own."""

    @abc.abstractmethod
    def add_regularizer_hessian(self, matrix: Float64Matrix) -> None:
        """Adds ∇²R(θ) to `matrix` [P, P] in place."""


@functools.lru_cache(maxsize=16)  # batches have few sizes, and each operation waits for the thread that reads
def _ones(count: int, dtype: str) -> tf.Tensor:
    with tf.init_scope():
        return tf.ones(count, dtype=dtype)
