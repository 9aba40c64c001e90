"""Losses against formulas, Keras's own values, and what is refused."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from influence_ops.losses import BUILT_IN, per_example, resolve_loss, sigmoid_cross_entropy, softmax_cross_entropy, squared_error

losses = keras.losses

FLOAT64 = 1e-12  # a handful of operations in float64
KERAS = 1e-5  # float32, and probabilities clipped at 1e-7


def own_loss(labels: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
    """A user's loss, named by its import path."""
    return tf.reduce_sum(tf.abs(labels - outputs), axis=-1)


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
    assert resolve_loss(name) == (BUILT_IN[name], name)


def test_names_are_stable():
    assert resolve_loss("mse")[1] == resolve_loss("mean_squared_error")[1]
    assert resolve_loss(losses.Huber(delta=2.0))[1] == resolve_loss(losses.Huber(delta=2.0, name="mine"))[1]
    assert resolve_loss(losses.Huber(delta=2.0))[1] != resolve_loss(losses.Huber(delta=3.0))[1]
    assert resolve_loss(losses.Huber)[1] == resolve_loss(losses.Huber())[1]
    path = f"{__name__}:own_loss"
    assert resolve_loss(path) == (own_loss, path)
    assert resolve_loss(own_loss) == (own_loss, path)


def test_the_compiled_loss():
    network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    for loss in (None, "compiled"):
        with pytest.raises(ValueError, match="carries no compiled loss; name one: --loss softmax_cross_entropy"):
            resolve_loss(loss, network)
    network.compile(loss="mse")
    assert resolve_loss(None, network) == resolve_loss("mse")
    network.compile(loss=own_loss)
    assert resolve_loss("compiled", network)[0] is own_loss
    network.compile(loss=["mse"])
    with pytest.raises(ValueError, match="one loss for each output; give one function"):
        resolve_loss(None, network)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("no_such_loss", "no loss is called 'no_such_loss'; use one of sigmoid_cross_entropy, softmax_cross_entropy, squared_error"),
        ("no_such_module_at_all:f", "can't import 'no_such_module_at_all'"),
        (f"{__name__}:missing", "has no attribute 'missing'"),
        (":f", "is not an import path"),
    ],
)
def test_unknown_losses_are_refused(loss, message):
    with pytest.raises(ValueError, match=message):
        resolve_loss(loss)


@pytest.mark.parametrize(
    "loss", [lambda labels, outputs: tf.reduce_mean(labels - outputs), lambda labels, outputs: labels - outputs], ids=["scalar", "matrix"]
)
def test_a_loss_that_is_not_one_number_for_each_example_is_refused(loss):
    with pytest.raises(ValueError, match="it must return one number for each example"):
        per_example(loss, "linear")(tf.zeros((4, 3)), tf.zeros((4, 3)))
