"""Keras's optimizers without variables that change, beside Keras's own."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from beam_influence.influence_ops.replay.functional_optimizer import FunctionalOptimizer, smooth_roots

SCHEDULE: Any = keras.optimizers.schedules.PiecewiseConstantDecay([1, 3], [0.1, 0.05, 0.01])
OPTIMIZERS = {
    "momentum": lambda: keras.optimizers.SGD(SCHEDULE, momentum=0.9, nesterov=True, weight_decay=0.01, global_clipnorm=0.5),
    "adam": lambda: keras.optimizers.Adam(0.02, amsgrad=True, clipvalue=0.4),
    "adamw": lambda: keras.optimizers.AdamW(SCHEDULE, weight_decay=0.1),
    "adagrad": lambda: keras.optimizers.Adagrad(0.1),
    "nadam": lambda: keras.optimizers.Nadam(SCHEDULE, weight_decay=0.1),
    "muon": lambda: keras.optimizers.Muon(SCHEDULE, weight_decay=0.2, adam_weight_decay=0.1),
    "rmsprop": lambda: keras.optimizers.RMSprop(0.01, momentum=0.5, centered=True),
}


def excluding() -> keras.optimizers.Optimizer:
    optimizer = keras.optimizers.AdamW(0.1, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    return optimizer


@pytest.mark.parametrize("make", [*OPTIMIZERS.values(), excluding], ids=[*OPTIMIZERS, "excluding"])
def test_steps_are_those_of_keras(make):
    rng = np.random.default_rng(0)
    shapes = {"kernel": (3, 2), "bias": (2,)}
    dtype, tolerance = ("float32", 1e-5) if isinstance(make(), keras.optimizers.Muon) else ("float64", 1e-12)  # Keras's Muon has no float64
    variables = [keras.Variable(rng.normal(size=shape), dtype=dtype, name=name) for name, shape in shapes.items()]
    functional = FunctionalOptimizer(make(), variables)
    weights: list = [tf.constant(variable.value) for variable in variables]
    slots: list = [tf.constant(variable.value) for variable in functional.slots]
    own = make()
    rates = functional.rates(5)
    for number in range(5):
        gradients = [tf.constant(rng.normal(size=shape), dtype) for shape in shapes.values()]
        weights, slots = functional.step(weights, slots, gradients, tf.constant(rates[number], dtype), tf.constant(number))
        own.apply([tf.identity(gradient) for gradient in gradients], variables)
    for found, wanted in zip(weights, variables, strict=True):
        np.testing.assert_allclose(found, wanted.value, rtol=tolerance)  # the same operations


def test_the_root_of_nothing_has_no_slope():
    x: Any = tf.constant([0.0, 4.0], tf.float64)
    with smooth_roots(), tf.GradientTape() as tape:
        tape.watch(x)
        y: Any = keras.ops.sqrt(x)
    np.testing.assert_array_equal(y, [0, 2])
    np.testing.assert_array_equal(tape.gradient(y, x), [0, 0.25])


rate_of_nothing: Any = lambda: 0.1  # noqa: E731


def stepped() -> keras.optimizers.Optimizer:
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.apply([tf.ones(2)], [keras.Variable(np.ones(2))])
    return optimizer


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (lambda: keras.optimizers.Adam(use_ema=True), "averages weights"),
        (lambda: keras.optimizers.SGD(gradient_accumulation_steps=2), "accumulates gradients"),
        (lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()), "scales the loss"),
        (lambda: keras.optimizers.SGD(rate_of_nothing), "is a function"),
        (lambda: "adam", "compile the model"),
        (stepped, "made 1 steps already"),
    ],
)
def test_what_a_step_does_not_see_is_refused(optimizer, message):
    with pytest.raises(ValueError, match=message):
        FunctionalOptimizer(optimizer(), [keras.Variable(np.ones(2))])
