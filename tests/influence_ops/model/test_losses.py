"""Losses against formulas, Keras's own values, and what is refused."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from beam_influence.influence_ops.model.example_loss import ExampleLoss
from beam_influence.influence_ops.model.heads import Heads, Outputs
from beam_influence.influence_ops.model.losses import BUILT_IN, resolve_loss, sigmoid_cross_entropy, softmax_cross_entropy, squared_error

HERE = "tests.influence_ops.model.test_losses"

losses = keras.losses

FLOAT64 = 1e-12  # a handful of operations in float64
KERAS = 1e-5  # float32, and probabilities clipped at 1e-7


def own_loss(labels: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
    """A user's loss, named by its import path."""
    return tf.reduce_sum(tf.abs(labels - outputs), axis=-1)


def per_example(loss: Any, activation: str) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """The loss as a function of labels and of one output before its activation."""
    found = ExampleLoss(resolve_loss(loss), Heads((activation,)))
    return lambda labels, outputs: found({"labels": labels}, Outputs(outputs, (None,)))


@pytest.fixture
def logits() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 2, (5, 3))


def test_softmax_cross_entropy_takes_every_form_of_label(logits):
    labels = np.array([0, 2, 1, 1, 0])
    wanted = np.log(np.exp(logits).sum(1)) - logits[np.arange(5), labels]
    one_hot = np.eye(3)[labels]
    for form in (labels, labels.astype(np.int32), labels[:, None], one_hot, one_hot.astype(np.float32), labels.astype(np.float64)):
        found = softmax_cross_entropy(tf.constant(form), tf.constant(logits))
        np.testing.assert_allclose(found, wanted, rtol=FLOAT64)


def test_sigmoid_cross_entropy_is_a_sum_over_outputs(logits):
    labels = np.random.default_rng(1).integers(0, 2, (5, 3))
    p = 1 / (1 + np.exp(-logits))
    wanted = -(labels * np.log(p) + (1 - labels) * np.log(1 - p)).sum(1)
    np.testing.assert_allclose(sigmoid_cross_entropy(tf.constant(labels), tf.constant(logits)), wanted, rtol=FLOAT64)
    one = sigmoid_cross_entropy(tf.constant(labels[:, 0]), tf.constant(logits[:, 0]))
    np.testing.assert_allclose(one, sigmoid_cross_entropy(tf.constant(labels[:, :1]), tf.constant(logits[:, :1])), rtol=FLOAT64)
    assert one.shape == (5,)


def test_squared_error_is_a_sum_and_not_halved(logits):
    labels = np.random.default_rng(1).standard_normal((5, 3))
    found = squared_error(tf.constant(labels), tf.constant(logits))
    np.testing.assert_allclose(found, ((labels - logits) ** 2).sum(1), rtol=FLOAT64)
    # Labels [B] against outputs [B, 1] are not spread to [B, B].
    assert squared_error(tf.constant(labels[:, 0]), tf.constant(logits[:, :1])).shape == (5,)


