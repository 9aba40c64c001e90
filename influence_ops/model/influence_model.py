"""The model whose predictions are explained: its watched weights, its loss and their derivatives."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import logging
import threading
from collections.abc import Callable
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from beam_influence.influence_ops.model.autodiff import AutodiffDerivatives
from beam_influence.influence_ops.model.exact_moments import exact_moments
from beam_influence.influence_ops.model.example_loss import ExampleLoss, Targets
from beam_influence.influence_ops.model.gradients.blocks import Block, Gradients, Layout
from beam_influence.influence_ops.model.gradients.discover import declared_examples
from beam_influence.influence_ops.model.guard import Agreement, check_agreement
from beam_influence.influence_ops.model.heads import Heads
from beam_influence.influence_ops.model.linear_head import LinearHeadDerivatives, is_linear_head
from beam_influence.influence_ops.model.losses import resolve_loss
from beam_influence.influence_ops.model.network import Network, Precision, declared_specs, feed, open_network, to_numpy
from beam_influence.influence_ops.model.position_losses import weights_argument
from beam_influence.influence_ops.model.weights import LAST_WITH_WEIGHTS, StartLayer, watched_variables
from beam_influence.influence_ops.reading.example_batch import ExampleBatch
from beam_influence.influence_ops.reading.features import ModelInput

Regularizer = Literal["curvature", "loss"]
Derivatives = LinearHeadDerivatives | AutodiffDerivatives

_VECTORS_AT_ONCE = 32  # products in one vectorised pass: bounds memory to as many copies of the activations
_TRACING = threading.RLock()  # tracing puts recorders into layers that all threads share; compiled functions only read
_SECOND_DERIVATIVES = ("hessian_sum", "hessian_vector_products")


class InfluenceModel:
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
        `float64` insists; `native` keeps the model's own dtype.
      process_batch_for_loss_fn: for the calculators over `tf.data`: an element of a dataset -> (inputs, labels, weights or None).

    Raises:
      ValueError: an option is wrong or nothing is watched; the message names the value and the mend.
    """

    parts: tuple[InfluenceModel, ...] = ()
    """The models that this one is made of, where it is several (`Checkpoints`)."""
    agreement: Agreement | None = None
    """What `check` found."""

    def __init__(
        self,
        model: Any,
        start_layer: StartLayer = LAST_WITH_WEIGHTS,
        last_layer: int | str | None = None,
        loss_function: Any = None,
        weights: str | None = None,
        *,
        weight_decay: float = 0.0,
        regularizer: Regularizer = "curvature",
        precision: Precision = "auto",
        process_batch_for_loss_fn: Callable[[Any], tuple[Any, Any, Any]] | None = None,
    ):
        if not np.isfinite(weight_decay) or weight_decay < 0:
            raise ValueError(f"weight_decay={weight_decay!r} must be a number of at least 0")
        if regularizer not in ("curvature", "loss"):
            raise ValueError(f"regularizer={regularizer!r} must be 'curvature' or 'loss'")
        if precision not in ("auto", "float64", "native"):
            raise ValueError(f"precision={precision!r} must be 'auto', 'float64' or 'native'")
        self.process_batch_for_loss_fn = process_batch_for_loss_fn
        self.training_loss = resolve_loss(loss_function, model)
        self.loss_name = self.training_loss.name
        self._precision: Precision = precision
        self._watched = (weights, start_layer, last_layer)
        self.weight_decay = float(weight_decay)
        self.regularizer: Regularizer = regularizer
        self._use(open_network(model, precision))
        rounds = self._made.loss.heads.rounds if self._made is not None and self.network.is_copy else None
        if rounds is not None and precision == "float64":
            raise ValueError(
                f"the model rounds what it has computed ({rounds}), which in float64 may fall to another side than in its own dtype; use "
                "precision 'native'"
            )
        if rounds is not None:
            self._use(open_network(model, "native"))

    def _use(self, network: Network) -> None:
        """Computes on `network` from now on."""
        self.network = network
        self.model = network.model
        self.dtype = network.dtype
        self.variables = watched_variables(self.model, *self._watched)
        self.size = sum(int(np.prod(variable.shape)) for variable in self.variables)
        self.total_size = sum(int(np.prod(variable.shape)) for variable in self.model.trainable_variables)
        self._functions: dict[str, Any] = {}
        self._layout: Layout | None = None
        self._regularizer_gradient: np.ndarray | None = None
        self._made: Derivatives | None = None
        if network.inputs:
            self._derive(declared_specs(self.model, self.dtype))

    def _derive(self, specs: Any) -> Derivatives:
        """The derivatives, made once: the network is traced on inputs of `specs` to see how it ends."""
        if self._made is None:
            heads = Heads.find(self.model, specs)
            loss = ExampleLoss(self.training_loss, heads, tuple(getattr(self.model, "output_names", None) or ()))
            if is_linear_head(self.model, self.variables, heads):
                self._made = LinearHeadDerivatives(self.model, loss)
            else:
                self._made = AutodiffDerivatives(self.model, loss, self.variables)
        return self._made

    @property
    def _derivatives(self) -> Derivatives:
        if self._made is None:
            raise ValueError("the model declares no inputs and has seen no example yet; evaluate a batch first")
        return self._made

    @property
    def loss(self) -> ExampleLoss:
        """What the loss of an example is; known once the model declares its inputs or has seen an example."""
        return self._derivatives.loss

    @property
    def likelihood(self) -> Literal["categorical", "bernoulli"] | None:
        """See `ExampleLoss`."""
        return self.loss.likelihood

    @property
    def is_linear(self) -> bool:
        """Whether the watched weights are a final Dense layer, whose derivatives have a closed form."""
        return isinstance(self._made, LinearHeadDerivatives)

    @property
    def _loss_takes_weights(self) -> bool:
        return weights_argument(self.training_loss.own_function) is not None

    def check(self, batch: ExampleBatch) -> Agreement:
        """Compares everything that is computed here with the user's own model and loss, on the first examples of `batch`; see `guard`.

        `evaluate` does so with the first batch of a model that was not checked yet. With precision `auto`, a float64 copy that does not
        agree, or can't be evaluated, gives way to the model itself.

        Raises:
          ValueError: something differs; the message says what, by how much, and the mend.
        """
        with _TRACING:  # it calls the user's model, in which another thread may have put its recorders
            try:
                found = check_agreement(self, batch)
            except Exception as error:
                if self._precision != "auto" or not self.network.is_copy:
                    raise
                reason = str(error).strip().splitlines() or [type(error).__name__]
                self._use(open_network(self.network.original, "native"))
                logging.getLogger(__name__).warning("computed in %s, the model's own precision: %s", self.dtype, reason[-1].strip())
                found = check_agreement(self, batch)
        if found.examples:  # else none of them could be evaluated
            self.agreement = found
        return found

    def with_weight_decay(self, weight_decay: float) -> InfluenceModel:
        """The same model under another `weight_decay`."""
        if not np.isfinite(weight_decay) or weight_decay < 0:
            raise ValueError(f"weight_decay={weight_decay!r} must be a number of at least 0")
        other = copy.copy(self)
        other.weight_decay = float(weight_decay)
        other._regularizer_gradient = None
        return other

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

    @property
    def weight_names(self) -> list[str]:
        """The path of each watched variable, in the order of θ."""
        return [variable.path for variable in self.variables]

    def parameters(self) -> np.ndarray:
        """θ: [P] float64."""
        return np.concatenate([to_numpy(variable.value).ravel() for variable in self.variables])

    def fingerprint(self) -> str:
        """SHA-256 over the loss, the regulariser, the layers and all weights (watched ones marked): what a curvature fits."""
        digest = hashlib.sha256(f"{self.loss_name}|{self.weight_decay!r}|{self.regularizer}".encode())
        with _TRACING:  # else another thread's recorders may stand in the place of activations
            digest.update(json.dumps(_layers(self.model), sort_keys=True).encode())
        watched = {id(variable) for variable in self.variables}
        for variable in self.model.variables:
            if "seed_generator" in variable.path:  # Dropout's state: not part of the inference model
                continue
            value = np.ascontiguousarray(to_numpy(variable.value))  # one fingerprint for every precision
            penalty = _regularizer_name(getattr(variable, "regularizer", None)) if id(variable) in watched else ""
            digest.update(f"{value.shape}|{id(variable) in watched}|{penalty}".encode())
            digest.update(value.tobytes())
        return digest.hexdigest()

    # Per-example quantities. Each takes an ExampleBatch of B examples.

    def layout(self, inputs: Any = None) -> Layout:
        """How ∇ℓ falls into blocks, a layer's weights each.

        Args:
          inputs: examples, for a model that declares no inputs; used the first time.
        """
        if self._layout is None:
            with _TRACING:
                if self._layout is None:
                    self._layout = self._discover(inputs)
        return self._layout

    def _discover(self, inputs: Any) -> Layout:
        declared = declared_examples(self.model)
        examples = declared if declared is not None else inputs
        if examples is None:
            raise ValueError("the model declares no inputs and has seen no example yet; evaluate a batch first")
        examples = feed(self.model, examples, self.dtype)
        return self._derive(tf.nest.map_structure(any_batch, examples)).discover(examples, self._penalty)

    @property
    def weights_without_factors(self) -> list[str]:
        """The watched weights whose per-example gradients are built one by one, since no rule knows how their layer uses them."""
        self.layout()
        return self._derivatives.without_factors

    def losses_and_gradients(self, batch: ExampleBatch) -> tuple[np.ndarray, Gradients]:
        """ℓ(z_i): [B] float64, and ∇ℓ(z_i) as blocks on the device, in the computation's dtype."""
        losses, blocks, layout = self.plain_losses_and_blocks(batch)
        if self.regularizer == "curvature":
            return losses, Gradients(layout, blocks)
        return losses + self.regularizer_value(), Gradients(layout, blocks, tf.constant(self.regularizer_gradient(), dtype=self.dtype))

    def plain_losses_and_blocks(self, batch: ExampleBatch) -> tuple[np.ndarray, tuple[Block, ...], Layout]:
        """ℓ(z_i) [B] and ∇ℓ(z_i) as blocks, whatever `regularizer` says."""
        layout = self.layout(batch.inputs)
        losses, blocks = self._call("losses_and_blocks", batch, self.example_weights(batch))
        return to_numpy(losses), tuple(blocks), layout

    def loss_blocks(self, batch: ExampleBatch) -> tuple[Block, ...]:
        """∇ℓ(z_i) without the examples' weights and the regulariser, as blocks."""
        self.layout(batch.inputs)
        return tuple(self._call("losses_and_blocks", batch, tf.ones(len(batch), dtype=self.dtype))[1])

    def output_blocks(self, batch: ExampleBatch, directions: tf.Tensor) -> tuple[Block, ...]:
        """J_iᵀ u_i as blocks, for `directions` u [B, C] along the outputs before their activation."""
        self.layout(batch.inputs)
        return tuple(self._call_inputs("output_blocks", batch, directions))

    def packed_outputs(self, batch: ExampleBatch) -> tf.Tensor:
        """The outputs before their activation, all in one tensor: [B, C], or the only output's shape."""
        return self._call_inputs("packed_outputs", batch)

    def position_weights(self, batch: ExampleBatch) -> tf.Tensor:
        """What each position's loss is multiplied by in its example's, without the example's weight: [B, ...]; where `likelihood` is."""
        return self._call("position_weights", batch)

    def output_curvature_root(self, batch: ExampleBatch) -> tf.Tensor:
        """R: [B, C, C] with R Rᵀ the positive part of ∂²ℓ/∂z²."""
        return self._call("output_curvature_root", batch)

    def losses(self, batch: ExampleBatch) -> np.ndarray:
        """ℓ(z_i): [B] float64."""
        self.layout(batch.inputs)
        losses = self._call("losses", batch, self.example_weights(batch))
        offset = self.regularizer_value() if self.regularizer == "loss" else 0.0
        return to_numpy(losses) + offset

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

    def gauss_newton_factors(self, batch: ExampleBatch) -> tf.Tensor:
        """F: [B, C, P] with F_iᵀ F_i the Gauss–Newton matrix of example i."""
        factors = self._call("gauss_newton_factors", batch)
        return factors * tf.sqrt(self.curvature_weights(batch))[:, None, None]

    # Sums over the batch, without the regulariser.

    def check_second_derivatives(self) -> None:
        """Refuses a SavedModel whose second derivatives may be wrong.

        Raises:
          ValueError: its graph stops gradients, as that of a normalisation layer does; see `exact_moments`.
        """
        stopped = getattr(self.model, "stopped_gradients", 0)
        if stopped:
            raise ValueError(
                f"the SavedModel's graph has {stopped} StopGradient operations (normalisation layers have them), through which "
                "its exact Hessian is wrong; use --curvature gauss_newton, or the .keras file"
            )

    def hessian_sum(self, batch: ExampleBatch) -> np.ndarray:
        """Σ_i ∇²ℓ(z_i): [P, P] float64."""
        self.check_second_derivatives()
        return to_numpy(self._call("hessian_sum", batch, self.example_weights(batch)))

    def gauss_newton_sum(self, batch: ExampleBatch) -> np.ndarray:
        """Σ_i J_iᵀ (∂²ℓ/∂z²) J_i: [P, P] float64."""
        return to_numpy(self._call("gauss_newton_sum", batch, self.curvature_weights(batch)))

    def hessian_vector_products(self, batch: ExampleBatch, vectors: np.ndarray) -> np.ndarray:
        """(Σ_i ∇²ℓ(z_i)) v for each row v of `vectors` [R, P]: [R, P] float64."""
        self.check_second_derivatives()
        return self._products("hessian_vector_products", batch, vectors)

    def gauss_newton_products(self, batch: ExampleBatch, vectors: np.ndarray) -> np.ndarray:
        """(Σ_i J_iᵀ (∂²ℓ/∂z²) J_i) v for each row v of `vectors` [R, P]: [R, P] float64."""
        return self._products("gauss_newton_products", batch, vectors)

    def _products(self, name: str, batch: ExampleBatch, vectors: np.ndarray) -> np.ndarray:
        weights = self.curvature_weights(batch) if name == "gauss_newton_products" else self.example_weights(batch)
        products = np.empty((len(vectors), self.size))
        for start in range(0, len(vectors), _VECTORS_AT_ONCE):
            rows = slice(start, start + _VECTORS_AT_ONCE)
            directions = tf.constant(vectors[rows], dtype=self.dtype)
            products[rows] = to_numpy(self._call(name, batch, weights, directions))
        return products

    # The regulariser R(θ): the watched variables' own Keras regularisers and weight_decay.

    def regularizer_value(self) -> float:
        """R(θ)."""
        own = sum(
            float(variable.regularizer(variable.value)) for variable in self.variables if variable.regularizer
        )
        return own + 0.5 * self.weight_decay * float(np.sum(self.parameters() ** 2))

    def regularizer_gradient(self) -> np.ndarray:
        """∇R(θ): [P] float64."""
        if self._regularizer_gradient is None:
            parts = []
            for variable in self.variables:
                value = tf.convert_to_tensor(variable.value)
                gradient = tf.zeros_like(value)
                if variable.regularizer:
                    with tf.GradientTape() as tape:
                        tape.watch(value)
                        penalty = variable.regularizer(value)
                    gradient = tape.gradient(penalty, value)
                parts.append(to_numpy(gradient).ravel())
            self._regularizer_gradient = np.concatenate(parts) + self.weight_decay * self.parameters()
        return self._regularizer_gradient

    def regularizer_products(self, vectors: np.ndarray) -> np.ndarray:
        """∇²R(θ) v for each row v of `vectors` [R, P]: [R, P]."""
        products = self.weight_decay * vectors
        start = 0
        for variable in self.variables:
            block = slice(start, start + int(np.prod(variable.shape)))
            known = _second_derivative(variable.regularizer)
            products[:, block] += known * vectors[:, block] if known is not None else vectors[:, block] @ _penalty_hessian(variable)
            start = block.stop
        return products

    def block_penalties(self) -> list[float]:
        """The regulariser's mean second derivative over each block of `layout`; exact where the penalties are Keras's own."""
        at = dict(zip(np.cumsum([0, *(int(np.prod(v.shape)) for v in self.variables)]).tolist(), self.variables, strict=False))
        found = []
        for block in self.layout().blocks:
            total = 0.0
            for piece in block.pieces:
                known = self._penalty(at[piece.start])
                total += known * piece.size if known is not None else float(np.trace(_penalty_hessian(at[piece.start])))
            found.append(self.weight_decay + total / block.size)
        return found

    def _penalty(self, variable: Any) -> float | None:
        return _second_derivative(getattr(variable, "regularizer", None))

    def add_regularizer_hessian(self, matrix: np.ndarray) -> None:
        """Adds ∇²R(θ) to `matrix` [P, P] in place."""
        start = 0
        for variable in self.variables:
            count = int(np.prod(variable.shape))
            block = slice(start, start + count)
            known = _second_derivative(variable.regularizer)
            if known is not None:
                matrix[np.arange(start, start + count), np.arange(start, start + count)] += known
            else:
                matrix[block, block] += _penalty_hessian(variable)
            start += count
        matrix[np.arange(self.size), np.arange(self.size)] += self.weight_decay

    def example_weights(self, batch: ExampleBatch) -> tf.Tensor:
        """The weight of each example: [B], 1 where there are none."""
        if batch.weights is None or batch.weights.ndim > 1 or self._loss_takes_weights:
            return tf.ones(len(batch), dtype=self.dtype)
        return tf.constant(batch.weights, dtype=self.dtype)

    def _call(self, name: str, batch: ExampleBatch, *extra: tf.Tensor) -> Any:
        """A method of the derivatives, of inputs and targets."""
        targets: Targets = {"labels": tf.nest.map_structure(tf.convert_to_tensor, batch.labels)}
        if batch.weights is not None and (batch.weights.ndim > 1 or self._loss_takes_weights):
            targets["weights"] = tf.constant(batch.weights, dtype=self.dtype)
        return self._call_inputs(name, batch, targets, *extra)

    def _call_inputs(self, name: str, batch: ExampleBatch, *extra: Any) -> Any:
        """A method of the derivatives as one `tf.function`, traced once for any batch size."""
        arguments = (feed(self.model, batch.inputs, self.dtype), *extra)
        weighted = bool(extra) and isinstance(extra[0], dict) and "weights" in extra[0]
        key = f"{name} of weighted positions" if weighted else name
        if key not in self._functions:
            with _TRACING:
                if key not in self._functions:
                    self._functions[key] = self._compiled(name, tf.nest.map_structure(any_batch, arguments))
        return self._functions[key](*arguments)

    def _compiled(self, name: str, signature: Any) -> Any:
        function = tf.function(getattr(self._derive(signature[0]), name), input_signature=signature)
        # The concrete function: a tf.function that is called with a wrong shape never releases its lock.
        with exact_moments() if name in _SECOND_DERIVATIVES else contextlib.nullcontext():
            return function.get_concrete_function()


