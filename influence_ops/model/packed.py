"""All outputs of a model in one tensor, and back."""

from __future__ import annotations

import tensorflow as tf

from beam_influence.influence_ops.types import Tensors


def pack(outputs: Tensors) -> tf.Tensor:
    """All outputs of a model as one tensor [B, C]; a single one as it is."""
    tensors = tf.nest.flatten(outputs)
    if len(tensors) == 1:
        return tensors[0]
    return tf.concat([tf.reshape(tensor, [tf.shape(tensor)[0], tensor.shape[1:].num_elements()]) for tensor in tensors], axis=1)


def unpack(packed: tf.Tensor, like: Tensors) -> Tensors:
    """The outputs that `pack` packed, in the structure and shapes of `like`."""
    tensors = tf.nest.flatten(like)
    if len(tensors) == 1:
        return tf.nest.pack_sequence_as(like, [packed])
    parts = tf.split(packed, [tensor.shape[1:].num_elements() for tensor in tensors], axis=1)
    shaped = [tf.reshape(part, [-1, *tensor.shape[1:]]) for part, tensor in zip(parts, tensors, strict=True)]
    return tf.nest.pack_sequence_as(like, shaped)