@pytest.mark.parametrize(
    ("loss", "activation", "form"),
    [
        (losses.SparseCategoricalCrossentropy(), "softmax", "sparse"),
        (losses.SparseCategoricalCrossentropy(from_logits=True), "linear", "sparse"),
        (losses.SparseCategoricalCrossentropy(from_logits=True), "sigmoid", "sparse"),
        (losses.SparseCategoricalCrossentropy(ignore_class=0), "softmax", "sparse"),
        (losses.SparseCategoricalCrossentropy(ignore_class=0, from_logits=True), "linear", "sparse"),
        (losses.CategoricalCrossentropy(), "softmax", "one_hot"),
        (losses.CategoricalCrossentropy(from_logits=True), "linear", "one_hot"),
        (losses.CategoricalCrossentropy(from_logits=True), "sigmoid", "one_hot"),
        (losses.CategoricalCrossentropy(label_smoothing=0.2), "softmax", "one_hot"),
        (losses.BinaryCrossentropy(), "sigmoid", "one_hot"),
        (losses.BinaryCrossentropy(from_logits=True), "linear", "one_hot"),
        (losses.MeanSquaredError(), "sigmoid", "one_hot"),
        (losses.MeanAbsoluteError(), "linear", "one_hot"),
        (losses.Huber(), "linear", "one_hot"),
        (losses.KLDivergence(), "softmax", "one_hot"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_keras_losses_are_what_training_used(loss, activation, form, logits):
    labels = np.array([0, 2, 1, 1, 0])
    labels = labels if form == "sparse" else np.eye(3)[labels]
    found = per_example(loss, activation)(tf.constant(labels), tf.constant(logits))
    # In float32, as in training: Keras may look at the logits behind an activation, which a cast hides from it.
    outputs = keras.activations.get(activation)(tf.constant(logits, tf.float32))
    loss.reduction = "none"
    wanted = loss(labels, outputs).numpy()
    assert found.shape == (5,)
    np.testing.assert_allclose(found, wanted, rtol=KERAS, atol=KERAS)


def test_a_confident_mistake_keeps_its_gradient():
    """Keras clips the probability at 1e-7: the loss would be 16 with a gradient of 0."""
    loss = per_example(losses.SparseCategoricalCrossentropy(), "softmax")
    logits = tf.constant([[0.0, 100.0]], dtype=tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        value = loss(tf.constant([0]), logits)
    np.testing.assert_allclose(value, [100.0], rtol=FLOAT64)
    np.testing.assert_allclose(np.asarray(tape.gradient(value, logits)), [[-1.0, 1.0]], rtol=FLOAT64)


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_names(name):
    found = resolve_loss(name)
    assert (found.losses, found.name) == (BUILT_IN[name], name)


def test_names_are_stable():
    def name(loss: Any) -> str:
        return resolve_loss(loss).name

    assert name("mse") == name("mean_squared_error")
    assert name(losses.Huber(delta=2.0)) == name(losses.Huber(delta=2.0, name="mine"))
    assert name(losses.Huber(delta=2.0)) != name(losses.Huber(delta=3.0))
    assert name(losses.Huber(reduction="sum")) != name(losses.Huber())  # over positions it is another number
    assert name(losses.Huber) == name(losses.Huber())
    path, named = f"{HERE}:own_loss", importlib.import_module(HERE).own_loss
    assert (resolve_loss(path).losses, resolve_loss(path).name) == (named, path)
    assert name(named) == path


def test_the_compiled_loss():
    network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    for loss in (None, "compiled"):
        with pytest.raises(ValueError, match="carries no compiled loss; name one: --loss softmax_cross_entropy"):
            resolve_loss(loss, network)
    network.compile(loss="mse")
    assert resolve_loss(None, network).compiled and resolve_loss(None, network).name == resolve_loss("mse").name
    network.compile(loss=own_loss)
    assert resolve_loss("compiled", network).losses is own_loss
    network.compile(loss=["mse"], loss_weights=[2.0])
    assert resolve_loss(None, network).weights == [2.0]


class OwnStep(keras.Model):
    def train_step(self, data: Any) -> Any:
        return super().train_step(data)


class OwnLoss(keras.Model):
    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        return 2 * super().compute_loss(*args, **kwargs)


@pytest.mark.parametrize(("kind", "method"), [(OwnStep, "train_step"), (OwnLoss, "compute_loss")])
def test_a_compiled_loss_that_need_not_be_the_training_loss_is_refused(kind, method):
    inputs = keras.Input((2,))
    network = kind(inputs, keras.layers.Dense(1)(inputs))
    network.compile(loss="mse")
    with pytest.raises(ValueError, match=f"has a {method} of its own.*name the loss of an example: --loss"):
        resolve_loss("compiled", network)
    assert resolve_loss("mse", network).losses is losses.mean_squared_error


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("no_such_loss", "no loss is called 'no_such_loss'; use one of sigmoid_cross_entropy, softmax_cross_entropy, squared_error"),
        ("no_such_module_at_all:f", "can't import 'no_such_module_at_all'"),
        (f"{HERE}:missing", "has no attribute 'missing'"),
        (":f", "is not an import path"),
    ],
)
def test_unknown_losses_are_refused(loss, message):
    with pytest.raises(ValueError, match=message):
        resolve_loss(loss)


def test_a_loss_of_a_whole_batch_is_taken_one_example_at_a_time(logits):
    """As Keras trains with it: on a batch of one it is the example's loss."""
    labels = np.random.default_rng(1).standard_normal((5, 3))
    found = per_example(lambda y, p: tf.reduce_mean(tf.square(y - p)), "linear")(tf.constant(labels), tf.constant(logits))
    np.testing.assert_allclose(found, ((labels - logits) ** 2).mean(1), rtol=FLOAT64)


def test_positions_are_averaged(logits):
    labels = np.random.default_rng(1).standard_normal((5, 3))
    found = per_example(lambda y, p: tf.square(y - p), "linear")(tf.constant(labels), tf.constant(logits))
    np.testing.assert_allclose(found, ((labels - logits) ** 2).mean(1), rtol=FLOAT64)
    tokens = np.random.default_rng(2).normal(size=(4, 6, 3))
    classes = np.random.default_rng(3).integers(0, 3, (4, 6))
    each = np.log(np.exp(tokens).sum(-1)) - np.take_along_axis(tokens, classes[..., None], -1)[..., 0]
    for loss in ("softmax_cross_entropy", losses.SparseCategoricalCrossentropy(from_logits=True)):
        np.testing.assert_allclose(per_example(loss, "linear")(tf.constant(classes), tf.constant(tokens)), each.mean(1), rtol=FLOAT64)
