"""Which loss a model was trained with, and the losses that are named here."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from beam_influence.influence_ops.import_path import load_object
from beam_influence.influence_ops.types import Loss

NamedLoss = Callable[[Any, Any], tf.Tensor]
"""(labels, logits or outputs [B, ..., C]) -> losses [B, ...], one for each position."""


def softmax_cross_entropy(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """-log softmax(logits)[label] for logits [B, ..., C]: [B, ...].

    Args:
      labels: [B, ...] or [B, ..., 1] of classes, or [B, ..., C] of probabilities.
    """
    if labels.shape.rank == logits.shape.rank and labels.shape[-1] != 1:
        return tf.nn.softmax_cross_entropy_with_logits(tf.cast(labels, logits.dtype), logits)
    if labels.shape.rank == logits.shape.rank:
        labels = tf.squeeze(labels, -1)
    labels = tf.cast(labels, tf.int64)
    classes = tf.shape(logits, out_type=tf.int64)[-1]
    # The fused sparse op has no second derivative; the dense one has.
    losses = tf.nn.softmax_cross_entropy_with_logits(tf.one_hot(labels, tf.cast(classes, tf.int32), dtype=logits.dtype), logits)
    # A label that is no class would have loss 0: as NaN the example is rejected.
    nan = tf.constant(float("nan"), dtype=logits.dtype)
    return tf.where((labels >= 0) & (labels < classes), losses, nan)


def sigmoid_cross_entropy(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Binary cross-entropy from logits [B] or [B, ..., K], summed over the K outputs."""
    labels, logits = _in_outputs_shape(labels, logits)
    return tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(labels, logits), axis=-1)