def any_batch(tensor: tf.Tensor) -> tf.TensorSpec:
    """What a tensor is but for the number of its examples."""
    return tf.TensorSpec([None, *tensor.shape[1:]], tensor.dtype)


def _regularizer_name(regularizer: Any) -> str:
    """The class or function and its settings, the same from run to run."""
    if regularizer is None:
        return ""
    if not isinstance(regularizer, keras.regularizers.Regularizer):
        return getattr(regularizer, "__qualname__", type(regularizer).__qualname__)
    try:
        settings = regularizer.get_config()
    except NotImplementedError:  # Keras's default
        settings = {}
    return f"{type(regularizer).__qualname__}({', '.join(f'{key}={value}' for key, value in sorted(settings.items()))})"


def _layers(model: Any) -> list[list[Any]]:
    """Each layer's kind and plain settings (activation, strides, …), without names and dtypes: one list for every precision."""
    found = []
    for layer in getattr(model, "layers", []):
        try:
            config = layer.get_config()
        except NotImplementedError:  # a layer of the user's without a configuration: its weights must tell
            config = {}
        plain = {key: value for key, value in config.items() if key not in ("name", "dtype") and isinstance(value, (bool, int, float, str))}
        found.append([type(layer).__name__, plain, _layers(layer)])
    return found


def _second_derivative(regularizer: Any) -> float | None:
    """The constant second derivative of Keras's own elementwise penalties; None for any other."""
    if regularizer is None or type(regularizer) is keras.regularizers.L1:
        return 0.0
    if type(regularizer) in (keras.regularizers.L2, keras.regularizers.L1L2):
        return 2.0 * float(regularizer.l2)
    return None


def _penalty_hessian(variable: Any) -> np.ndarray:
    value = tf.convert_to_tensor(variable.value)
    with tf.GradientTape() as outer:
        outer.watch(value)
        with tf.GradientTape() as inner:
            inner.watch(value)
            penalty = variable.regularizer(value)
        gradient = tf.convert_to_tensor(inner.gradient(penalty, value, unconnected_gradients=tf.UnconnectedGradients.ZERO))
    count = int(tf.size(value))
    # A penalty may be linear: its gradient is a constant.
    return to_numpy(tf.reshape(outer.jacobian(gradient, value, unconnected_gradients=tf.UnconnectedGradients.ZERO), [count, count]))
