"""A training run, replayed forward and gone through backward (MAGIC: Ilyas & Engstrom 2025, 2504.16430).

The derivative of a test loss after S steps by the weight w_i of a training example is exact, by reverse mode through all steps:
λ_S = ∂ℓ/∂s_S, λ_t = (∂s_{t+1}/∂s_t)ᵀ λ_{t+1}, ∂ℓ/∂w = Σ_t (∂s_{t+1}/∂w)ᵀ λ_{t+1}. Backward needs every state: those of one segment of
about √S steps are in memory, and those that the segments begin with are kept, wherever their owner likes (REPLAY, section 4 there).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from beam_influence.influence_ops.reading.example_batch import ExampleBatch
from beam_influence.influence_ops.replay.batch_order import BatchOrder
from beam_influence.influence_ops.replay.training_step import State, TrainingStep
from beam_influence.influence_ops.types import Float64Array, Float64Matrix, Float64Vector

Checkpoint = list[np.ndarray]
"""A state, as arrays."""


@dataclasses.dataclass(frozen=True)
class TrainingRun:
    """What is replayed.

    Attributes:
      step: the steps.
      examples: the training set, n examples in one batch, in memory or mapped from files.
      order: which of them each step has.
      rates: the learning rate of each step.
      segment: the number of steps whose states are held at once.
    """

    step: TrainingStep
    examples: ExampleBatch
    order: BatchOrder
    rates: Float64Vector
    segment: int

    @staticmethod
    def of(step: TrainingStep, examples: ExampleBatch, order: BatchOrder, memory: int) -> TrainingRun:
        """The run with segments of √S steps, or of as many as have their states in so many bytes.

        Raises:
          ValueError: not even two states have.
        """
        most = memory // step.state_bytes
        if most < 2:
            raise ValueError(
                f"a state of the training (weights, the optimizer's slots) is {step.state_bytes:,} bytes, and a worker may hold "
                f"{memory:,} of them; give --max_worker_memory, or train a smaller model"
            )
        return TrainingRun(step, examples, order, step.optimizer.rates(len(order)), min(math.ceil(math.sqrt(len(order))), most))

    def forward(self, weights: Float64Vector | None = None) -> Iterator[tuple[int, State]]:
        """The state before the first step of each segment, with that step's number, and the state after the last one, with S.

        Args:
          weights: w of each example, [n]; None: 1.

        Raises:
          ValueError: a state is not finite.
        """
        state = self.step.initial
        for number in range(len(self.order)):
            if number % self.segment == 0:
                yield number, state
            state = self._forward(state, number, weights)
            if (number + 1) % self.segment == 0 or number + 1 == len(self.order):
                self._check(state, number)
        yield len(self.order), state

    def last_state(self, weights: Float64Vector | None = None) -> State:
        """The state after all steps."""
        *_, (_, state) = self.forward(weights)
        return state

    def backward(self, checkpoint: Callable[[int], Checkpoint], test: ExampleBatch) -> tuple[Float64Vector, Float64Matrix]:
        """The loss of each test point after training, [T], and its derivative by every example's weight, [T, n].

        An example that several steps have has the sum over these; the derivative is by the weight that it has in all of them.

        Args:
          checkpoint: gives the state before the first step of a segment, by that step's number, and that after all steps, by S.
          test: T test points.
        """
        step, total = self.step, len(self.order)
        last = [tf.constant(array) for array in checkpoint(total)]
        losses, adjoint = np.asarray(step.test_losses(last, test), np.float64), step.test_adjoint(last, test)
        found = np.zeros((len(test), len(self.examples)))
        for first in reversed(range(0, total, self.segment)):
            state = [tf.constant(array) for array in checkpoint(first)]
            states = [state]
            for number in range(first, min(first + self.segment, total) - 1):
                states.append(state := self._forward(state, number, None))
            for number in reversed(range(first, first + len(states))):
                batch, weights = self.batch(number)
                adjoint, by_weight = step.backward(states.pop(), self.rates[number], number, batch, weights, adjoint)
                own = np.asarray(batch.weights, np.float64) if self._has_own(batch) else 1.0
                np.add.at(found.T, self.order.of_step(number), (np.asarray(by_weight, np.float64) * own).T)
        return losses, found

    def test_losses(self, state: State, test: ExampleBatch) -> Float64Array:
        """ℓ of each test point under a state: [T]."""
        return np.asarray(self.step.test_losses(state, test), np.float64)

    def _forward(self, state: State, number: int, weights: Float64Vector | None) -> State:
        return self.step.forward(state, self.rates[number], number, *self.batch(number, weights))

    def batch(self, number: int, weights: Float64Vector | None = None) -> tuple[ExampleBatch, tf.Tensor]:
        """The examples of a step, and w_i times the sample weights that are not in their losses already."""
        places = self.order.of_step(number)
        batch = self.examples.select(places)
        own = self.step.model.example_weights(batch)
        return batch, own if weights is None else own * tf.constant(weights[places], own.dtype)

    def _has_own(self, batch: ExampleBatch) -> bool:
        """Whether the examples' sample weights stand beside w in a step's weights, so that the chain rule has them."""
        return batch.weights is not None and batch.weights.ndim == 1 and not self.step.model.training_loss.takes_weights

    def _check(self, state: State, number: int) -> None:
        for variable, value in zip(self.step.variables, state, strict=True):
            if value.dtype.is_floating and not bool(tf.reduce_all(tf.math.is_finite(value))):
                raise ValueError(
                    f"after step {number} of {len(self.order)} {variable.path!r} is not finite: the training diverges; lower its "
                    "learning rate, or look for examples that are not finite"
                )


def as_checkpoint(state: State) -> Checkpoint:
    """A state as arrays."""
    return [np.asarray(value) for value in state]
