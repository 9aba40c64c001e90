"""What Keras itself does with a run's first steps, beside the replay; and where the user's own training ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from beam_influence.influence_ops.model.keras_truth import tensors
from beam_influence.influence_ops.replay.training_run import TrainingRun
from beam_influence.influence_ops.replay.training_step import State, TrainingStep, carried_variables
from beam_influence.influence_ops.types import Float64Vector

FIRST_STEPS = 3
_TOLERANCE = 1e-2  # of the change of the weights: Keras computes in float32, where Adam's first steps divide small gradients by themselves


def compare_first_steps(run: TrainingRun, steps: int = FIRST_STEPS) -> float:
    """How far the replay of the first steps is from `train_on_batch` of the user's model: ‖difference‖ / ‖change of the weights‖.

    The user's model is left as it was.

    Raises:
      ValueError: it is too far; what is differentiated would not be the user's training.
    """
    model: Any = run.step.model.network.original
    given, loss = model.optimizer, run.step.model.training_loss
    kept = [np.array(variable.value) for variable in model.variables]
    weights = model.trainable_variables
    before = _flat(weights)
    clone = type(given).from_config({**given.get_config(), "learning_rate": _rate(given)})
    clone._exclude_from_weight_decay_pattern = getattr(given, "_exclude_from_weight_decay_pattern", None)
    known = [id(variable) for variable in model.variables]
    state: State = run.step.initial
    try:
        model.compile(optimizer=clone, loss=loss.losses, loss_weights=loss.weights, run_eagerly=True)  # a few steps
        for number in range(min(steps, len(run.order))):
            batch, of_examples = run.batch(number)
            own = None if batch.weights is None else np.asarray(batch.weights, np.float32)
            model.train_on_batch(tensors(batch.inputs), tensors(batch.labels), sample_weight=own)
            state = run.step.forward(state, run.rates[number], number, batch, of_examples)
        after = _flat(weights)
    finally:
        model.compile(optimizer=given, loss=loss.losses, loss_weights=loss.weights)
        for variable, value in zip((one for one in model.variables if id(one) in known), kept, strict=False):
            variable.assign(value)
    off = _relative(_flat_values(state[: len(weights)]) - after, after - before)
    if not off <= _TOLERANCE:
        raise ValueError(
            f"after {min(steps, len(run.order))} steps the weights are off by {off:.2g} of their change from those that Keras's own "
            f"train_on_batch gives with {type(given).__name__} and the loss {loss.name!r}: a layer, the loss or the optimizer does what "
            "a replay does not repeat, such as a mask, by which a batch is divided, or a train_step of its own"
        )
    return off


def compare_with_trained(run: TrainingRun, last: State, trained: keras.Model) -> float:
    """How far the replay ends from the weights of the user's trained model: ‖difference‖ / ‖change of the weights‖.

    Raises:
      ValueError: it is a model of other weights.
    """
    refuse_other_weights(run.step, trained)
    wanted, _ = carried_variables(trained)
    ends = _flat(wanted)
    found, start = (_flat_values(state[: len(wanted)]) for state in (last, run.step.initial))
    return _relative(found - ends, ends - start)


def refuse_other_weights(step: TrainingStep, trained: keras.Model) -> None:
    """Refuses a trained model that is not the one before its training, by the shapes of its weights.

    Raises:
      ValueError: it is another one.
    """
    wanted, _ = carried_variables(trained)
    shapes, own = [tuple(one.shape) for one in wanted], [tuple(one.shape) for one in step.variables[: len(wanted)]]
    if shapes != own or len(wanted) != len(step.model.variables):
        raise ValueError(f"the trained model has weights of the shapes {shapes}, the model before its training {own}; give the same one")


def _rate(optimizer: Any) -> Any:
    rate = optimizer._learning_rate
    return float(tf.convert_to_tensor(rate.value)) if isinstance(rate, keras.Variable) else rate


def _relative(difference: np.ndarray, change: np.ndarray) -> float:
    whole, off = float(np.linalg.norm(change)), float(np.linalg.norm(difference))
    return off / whole if whole else off


def _flat(variables: Sequence[keras.Variable]) -> Float64Vector:
    return _flat_values([tf.convert_to_tensor(variable.value) for variable in variables])


def _flat_values(values: State) -> Float64Vector:
    return np.concatenate([np.asarray(value, np.float64).ravel() for value in values])
