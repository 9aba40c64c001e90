"""Per-example losses: one number for each example, from labels and the model's outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import keras
import tensorflow as tf

from influence_ops.import_path import load_object

PerExampleLoss = Callable[[Any, Any], Any]
"""(labels [B, ...], outputs [B, ...]) -> losses [B]; labels and outputs may be dictionaries or lists of such tensors."""


def softmax_cross_entropy(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """-log softmax(logits)[label], summed over positions; labels [B] or [B, 1] of integers, or [B, C] of probabilities.

    For logits [B, S, C] (a sequence of tokens), labels are [B, S].
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
    losses = tf.where((labels >= 0) & (labels < classes), losses, nan)
    return tf.reduce_sum(losses, axis=list(range(1, losses.shape.rank))) if (losses.shape.rank or 1) > 1 else losses


def sigmoid_cross_entropy(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Binary cross-entropy from logits [B] or [B, K], summed over the K outputs."""
    logits = _as_matrix(logits)
    labels = tf.reshape(tf.cast(labels, logits.dtype), tf.shape(logits))
    return tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(labels, logits), axis=-1)


def squared_error(labels: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
    """sum over the outputs of (label - output)²; not halved, as Keras has it."""
    outputs = _as_matrix(outputs)
    labels = tf.reshape(tf.cast(labels, outputs.dtype), tf.shape(outputs))
    return tf.reduce_sum(tf.square(labels - outputs), axis=-1)


def _as_matrix(outputs: tf.Tensor) -> tf.Tensor:
    return outputs[:, None] if outputs.shape.rank == 1 else outputs


BUILT_IN: dict[str, PerExampleLoss] = {
    "softmax_cross_entropy": softmax_cross_entropy,
    "sigmoid_cross_entropy": sigmoid_cross_entropy,
    "squared_error": squared_error,
}


def likelihood(per_example_loss: PerExampleLoss, loss: Any, activation: str) -> Literal["categorical", "bernoulli"] | None:
    """The distribution of labels that a loss is the negative log-likelihood of, where it is a known one.

    Args:
      per_example_loss: what `per_example` made of the loss.
      loss, activation: what it was made of.
    """
    own = loss if activation == "linear" else None  # a built-in loss is of the outputs themselves
    if softmax_cross_entropy in (per_example_loss, own):
        return "categorical"
    return "bernoulli" if own is sigmoid_cross_entropy else None


def resolve_loss(loss: Any, model: Any = None) -> tuple[Any, str]:
    """The loss and a name for it that is stable from run to run.

    Args:
      loss: `compiled` (the loss the model was compiled with), a built-in name of this module, a
        Keras identifier such as `mse`, an import path `module:function`, a `keras.losses.Loss` or
        a callable (labels, outputs) -> [B].
      model: the Keras model, for `compiled`.

    Raises:
      ValueError: no such loss; the message lists what can be named.
    """
    if loss is None or loss == "compiled":
        compiled = getattr(model, "loss", None)
        if compiled is None or compiled == "compiled":
            raise ValueError(
                "the model carries no compiled loss; name one: --loss softmax_cross_entropy (from "
                "logits), squared_error, sigmoid_cross_entropy, or your own as module:function"
            )
        return resolve_loss(compiled, model)
    if isinstance(loss, (list, dict)):
        raise ValueError(
            "the model was compiled with one loss for each output; give one function of all "
            "outputs as --loss module:function"
        )
    if not isinstance(loss, str):
        if isinstance(loss, type) and issubclass(loss, keras.losses.Loss):
            loss = loss()
        return loss, _loss_name(loss)
    if loss in BUILT_IN:
        return BUILT_IN[loss], loss
    if ":" in loss:
        found, _ = resolve_loss(load_object(loss))
        return found, loss
    try:
        return resolve_loss(keras.losses.get(loss))
    except ValueError as error:
        raise ValueError(
            f"no loss is called {loss!r}; use one of {', '.join(sorted(BUILT_IN))}, a Keras loss "
            "name, or module:function"
        ) from error


def _loss_name(loss: Any) -> str:
    if isinstance(loss, keras.losses.Loss):
        # Huber's get_config leaves its delta out.
        settings = {**getattr(loss, "_fn_kwargs", {}), **loss.get_config()}
        config = {key: value for key, value in settings.items() if key not in ("name", "reduction")}
        return f"keras:{type(loss).__name__}({', '.join(f'{k}={v}' for k, v in sorted(config.items()))})"
    return f"{getattr(loss, '__module__', '')}:{getattr(loss, '__qualname__', repr(loss))}"


def per_example(loss: Any, activation: str) -> PerExampleLoss:
    """`loss` as a function of the model's pre-activation outputs.

    Args:
      loss: what `resolve_loss` returned.
      activation: the name of the activation that was taken off the model's last layer (`linear`,
        `softmax` or `sigmoid`). A Keras cross-entropy of probabilities after it is computed from
        the logits instead: the same function without Keras's clipping at 1e-7, whose derivative is 0.
    """
    losses = keras.losses
    sparse = (losses.SparseCategoricalCrossentropy, losses.sparse_categorical_crossentropy)
    categorical = (losses.CategoricalCrossentropy, losses.categorical_crossentropy)
    smoothing = getattr(loss, "label_smoothing", 0) or 0
    from_logits = bool(getattr(loss, "from_logits", False)) or getattr(loss, "_fn_kwargs", {}).get("from_logits", False)
    is_cross_entropy = isinstance(loss, (sparse[0], categorical[0])) or loss in (sparse[1], categorical[1])
    ignores = getattr(loss, "_fn_kwargs", {}).get("ignore_class") is not None
    if is_cross_entropy and not smoothing and not ignores and from_logits != (activation == "softmax"):
        return softmax_cross_entropy
    apply = keras.activations.get(activation)
    function = loss.call if isinstance(loss, losses.Loss) else loss

    def from_pre_activation(labels: Any, outputs: Any) -> tf.Tensor:
        predictions: Any = apply(outputs) if activation != "linear" else outputs
        dtype = tf.nest.flatten(predictions)[0].dtype
        labels = tf.nest.map_structure(lambda label: tf.cast(label, dtype) if label.dtype.is_floating else label, labels)
        if isinstance(loss, losses.Loss) and labels.shape.rank == 1 and predictions.shape.rank == 2:
            labels = labels[:, None]
        value = tf.convert_to_tensor(function(labels, predictions))
        if isinstance(loss, losses.Loss) and (value.shape.rank or 0) > 1:
            value = tf.reduce_mean(value, axis=list(range(1, value.shape.rank)))
        if value.shape.rank != 1:
            raise ValueError(
                f"the loss returned the shape {value.shape} for a batch; it must return one number "
                "for each example, [B] (a Keras loss: reduction='none')"
            )
        return value

    return from_pre_activation
