"""A network's outputs as derivatives need them: before their last activation, with the masks that Keras carries beside them."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from beam_influence.influence_ops.types import Tensors, TensorSpecs

_ACTIVATIONS = {"Softmax": "softmax", "Sigmoid": "sigmoid"}
_ROUNDING = ("Floor", "Ceil", "Round", "Rint", "FloorDiv", "FloorMod")
_WITHOUT_ARITHMETIC = ("Cast", "Identity", "Reshape", "ExpandDims", "Squeeze", "StridedSlice")
_CALLS = ("PartitionedCall", "StatefulPartitionedCall")


class Outputs(NamedTuple):
    """What a network gives for a batch.

    Attributes:
      values: its outputs before their last activation: a tensor [B, ...], or a list or dictionary of such.
      masks: for each tensor of `values`, Keras's mask [B, ...] (False: the position takes no part in the loss), or None.
    """

    values: Tensors
    masks: tuple[tf.Tensor | None, ...]


@dataclasses.dataclass(frozen=True)
class Heads:
    """Which activation ends each output of a network.

    Keras computes its losses from the logits behind a softmax or sigmoid, wherever in the model these stand; it keeps the logits
    beside the tensor, and so do we find them.

    Attributes:
      activations: `softmax`, `sigmoid` or `linear` (the outputs are taken as they are), for each output in `tf.nest`'s order.
      masked: whether any output carries a mask.
      additional: how many losses the model's layers add (`add_loss`, activity regularisers).
      rounds: an operation of the network that rounds what was computed before it (such as `Floor`), or None.
      opaque: whether an output may be a probability whose logits can't be seen: a SavedModel's, or a sigmoid's past Keras.
    """

    activations: tuple[str, ...]
    masked: bool = False
    additional: int = 0
    opaque: bool = False
    rounds: str | None = None

    @staticmethod
    def find(model: Any, specs: TensorSpecs) -> Heads:
        """The heads of `model`, by tracing it once on inputs of `specs` (a structure of `tf.TensorSpec`)."""
        found: list[Heads] = []

        def trace(inputs: Tensors) -> list[tf.Tensor]:
            outputs = tf.nest.flatten(model(inputs, training=False))
            masked = any(_mask(tensor) is not None for tensor in outputs)
            opaque = any(tensor.op.type in (*_ACTIVATIONS, *_CALLS) for tensor in outputs)
            found.append(Heads(tuple(map(_activation, outputs)), masked, len(additional_losses(model)), opaque))
            return outputs

        graph = tf.function(trace, input_signature=[specs], autograph=False).get_concrete_function().graph
        return dataclasses.replace(found[0], rounds=_rounding(graph))

    def split(self, outputs: Tensors, dtype: tf.DType) -> Outputs:
        """What the model returned, before activations, in `dtype` (a model of mixed precision ends in a narrower one)."""
        flat = tf.nest.flatten(outputs)
        found = [tensor if name == "linear" else tensor._keras_logits for tensor, name in zip(flat, self.activations, strict=True)]
        values = [tf.cast(value, dtype) for value in found]
        return Outputs(tf.nest.pack_sequence_as(outputs, values), tuple(map(_mask, flat)))

    def predictions(self, values: Tensors) -> Tensors:
        """The outputs that the model itself gives: `values` with their activations."""
        flat = tf.nest.flatten(values)
        # Keras's own functions: they keep the logits beside the result, where Keras's losses look for them.
        ends = [keras.activations.get(name) for name in self.activations]
        again = [end(value) for value, end in zip(flat, ends, strict=True)]
        return tf.nest.pack_sequence_as(values, again)


def _rounding(graph: tf.Graph) -> str | None:
    """The kind of an operation that rounds numbers which were computed, not given."""
    for operation in graph.get_operations():
        if operation.type in _ROUNDING and not _is_given(operation.inputs[0]):
            return operation.type
        is_cast = operation.type == "Cast" and operation.inputs[0].dtype.is_floating and operation.outputs[0].dtype.is_integer
        if is_cast and not _is_given(operation.inputs[0]):
            return "Cast"
    return None


def _is_given(tensor: tf.Tensor) -> bool:
    """Whether a tensor is an input of the graph, or a number that no arithmetic has made."""
    while tensor.op.type in _WITHOUT_ARITHMETIC and tensor.op.inputs[0].dtype.is_floating:
        tensor = tensor.op.inputs[0]
    return tensor.op.type in ("Placeholder", "Const", "Cast")


def additional_losses(model: Any) -> list[tf.Tensor]:
    """What the layers of `model` added to the loss when it was called last; a weight's own regulariser is none of these."""
    losses = list(getattr(model, "losses", ()))
    penalties = sum(getattr(variable, "regularizer", None) is not None for variable in model.trainable_variables)
    return [tf.reduce_sum(term) for term in losses[: len(losses) - penalties]]


def _activation(output: tf.Tensor) -> str:
    logits = getattr(output, "_keras_logits", None)
    name = _ACTIVATIONS.get(output.op.type, "linear")
    return name if logits is not None and output.op.inputs[0] is logits else "linear"


def _mask(output: tf.Tensor) -> tf.Tensor | None:
    return getattr(output, "_keras_mask", None)
