"""One step of training as a function of the state before it and the examples' weights, and its derivative backward.

A state is everything that training carries from step to step: the trainable weights, the layers' other variables (moving averages, states
of random numbers), the optimizer's slots. An adjoint is the derivative of T numbers by the floating ones of these: [T, ...] each.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from beam_influence.influence_ops.any_batch import any_batch
from beam_influence.influence_ops.model.compiled import TRACING
from beam_influence.influence_ops.model.exact_moments import exact_moments
from beam_influence.influence_ops.model.example_loss import Targets
from beam_influence.influence_ops.model.influence_model import InfluenceModel
from beam_influence.influence_ops.model.network import feed
from beam_influence.influence_ops.reading.example_batch import ExampleBatch
from beam_influence.influence_ops.replay.functional_optimizer import FunctionalOptimizer, current_values
from beam_influence.influence_ops.types import Tensors

State = list[tf.Tensor]


class TrainingStep:
    """The steps of one training run.

    The loss of a batch is what `fit` has: (1 / B) Σ_i w_i ℓ_i + the weights' regularisers, with each example's sample weight in ℓ_i; a loss
    whose reduction is a sum is not divided. w_i is 1 in training. The divisor does not depend on w: the derivative by w_i is of taking the
    example's term out, as a sample weight of 0 does.

    Args:
      model: the model with its weights before the training, all of which are watched.
      optimizer: as of `FunctionalOptimizer`.

    Attributes:
      variables: those whose values are a state, in its order.
      initial: the state before the first step.

    Raises:
      ValueError: the model's layers add losses, or the optimizer can't be used.
    """

    def __init__(self, model: InfluenceModel, optimizer: keras.optimizers.Optimizer):
        self.model = model
        self._network: Any = model.network.model
        if model.loss.heads.additional:
            raise ValueError("layers add losses (add_loss, activity regularisers), which a replay does not repeat; leave them out")
        _refuse_layers(self._network, optimizer)
        self._divides = _is_mean(model)
        trainable, others = carried_variables(self._network)
        self.optimizer = FunctionalOptimizer(optimizer, trainable)
        self.variables: list[keras.Variable] = [*trainable, *others, *self.optimizer.slots]
        self._trainable, self._of_model = len(trainable), len(trainable) + len(others)
        self._floats = [place for place, one in enumerate(self.variables) if tf.as_dtype(one.dtype).is_floating]
        self.initial: State = [tf.convert_to_tensor(variable.value) for variable in self.variables]
        self._functions: dict[str, Callable[..., Any]] = {}

    @property
    def state_bytes(self) -> int:
        """Bytes of a state; of an adjoint for one test point, at most as many."""
        return sum(variable.value.dtype.size * int(tf.size(variable.value)) for variable in self.variables)

    def forward(self, state: State, rate: float, number: int, batch: ExampleBatch, weights: tf.Tensor) -> State:
        """The state after the step `number`.

        Args:
          rate: its learning rate.
          batch: its B examples.
          weights: w, [B].
        """
        return self._call("after", state, self._scalars(rate, number), *self._given(batch, weights))

    def backward(
        self, state: State, rate: float, number: int, batch: ExampleBatch, weights: tf.Tensor, adjoint: State
    ) -> tuple[State, tf.Tensor]:
        """From the derivative by the state after the step: that by the state before it, and by w, [T, B]."""
        found = self._call("before", state, self._scalars(rate, number), *self._given(batch, weights), adjoint)
        return found[:-1], found[-1]

    def test_losses(self, state: State, batch: ExampleBatch) -> tf.Tensor:
        """ℓ of each test point under a state, in inference mode: [T]."""
        return self._call("losses", state, *self._given(batch, self.model.example_weights(batch)))

    def test_adjoint(self, state: State, batch: ExampleBatch) -> State:
        """The derivative of each test point's loss by the state."""
        return self._call("of_losses", state, *self._given(batch, self.model.example_weights(batch)))

    def _scalars(self, rate: float, number: int) -> list[tf.Tensor]:
        return [tf.constant(rate, self.model.dtype), tf.constant(number, tf.int64)]

    def _given(self, batch: ExampleBatch, weights: tf.Tensor) -> tuple[Tensors, Targets, tf.Tensor]:
        targets: Targets = {"labels": tf.nest.map_structure(tf.convert_to_tensor, batch.labels)}
        if batch.weights is not None and (batch.weights.ndim > 1 or self.model.training_loss.takes_weights):
            targets["weights"] = tf.constant(batch.weights, dtype=self.model.dtype)
        return feed(self._network, batch.inputs, self.model.dtype), targets, weights

    def _call(self, name: str, state: State, *arguments: Any) -> Any:
        if name not in self._functions:
            with TRACING, exact_moments():
                if name not in self._functions:
                    specs = [tf.nest.map_structure(tf.TensorSpec.from_tensor, state), *tf.nest.map_structure(_any_size, arguments)]
                    method = tf.function(getattr(self, f"_{name}"), input_signature=specs, autograph=False)
                    self._functions[name] = method.get_concrete_function()
        return self._functions[name](state, *arguments)

    def _loss(self, state: State, inputs: Tensors, targets: Targets, training: bool) -> tuple[tf.Tensor, State, tf.Tensor]:
        """ℓ of each example [B], the layers' variables after the call, and the weights' regularisers."""
        mapped = list(zip(self.variables[: self._of_model], state, strict=False))
        with keras.StatelessScope(state_mapping=mapped) as scope:
            outputs = self.model.loss.heads.split(self._network(inputs, training=training), tf.as_dtype(self.model.dtype))
            losses = self.model.loss(targets, outputs)
            penalties = [one.regularizer(value) for one, value in mapped[: self._trainable] if getattr(one, "regularizer", None)]
        after = current_values(scope, self.variables[self._trainable : self._of_model])
        return losses, after, functools.reduce(tf.add, [tf.reduce_sum(one) for one in penalties], tf.zeros([], losses.dtype))

    def _after(self, state: State, scalars: Sequence[tf.Tensor], inputs: Tensors, targets: Targets, weights: tf.Tensor) -> State:
        trainable, slots = state[: self._trainable], state[self._of_model :]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(trainable)
            losses, others, penalty = self._loss(state, inputs, targets, training=True)
            total = tf.reduce_sum(weights * losses)
            total = (total / tf.cast(tf.shape(weights)[0], total.dtype) if self._divides else total) + penalty
        gradients = tape.gradient(total, trainable, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        dense = [tf.convert_to_tensor(gradient) for gradient in gradients]
        trainable, slots = self.optimizer.step(trainable, slots, dense, *scalars)
        return [*trainable, *others, *slots]

    def _before(
        self, state: State, scalars: Sequence[tf.Tensor], inputs: Tensors, targets: Targets, weights: tf.Tensor, adjoint: State
    ) -> State:
        sources = [*(state[place] for place in self._floats), weights]
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
            tape.watch(sources)
            after = self._after(state, scalars, inputs, targets, weights)
            ends = [after[place] for place in self._floats]
        return tf.vectorized_map(lambda one: _gradients(tape, ends, sources, one), adjoint)

    def _losses(self, state: State, inputs: Tensors, targets: Targets, weights: tf.Tensor) -> tf.Tensor:
        return weights * self._loss(state, inputs, targets, training=False)[0]

    def _of_losses(self, state: State, inputs: Tensors, targets: Targets, weights: tf.Tensor) -> State:
        sources = [state[place] for place in self._floats]

        def one(example: Tensors) -> State:
            x, y, weight = tf.nest.map_structure(lambda leaf: leaf[None], example)
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(sources)
                loss = tf.reduce_sum(self._losses(state, x, y, weight))
            return _gradients(tape, loss, sources)

        return tf.vectorized_map(one, (inputs, targets, weights))


def carried_variables(model: keras.Model) -> tuple[list[keras.Variable], list[keras.Variable]]:
    """The variables of a model that training changes: its trainable weights, and what else its layers carry from step to step."""
    of_metrics = {id(variable) for variable in getattr(model, "metrics_variables", ())}
    others = [variable for variable in model.non_trainable_variables if id(variable) not in of_metrics]
    return list(model.trainable_variables), others


def give_state(model: keras.Model, state: Sequence[tf.Tensor]) -> None:
    """Puts the values of a state into a model of the same layers."""
    trainable, others = carried_variables(model)
    for variable, value in zip([*trainable, *others], state, strict=False):  # the slots come last
        variable.assign(tf.cast(value, variable.dtype))


def _any_size(tensor: tf.Tensor) -> tf.TensorSpec:
    return any_batch(tensor) if tensor.shape.rank else tf.TensorSpec.from_tensor(tensor)


def _gradients(tape: tf.GradientTape, ends: tf.Tensor | State, sources: State, along: State | None = None) -> State:
    found = tape.gradient(ends, sources, output_gradients=along, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return [tf.convert_to_tensor(gradient) for gradient in found]


def _is_mean(model: InfluenceModel) -> bool:
    """Whether the loss of a batch is the mean of its examples' losses, not their sum.

    Raises:
      ValueError: it is neither, or both in parts.
    """
    losses = [loss for loss in keras.tree.flatten(model.training_loss.losses) if loss is not None]
    found = {str(getattr(loss, "reduction", "sum_over_batch_size")) for loss in losses}
    if found <= {"sum_over_batch_size", "mean"}:
        return True
    if found == {"sum"}:
        return False
    raise ValueError(f"the loss has the reduction {' and '.join(sorted(found))}; use sum_over_batch_size, or sum")


def _refuse_layers(network: Any, optimizer: keras.optimizers.Optimizer) -> None:
    name = type(optimizer).__name__
    if isinstance(optimizer, keras.optimizers.Lion):
        raise ValueError("the optimizer Lion moves weights by signs, whose derivative is 0: so would all scores be; train with another one")
    for layer in network._flatten_layers():
        if isinstance(layer, keras.layers.RNN):
            raise ValueError(f"the layer {layer.name!r} is recurrent: a training with it can't be gone through backward; take run instead")
        if isinstance(layer, keras.layers.Embedding) and layer.trainable and not isinstance(optimizer, keras.optimizers.SGD):
            raise ValueError(
                f"the layer {layer.name!r} is an Embedding, whose gradient Keras gives {name} one token after the other, so that one "
                "that a batch has twice moves its row otherwise than their sum would; such a training is repeated with SGD alone"
            )
