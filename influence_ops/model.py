"""The model whose predictions are explained: its watched weights, its loss and their derivatives."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from influence_ops.autodiff import AutodiffDerivatives
from influence_ops.exact_moments import exact_moments
from influence_ops.example_batch import ExampleBatch
from influence_ops.features import ModelInput
from influence_ops.gradients.blocks import Block, Gradients, Layout, scaled
from influence_ops.gradients.discover import declared_examples
from influence_ops.linear_head import LinearHeadDerivatives, is_linear_head
from influence_ops.losses import likelihood, per_example, resolve_loss
from influence_ops.network import Precision, copy_network, feed, to_numpy
from influence_ops.weights import LAST_WITH_WEIGHTS, StartLayer, watched_variables

Regularizer = Literal["curvature", "loss"]

_VECTORS_AT_ONCE = 32  # products in one vectorised pass: bounds memory to as many copies of the activations
_SECOND_DERIVATIVES = ("hessian_sum", "hessian_vector_products")


class InfluenceModel:
    """A Keras model, the part of it whose weights are watched, and a per-example loss.

    The weights are copied when this is made; the model is evaluated in inference mode (Dropout off,
    BatchNorm with its moving statistics). With sample weights, ℓ(z_i) stands for w_i ℓ(z_i) everywhere.

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

    Raises:
      ValueError: an option is wrong or nothing is watched; the message names the value and the mend.
    """

    parts: tuple[InfluenceModel, ...] = ()
    """The models that this one is made of, where it is several (`Checkpoints`)."""

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
    ):
        if not np.isfinite(weight_decay) or weight_decay < 0:
            raise ValueError(f"weight_decay={weight_decay!r} must be a number of at least 0")
        if regularizer not in ("curvature", "loss"):
            raise ValueError(f"regularizer={regularizer!r} must be 'curvature' or 'loss'")
        if precision not in ("auto", "float64", "native"):
            raise ValueError(f"precision={precision!r} must be 'auto', 'float64' or 'native'")
        loss, self.loss_name = resolve_loss(loss_function, model)
        network = copy_network(model, precision)
        self.model = network.model
        self.dtype = network.dtype
        self._inputs = network.inputs
        self.weight_decay = float(weight_decay)
        self.regularizer: Regularizer = regularizer
        self.variables = watched_variables(self.model, weights, start_layer, last_layer)
        self.size = sum(int(np.prod(variable.shape)) for variable in self.variables)
        self.total_size = sum(int(np.prod(variable.shape)) for variable in self.model.trainable_variables)
        self._activation = network.activation
        loss_of_outputs = per_example(loss, network.activation)
        self.likelihood = likelihood(loss_of_outputs, loss, network.activation)
        self.is_linear = is_linear_head(self.model, self.variables)
        self._derivatives: LinearHeadDerivatives | AutodiffDerivatives = (
            LinearHeadDerivatives(self.model, loss_of_outputs)
            if self.is_linear
            else AutodiffDerivatives(self.model, loss_of_outputs, self.variables)
        )
        self._functions: dict[str, Any] = {}
        self._layout: Layout | None = None
        self._regularizer_gradient: np.ndarray | None = None

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
        if not self._inputs:
            raise ValueError(
                "the model declares no inputs (a subclassed model); wrap it: keras.Model(inputs, model(inputs)) with "
                "inputs = keras.Input(shape, name=...)"
            )
        return self._inputs

    @property
    def weight_names(self) -> list[str]:
        """The path of each watched variable, in the order of θ."""
        return [variable.path for variable in self.variables]

    def parameters(self) -> np.ndarray:
        """θ: [P] float64."""
        return np.concatenate([to_numpy(variable.value).ravel() for variable in self.variables])

    def fingerprint(self) -> str:
        """SHA-256 over the loss, the regulariser, the layers and all weights (watched ones marked): what a curvature fits."""
        digest = hashlib.sha256(f"{self.loss_name}|{self.weight_decay!r}|{self.regularizer}|{self._activation}".encode())
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
            declared = declared_examples(self.model)
            examples = declared if declared is not None else inputs
            if examples is None:
                raise ValueError("the model declares no inputs and has seen no example yet; evaluate a batch first")
            self._layout = self._derivatives.discover(feed(self.model, examples, self.dtype), self._penalty)
        return self._layout

    @property
    def weights_without_factors(self) -> list[str]:
        """The watched weights whose per-example gradients are built one by one, since no rule knows how their layer uses them."""
        self.layout()
        return self._derivatives.without_factors

    def losses_and_gradients(self, batch: ExampleBatch) -> tuple[np.ndarray, Gradients]:
        """ℓ(z_i): [B] float64, and ∇ℓ(z_i) as blocks on the device, in the computation's dtype."""
        layout = self.layout(batch.inputs)
        losses, blocks = self._call("losses_and_blocks", batch)
        if batch.weights is not None:
            weights = self._weights(batch)
            losses, blocks = losses * weights, scaled(blocks, weights)
        offset = None
        if self.regularizer == "loss":
            losses = losses + self.regularizer_value()
            offset = tf.constant(self.regularizer_gradient(), dtype=self.dtype)
        return to_numpy(losses), Gradients(layout, tuple(blocks), offset)

    def loss_blocks(self, batch: ExampleBatch) -> tuple[Block, ...]:
        """∇ℓ(z_i) without the examples' weights and the regulariser, as blocks."""
        self.layout(batch.inputs)
        return tuple(self._call("losses_and_blocks", batch)[1])

    def output_blocks(self, batch: ExampleBatch, directions: tf.Tensor) -> tuple[Block, ...]:
        """J_iᵀ u_i as blocks, for `directions` u [B, C] along the outputs before their activation."""
        self.layout(batch.inputs)
        return tuple(self._call_inputs("output_blocks", batch, directions))

    def packed_outputs(self, batch: ExampleBatch) -> tf.Tensor:
        """The outputs before their activation, all in one tensor: [B, C], or the only output's shape."""
        return self._call_inputs("packed_outputs", batch)

    def output_curvature_root(self, batch: ExampleBatch) -> tf.Tensor:
        """R: [B, C, C] with R Rᵀ the positive part of ∂²ℓ/∂z²."""
        return self._call("output_curvature_root", batch)

    def losses(self, batch: ExampleBatch) -> np.ndarray:
        """ℓ(z_i): [B] float64."""
        losses = self._call("losses", batch) * self._weights(batch)
        offset = self.regularizer_value() if self.regularizer == "loss" else 0.0
        return to_numpy(losses) + offset

    def gauss_newton_factors(self, batch: ExampleBatch) -> tf.Tensor:
        """F: [B, C, P] with F_iᵀ F_i the Gauss–Newton matrix of example i."""
        factors = self._call("gauss_newton_factors", batch)
        return factors * tf.sqrt(self._weights(batch))[:, None, None] if batch.weights is not None else factors

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
        return to_numpy(self._call("hessian_sum", batch, self._weights(batch)))

    def gauss_newton_sum(self, batch: ExampleBatch) -> np.ndarray:
        """Σ_i J_iᵀ (∂²ℓ/∂z²) J_i: [P, P] float64."""
        return to_numpy(self._call("gauss_newton_sum", batch, self._weights(batch)))

    def hessian_vector_products(self, batch: ExampleBatch, vectors: np.ndarray) -> np.ndarray:
        """(Σ_i ∇²ℓ(z_i)) v for each row v of `vectors` [R, P]: [R, P] float64."""
        self.check_second_derivatives()
        return self._products("hessian_vector_products", batch, vectors)

    def gauss_newton_products(self, batch: ExampleBatch, vectors: np.ndarray) -> np.ndarray:
        """(Σ_i J_iᵀ (∂²ℓ/∂z²) J_i) v for each row v of `vectors` [R, P]: [R, P] float64."""
        return self._products("gauss_newton_products", batch, vectors)

    def _products(self, name: str, batch: ExampleBatch, vectors: np.ndarray) -> np.ndarray:
        products = np.empty((len(vectors), self.size))
        for start in range(0, len(vectors), _VECTORS_AT_ONCE):
            rows = slice(start, start + _VECTORS_AT_ONCE)
            directions = tf.constant(vectors[rows], dtype=self.dtype)
            products[rows] = to_numpy(self._call(name, batch, self._weights(batch), directions))
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

    def _weights(self, batch: ExampleBatch) -> tf.Tensor:
        if batch.weights is None:
            return tf.ones(len(batch), dtype=self.dtype)
        return tf.constant(batch.weights, dtype=self.dtype)

    def _call(self, name: str, batch: ExampleBatch, *extra: tf.Tensor) -> Any:
        """A method of the derivatives, of inputs and labels."""
        labels = tf.nest.map_structure(tf.convert_to_tensor, batch.labels)
        return self._call_inputs(name, batch, labels, *extra)

    def _call_inputs(self, name: str, batch: ExampleBatch, *extra: Any) -> Any:
        """A method of the derivatives as one `tf.function`, traced once for any batch size."""
        arguments = (feed(self.model, batch.inputs, self.dtype), *extra)
        if name not in self._functions:
            signature = tf.nest.map_structure(
                lambda tensor: tf.TensorSpec([None, *tensor.shape[1:]], tensor.dtype), arguments
            )
            function = tf.function(getattr(self._derivatives, name), input_signature=signature)
            # The concrete function: a tf.function that is called with a wrong shape never releases its lock.
            with exact_moments() if name in _SECOND_DERIVATIVES else contextlib.nullcontext():
                self._functions[name] = function.get_concrete_function()
        return self._functions[name](*arguments)


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
