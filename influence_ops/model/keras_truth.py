"""What Keras itself computes for the user's model: losses and their gradient, one example at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf
from keras.src.trainers.compile_utils import CompileLoss  # not exported: how `compile` turns what it is given into a loss

from beam_influence.influence_ops.model.heads import additional_losses
from beam_influence.influence_ops.model.losses import sigmoid_cross_entropy, softmax_cross_entropy, squared_error, weights_argument
from beam_influence.influence_ops.reading.example_batch import ExampleBatch, Inputs, Labels
from beam_influence.influence_ops.types import Loss, Tensors

if TYPE_CHECKING:
    from beam_influence.influence_ops.model.influence_model import InfluenceModel


class KerasTruth:
    """The user's model and loss on the examples of a batch, each in a batch of its own, in the model's own dtype.

    The loss is that of `model.compute_loss` without the weights' regularisers: what `compile` makes of the loss, and what the layers
    add. A function of the user's of several labels or outputs is called as it is.

    Attributes:
      reads_weight: a watched weight that the loss itself reads, beside the outputs; None where it reads none.
    """

    def __init__(self, model: InfluenceModel, batch: ExampleBatch):
        self.batch = batch
        self._model = model.network.original
        self._loss = model.training_loss
        order = {id(variable): place for place, variable in enumerate(model.model.trainable_variables)}
        places = [order[id(variable)] for variable in model.variables]
        self._variables = [self._model.trainable_variables[place] for place in places]
        self._losses: list[float] = []
        self._of_outputs: list[float] = []
        self._gradient = np.zeros(model.size)
        self._largest = 0.0
        self.reads_weight: str | None = None
        self._compute()

    def losses(self) -> np.ndarray:
        """[B]."""
        return np.array(self._losses)

    def mixes_examples(self, tolerance: float) -> str | None:
        """How a loss of the user's own for the whole batch differs from the mean of its examples' losses; None where it does not.

        A mask or a weight for each position makes the two differ by right: Keras takes the mean over all positions of a batch.
        """
        by_keras = all(getattr(leaf, "__module__", "keras.").startswith("keras.") for leaf in keras.tree.flatten(self._loss.losses))
        if by_keras or len(self.batch) < 2 or self.batch.weights is not None:
            return None
        outputs = self._model(tensors(self.batch.inputs), training=False)
        if any(getattr(tensor, "_keras_mask", None) is not None for tensor in tf.nest.flatten(outputs)):
            return None
        together = np.asarray(self._example_loss(self.batch, outputs), np.float64).mean()
        alone = np.array(self._of_outputs)
        if min(abs(together - alone.mean()), abs(together - alone.sum())) <= tolerance * max(float(np.abs(alone).max()), 1e-12):
            return None
        return f"{together:.6g} for {len(alone)} examples together, and {alone.mean():.6g} in the mean of each alone"

    def gradient(self) -> np.ndarray:
        """Σ_i ∇ℓ(z_i): [P]."""
        return self._gradient

    @property
    def smallest_gradient(self) -> float:
        """Below this a difference can't be seen: the examples' gradients cancel each other, or are the rounding of Keras's float32."""
        return max(1e-3 * self._largest, 3e-4 * float(np.abs(self._losses).max(initial=0.0)))

    def _compute(self) -> None:
        values = [variable.value for variable in self._variables]
        zero = tf.UnconnectedGradients.ZERO
        for row in range(len(self.batch)):
            one = self.batch.select(np.array([row]))
            with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
                for value in values:
                    tape.watch(value)
                outputs = self._model(tensors(one.inputs), training=False)
                added = additional_losses(self._model)
                ended = _without_gradient(outputs)
                loss = tf.reduce_sum(self._example_loss(one, outputs))
                total = tf.add_n([loss, *(tf.cast(term, loss.dtype) for term in added)])
                direct = tf.reduce_sum(self._example_loss(one, ended)) if row == 0 else None
            self._losses.append(float(total))
            self._of_outputs.append(float(loss))
            found = tape.gradient(total, values, unconnected_gradients=zero)
            flat = np.concatenate([np.asarray(tf.convert_to_tensor(part), np.float64).ravel() for part in found])
            self._gradient += flat
            self._largest = max(self._largest, float(np.abs(flat).max()))
            if direct is not None:
                read = tape.gradient(direct, values)
                nonzero = [part is not None and bool(np.any(tf.convert_to_tensor(part))) for part in read]
                self.reads_weight = self._variables[nonzero.index(True)].path if any(nonzero) else None

    def _example_loss(self, one: ExampleBatch, outputs: Tensors) -> tf.Tensor:
        labels = tensors(one.labels)
        if tf.nest.is_nested(labels) and not tf.nest.is_nested(outputs) and len(labels) == 1:
            labels = tf.nest.flatten(labels)[0]
        weights = None if one.weights is None else tf.constant(one.weights, tf.float32)
        function = self._loss.user_function
        if function is not None:
            return _user_loss(function, labels, outputs, weights, self._model)
        losses = self._loss.losses if self._loss.compiled else _in_keras(self._loss.losses, labels, outputs)
        return _compiled_loss(losses, labels, outputs, weights, self._model, self._loss.weights)