def squared_error(labels: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
    """The sum over the last axis of (label - output)²; not halved, as Keras has it."""
    labels, outputs = _in_outputs_shape(labels, outputs)
    return tf.reduce_sum(tf.square(labels - outputs), axis=-1)


def _in_outputs_shape(labels: tf.Tensor, outputs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    if outputs.shape.rank == 1:
        outputs = outputs[:, None]
    return tf.reshape(tf.cast(labels, outputs.dtype), tf.shape(outputs)), outputs


BUILT_IN: dict[str, NamedLoss] = {
    "softmax_cross_entropy": softmax_cross_entropy,
    "sigmoid_cross_entropy": sigmoid_cross_entropy,
    "squared_error": squared_error,
}


@dataclasses.dataclass(frozen=True)
class TrainingLoss:
    """The loss that a model was trained with.

    Attributes:
      losses: a function of `BUILT_IN`, a `keras.losses.Loss`, a Keras name, an own function, or, of a model compiled so, a list or a
        dictionary of these, one for each output.
      name: the same from run to run.
      weights: Keras's `loss_weights`, or None.
      compiled: whether it is the one in the model, so that `model.compute_loss` tells its value.
    """

    losses: Loss
    name: str
    weights: Any = None
    compiled: bool = False

    @property
    def user_function(self) -> Any:
        """The user's function, where the loss is one that was given beside the model; else None."""
        given = self.losses
        known = self.compiled or isinstance(given, (str, list, tuple, dict, keras.losses.Loss)) or given in BUILT_IN.values()
        return None if known or getattr(given, "__module__", "").startswith("keras.") else given

    @property
    def takes_weights(self) -> bool:
        """Whether the examples' weights go to the loss itself, in `Targets`, and must not be multiplied by again."""
        return weights_argument(self.user_function) is not None


def weights_argument(function: Any) -> str | None:
    """The argument in which a function of the user's takes the examples' weights, by which it multiplies itself: `sample_weight`,
    or a third one that it can't do without; None where it takes none."""
    try:
        arguments = {} if function is None else dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return None
    if "sample_weight" in arguments:
        return "sample_weight"
    third = list(arguments.values())[2:3]
    needed = [one.name for one in third if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD]
    return needed[0] if needed else None


def resolve_loss(loss: Loss, model: Any = None) -> TrainingLoss:
    """The loss that `loss` names.

    Args:
      loss: `compiled` or None (the loss the model was compiled with), a built-in name of this module, a Keras identifier such as
        `mse`, an import path `module:function`, a `keras.losses.Loss` or a callable (labels, outputs) -> [B].
      model: the Keras model, for `compiled`.

    Raises:
      ValueError: no such loss; the message lists what can be named.
    """
    if loss is None or loss == "compiled":
        return _compiled(model)
    if not isinstance(loss, str):
        return TrainingLoss(*_with_name(loss))
    if loss in BUILT_IN:
        return TrainingLoss(BUILT_IN[loss], loss)
    if ":" in loss:
        return TrainingLoss(_with_name(load_object(loss))[0], loss)
    return TrainingLoss(*_with_name(_by_keras_name(loss)))


def refuse_unsaved_settings(model: Any) -> None:
    """Refuses the compiled loss of a model that was read from a file, which does not tell what it was compiled with.

    Raises:
      ValueError: it is a Huber loss, whose delta Keras does not save and takes for 1.
    """
    if any(isinstance(leaf, keras.losses.Huber) for leaf in keras.tree.flatten(getattr(model, "loss", None))):
        raise ValueError(
            "the model was compiled with a Huber loss, and Keras saves it without its delta: name the loss, --loss huber where delta is 1, "
            "else --loss module:function with a keras.losses.Huber of your own"
        )


def takes_logits(loss: Loss) -> bool:
    """Whether a loss is one that is told to apply a softmax or sigmoid itself."""
    return loss in (softmax_cross_entropy, sigmoid_cross_entropy) or bool(getattr(loss, "_fn_kwargs", {}).get("from_logits"))


def _compiled(model: Any) -> TrainingLoss:
    losses = getattr(model, "loss", None)
    if losses is None or losses == "compiled":
        raise ValueError(
            "the model carries no compiled loss; name one: --loss softmax_cross_entropy (from "
            "logits), squared_error, sigmoid_cross_entropy, or your own as module:function"
        )
    for method in ("compute_loss", "train_step"):
        if getattr(type(model), method) is not getattr(keras.Model, method):
            raise ValueError(
                f"{type(model).__name__} has a {method} of its own, so what it was compiled with need not be what trained it; name the "
                "loss of an example: --loss, a Keras loss or your own as module:function"
            )
    # Keras keeps them beside the compiled loss.
    weights = getattr(getattr(model, "_compile_loss", None), "_user_loss_weights", None)
    names = [_with_name(leaf)[1] for leaf in keras.tree.flatten(losses) if leaf is not None]
    name = names[0] if not keras.tree.is_nested(losses) else f"[{', '.join(names)}]"
    return TrainingLoss(losses, name if weights is None else f"{name}×{weights}", weights, compiled=True)


def _by_keras_name(name: str) -> Loss:
    try:
        return keras.losses.get(name)
    except ValueError as error:
        raise ValueError(
            f"no loss is called {name!r}; use one of {', '.join(sorted(BUILT_IN))}, a Keras loss name, or module:function"
        ) from error


def _with_name(loss: Loss) -> tuple[Loss, str]:
    if isinstance(loss, type) and issubclass(loss, keras.losses.Loss):
        loss = loss()
    if isinstance(loss, str):
        loss = loss if loss.lower() in ("crossentropy", "ce") else _by_keras_name(loss)  # these two depend on the labels
    if isinstance(loss, keras.losses.Loss):
        # Huber's get_config leaves its delta out.
        settings = {**getattr(loss, "_fn_kwargs", {}), **_config(loss)}
        config = {key: value for key, value in settings.items() if key not in ("name", "fn")}
        return loss, f"keras:{type(loss).__name__}({', '.join(f'{k}={v}' for k, v in sorted(config.items()))})"
    if isinstance(loss, str):
        return loss, loss
    return loss, f"{getattr(loss, '__module__', '')}:{getattr(loss, '__qualname__', repr(loss))}"


def _config(loss: keras.losses.Loss) -> dict[str, Any]:
    try:
        return loss.get_config()
    except NotImplementedError:  # of the user's own, without one
        return {}
