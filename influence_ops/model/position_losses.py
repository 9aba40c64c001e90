"""The losses of a batch's examples, position by position, as Keras computes them from the model's predictions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import keras
import tensorflow as tf

from beam_influence.influence_ops.model.losses import (
    BUILT_IN,
    sigmoid_cross_entropy,
    softmax_cross_entropy,
    squared_error,
    weights_argument,
)
from beam_influence.influence_ops.types import Loss, Tensors

_MIXING = (keras.losses.hinge, keras.losses.squared_hinge)  # they look for labels 0 and 1 in the whole batch
_CROSS_ENTROPIES = (keras.losses.sparse_categorical_crossentropy, keras.losses.categorical_crossentropy)
_CHOSEN_BY_SHAPE = ("crossentropy", "ce")  # names by which Keras takes one of its cross-entropies
PositionLosses = tuple[tf.Tensor, tf.Tensor | None]
"""Losses [B, ...] before they are reduced, and the mask that the loss itself gives."""


def mixes_examples(loss: Loss) -> bool:
    """Whether a loss looks, or may look, at the whole batch: two of Keras's, and any of the user's own."""
    function = _function(loss)
    if loss is None or isinstance(function, str) or function in BUILT_IN.values():
        return False
    of_keras = (getattr(function, "__module__", None) or type(function).__module__).startswith("keras.")
    return function in _MIXING or not of_keras


def _function(loss: Loss) -> Loss:
    """What a Keras loss wraps, or the loss itself."""
    if isinstance(loss, str):
        loss = keras.losses.get(loss) if loss.lower() not in _CHOSEN_BY_SHAPE else loss
    return getattr(loss, "fn", loss)


def is_softmax_cross_entropy(loss: Loss, activation: str) -> bool:
    """Whether the loss of outputs before `activation` is the plain cross-entropy of their softmax."""
    if loss is softmax_cross_entropy:
        return activation in ("softmax", "linear")
    settings, function = getattr(loss, "_fn_kwargs", {}), _function(loss)
    if function not in _CROSS_ENTROPIES or settings.get("axis", -1) != -1:
        return False
    plain = not settings.get("label_smoothing") and settings.get("ignore_class") is None
    # Keras takes the logits that it finds behind a softmax, whatever `from_logits` says.
    return plain and (activation == "softmax" or (bool(settings.get("from_logits")) and activation == "linear"))


def elementwise_likelihood(loss: Loss, activation: str) -> tuple[Literal["bernoulli", "normal"], bool] | None:
    """The distribution of labels that the loss is the negative log-likelihood of, element by element of the outputs before `activation`,
    and whether the loss of a position is the mean over its elements, not the sum; None: no known one."""
    if loss is sigmoid_cross_entropy:
        return "bernoulli", False
    if loss is squared_error:
        return ("normal", False) if activation == "linear" else None
    settings, function = getattr(loss, "_fn_kwargs", {}), _function(loss)
    if function is keras.losses.mean_squared_error and activation == "linear":
        return "normal", True
    if function is keras.losses.binary_crossentropy and settings.get("axis", -1) == -1 and not settings.get("label_smoothing"):
        is_plain = activation == ("linear" if settings.get("from_logits") else "sigmoid")
        return ("bernoulli", True) if is_plain else None
    return None


def keras_losses(loss: Loss, labels: tf.Tensor, values: tf.Tensor, predictions: tf.Tensor, activation: str) -> PositionLosses:
    """The losses [B, ...] of one output, as `compile(loss=...)` has them.

    Args:
      loss: a function of `BUILT_IN`, a Keras loss or its name, or a function of the user's.
      labels: [B, ...].
      values, predictions: the output before and after `activation`.
    """
    if loss in BUILT_IN.values():  # a cross-entropy is of logits
        return loss(labels, predictions if loss is squared_error else values), None
    if is_softmax_cross_entropy(loss, activation):
        return softmax_cross_entropy(labels, values), None
    labels = tf.cast(labels, predictions.dtype)  # Keras's losses convert them all
    if isinstance(loss, keras.losses.Loss):
        return _with_mask(loss.call(labels, predictions))
    function = _loss_for_shapes(loss, labels, predictions) if isinstance(loss, str) else loss
    return _with_mask(function(*_with_equal_ranks(labels, predictions)))


def user_losses(function: Callable, labels: Tensors, predictions: Tensors, weights: tf.Tensor | None) -> PositionLosses:
    """The losses [B, ...] of a function of the user's that was given beside the model.

    Labels of integers stay integers where the function takes them; else they are floats, as Keras would have them.

    Args:
      labels, predictions: tensors, whose ranks are lined up as Keras does, or structures of several, as they are.
      weights: what a function with an argument for them gets; None: ones.
    """
    dtype = tf.nest.flatten(predictions)[0].dtype
    extra = {}
    name = weights_argument(function)
    if name is not None:
        count = tf.shape(tf.nest.flatten(predictions)[0])[:1]
        extra[name] = tf.ones(count, dtype) if weights is None else tf.cast(weights, dtype)
    wide = tf.nest.map_structure(lambda label: tf.cast(label, dtype) if label.dtype.is_floating else label, labels)
    if tf.nest.is_nested(labels) or tf.nest.is_nested(predictions):
        return _with_mask(function(wide, predictions, **extra))
    try:
        return _with_mask(function(*_with_equal_ranks(wide, predictions), **extra))
    except (TypeError, ValueError, tf.errors.InvalidArgumentError):
        if wide.dtype.is_floating:
            raise
        return _with_mask(function(*_with_equal_ranks(tf.cast(labels, dtype), predictions), **extra))


def _loss_for_shapes(name: str, labels: tf.Tensor, predictions: tf.Tensor) -> Loss:
    """Keras's loss of that name; of the names that stand for several cross-entropies, the one that the shapes call for."""
    if name.lower() not in _CHOSEN_BY_SHAPE:
        return keras.losses.get(name)
    if predictions.shape[-1] == 1:
        return keras.losses.binary_crossentropy
    sparse = labels.shape.rank == predictions.shape.rank - 1 or labels.shape[-1] == 1
    return keras.losses.sparse_categorical_crossentropy if sparse else keras.losses.categorical_crossentropy


def _with_mask(losses: Any) -> tuple[tf.Tensor, tf.Tensor | None]:
    return tf.convert_to_tensor(losses), getattr(losses, "_keras_mask", None)


def _with_equal_ranks(labels: tf.Tensor, predictions: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Ranks that differ by one through a last axis of length 1, as Keras lines them up."""
    if labels.shape.rank >= predictions.shape.rank:
        return _squeeze_or_expand(labels, predictions)
    predictions, labels = _squeeze_or_expand(predictions, labels)
    return labels, predictions


def _squeeze_or_expand(longer: Any, shorter: Any) -> tuple[tf.Tensor, tf.Tensor]:
    """The two with equal ranks, where `longer` has one axis more, of length 1; else as they are."""
    if longer.shape.rank == shorter.shape.rank + 1 and longer.shape[-1] == 1:
        if shorter.shape.rank == 1:
            shorter = shorter[..., None]
        else:
            longer = tf.squeeze(longer, -1)
    return longer, shorter


