"""A Keras optimizer as a function: weights, slots and gradients before a step → weights and slots after it, which a tape can follow."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import keras.src.ops  # where Keras's own optimizers look their square roots up; a user's have keras.ops
import numpy as np
import tensorflow as tf
from keras.src.optimizers.base_optimizer import BaseOptimizer  # not exported: what all optimizers do whatever the backend

from beam_influence.influence_ops.types import Float64Vector

_LOCK = threading.RLock()


class FunctionalOptimizer:
    """The optimizer's own `update_step`, clipping, weight decay and constraints, without variables that change.

    Keras's code runs as it is, in a scope that maps its variables to tensors; TensorFlow's ways of changing variables in place give way
    to those of Keras's base class, which tell the scope the new values.

    Args:
      optimizer: as it was before the first step; it is not changed.
      variables: the trainable variables, in the model's order.

    Attributes:
      name: the optimizer's class.
      slots: the variables in which it remembers (momenta, second moments), with their values before the first step.

    Raises:
      ValueError: it keeps what a step does not see (averages of weights, accumulated gradients, a loss scale), or has made steps already.
    """

    def __init__(self, optimizer: keras.optimizers.Optimizer, variables: Sequence[keras.Variable]):
        _refuse(optimizer)
        self._given: Any = optimizer
        config = {**optimizer.get_config(), "learning_rate": 0.0}  # a step is given its own
        own = {"_get_current_learning_rate": lambda self: self.rate}
        made: Any = type(f"Functional{type(optimizer).__name__}", (type(optimizer), _WithoutVariables), own).from_config(config)
        made._exclude_from_weight_decay_pattern = getattr(optimizer, "_exclude_from_weight_decay_pattern", None)
        made.build(list(variables))
        self._made = made
        self.name = type(optimizer).__name__
        self._variables = list(variables)
        counters = (id(made.iterations), id(made._learning_rate))
        # Nadam's product of momenta is an attribute alone.
        kept = {id(each): each for each in (*made.variables, *vars(made).values()) if isinstance(each, keras.Variable)}
        self.slots = [variable for key, variable in kept.items() if key not in counters]

    def rates(self, steps: int) -> Float64Vector:
        """The learning rate of each of so many steps, as Keras computes it: in float32."""
        rate = self._given._learning_rate
        if not isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
            return np.full(steps, float(rate.value if isinstance(rate, keras.Variable) else rate))
        at = tf.function(lambda step: tf.cast(rate(step), tf.float32), input_signature=[tf.TensorSpec([], tf.int64)])
        return np.array([float(at(tf.constant(step, tf.int64))) for step in range(steps)])

    def step(
        self,
        weights: Sequence[tf.Tensor],
        slots: Sequence[tf.Tensor],
        gradients: Sequence[tf.Tensor],
        rate: tf.Tensor,
        number: tf.Tensor,
    ) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """The weights and slots after the step `number` (from 0) with a learning rate."""
        made = self._made
        made.rate = rate
        mapped = [*zip(self._variables, weights, strict=True), *zip(self.slots, slots, strict=True)]
        mapped.append((made.iterations, tf.cast(number, made.iterations.dtype)))
        with smooth_roots(weights[0].dtype), keras.StatelessScope(state_mapping=mapped) as scope:
            made.apply(list(gradients), self._variables)
        return current_values(scope, self._variables), current_values(scope, self.slots)


def current_values(scope: keras.StatelessScope, variables: Sequence[keras.Variable]) -> list[tf.Tensor]:
    """What variables have come to in a scope."""
    found: list[Any] = [scope.get_current_value(variable) for variable in variables]
    return found


class _WithoutVariables(keras.optimizers.Optimizer.__bases__[0]):
    """What takes the place of TensorFlow's own ways between an optimizer's class, whose overrides stay (Nadam's), and TensorFlow's."""

    rate: Any = 0.0

    assign = BaseOptimizer.assign
    assign_add = BaseOptimizer.assign_add
    assign_sub = BaseOptimizer.assign_sub
    _var_key = BaseOptimizer._var_key
    _apply_weight_decay = BaseOptimizer._apply_weight_decay
    _backend_update_step = BaseOptimizer._backend_update_step


@contextlib.contextmanager
def smooth_roots(of_integers: tf.DType = tf.float32) -> Iterator[None]:
    """A context in which `keras.ops.sqrt` has the derivative 0 at 0: a second moment is 0 where no example has had a gradient, such as at a
    pixel that is never lit, and stays 0 whatever the examples' weights are. Roots of integers (Muon's of a shape) are in that dtype."""
    modules: list[Any] = [keras.src.ops, keras.ops]
    with _LOCK:
        originals = [module.sqrt for module in modules]
        try:
            for module in modules:
                module.sqrt = functools.partial(_root, of_integers)
            yield
        finally:
            for module, original in zip(modules, originals, strict=True):
                module.sqrt = original


def _root(of_integers: tf.DType, x: Any) -> tf.Tensor:
    x = tf.convert_to_tensor(x)
    if not x.dtype.is_floating:
        x = tf.cast(x, of_integers)
    is_zero = x == 0
    return tf.where(is_zero, tf.zeros_like(x), tf.sqrt(tf.where(is_zero, tf.ones_like(x), x)))


def _refuse(optimizer: Any) -> None:
    name = type(optimizer).__name__
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        raise ValueError("the optimizer scales the loss (mixed precision), as far as steps overflowed; train with the policy float32")
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise ValueError(f"the model's optimizer is {name}; compile the model with one of keras.optimizers, such as SGD or Adam")
    if optimizer.use_ema or optimizer.gradient_accumulation_steps:
        what = "averages weights (use_ema)" if optimizer.use_ema else "accumulates gradients (gradient_accumulation_steps)"
        raise ValueError(f"the optimizer {name} {what}, which a replay does not repeat; compile the model without")
    if getattr(optimizer, "_exclude_from_weight_decay", None):
        raise ValueError(f"the optimizer {name} excludes variables from weight decay by themselves; exclude them by name (var_names=)")
    rate = optimizer._learning_rate
    if callable(rate) and not isinstance(rate, (keras.Variable, keras.optimizers.schedules.LearningRateSchedule)):
        raise ValueError(f"the learning rate of {name} is a function, which may give another one each time; use a LearningRateSchedule")
    made = int(np.asarray(optimizer.iterations))
    if made:
        raise ValueError(
            f"the model's optimizer has made {made:,} steps already: give the model as it was before its training, saved between "
            "compile and fit"
        )