def _user_loss(function: Any, labels: Tensors, outputs: Tensors, weights: tf.Tensor | None, model: Any) -> tf.Tensor:
    """The loss of a batch by the user's function: through Keras's `compile` where that takes it, else by calling it."""
    name = weights_argument(function)
    if name is not None:
        return tf.reduce_mean(tf.convert_to_tensor(function(labels, outputs, **{name: tf.ones(1) if weights is None else weights})))
    if not tf.nest.is_nested(labels) and not tf.nest.is_nested(outputs):
        try:
            return _compiled_loss(function, labels, outputs, weights, model)
        except Exception:  # it wants integers, which Keras turns into floats
            pass
    found = tf.reduce_mean(tf.convert_to_tensor(function(labels, outputs)))
    return found if weights is None else found * tf.cast(tf.reduce_mean(weights), found.dtype)


def _compiled_loss(
    loss: Loss, labels: Tensors, outputs: Tensors, weights: tf.Tensor | None, model: Any, loss_weights: Any = None
) -> tf.Tensor:
    """The loss of a batch as a model that was compiled with `loss` computes it."""
    names = getattr(model, "output_names", None) or None
    return tf.convert_to_tensor(CompileLoss(loss, loss_weights, output_names=names)(labels, outputs, weights))


def _in_keras(loss: Loss, labels: Tensors, outputs: Tensors) -> Loss:
    """A built-in loss as Keras has it."""
    losses = keras.losses
    if loss is softmax_cross_entropy:
        sparse = len(labels.shape) < len(outputs.shape) or labels.shape[-1] == 1
        return (losses.SparseCategoricalCrossentropy if sparse else losses.CategoricalCrossentropy)(from_logits=True)
    size = outputs.shape[-1] if len(outputs.shape) > 1 else 1
    if loss is sigmoid_cross_entropy:
        return lambda y, p: size * _untyped(losses.binary_crossentropy(y, p, from_logits=True))
    return (lambda y, p: size * _untyped(losses.mean_squared_error(y, p))) if loss is squared_error else loss


def _untyped(tensor: Any) -> Any:
    """The same for type checkers, to which Keras's functions return tensors of any of its backends."""
    return tensor


def tensors(arrays: Inputs | Labels) -> Tensors:
    """Inputs or labels as the user's own program gives them to Keras."""
    def one(array: np.ndarray) -> tf.Tensor:
        return tf.constant(array.tolist()) if array.dtype == object else tf.convert_to_tensor(array)

    return tf.nest.map_structure(one, dict(arrays) if isinstance(arrays, Mapping) else arrays)


def _without_gradient(outputs: Tensors) -> Tensors:
    """The outputs as constants, with what Keras keeps beside them."""

    def one(tensor: Any) -> Any:
        constant = tf.stop_gradient(tensor)
        for name in ("_keras_logits", "_keras_mask"):
            kept = getattr(tensor, name, None)
            if kept is not None:
                setattr(constant, name, tf.stop_gradient(kept) if name == "_keras_logits" else kept)
        return constant

    return tf.nest.map_structure(one, outputs)
