"""For each kind of layer: how its weights form a matrix, and the factors of their gradient.

A rule gives, for a layer and its watched variables, the blocks that it covers; each block computes its tensors from one
call of the layer: the input x and the derivative g of the loss by the output before the activation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from beam_influence.influence_ops.model.gradients import convolution_rules, scale_rules
from beam_influence.influence_ops.model.gradients.blocks import Block, Factored, OneHot
from beam_influence.influence_ops.model.gradients.cover import Cover, Joined, Rule, Watched, affine, bias_everywhere, positions, sizes
from beam_influence.influence_ops.model.gradients.lora_rules import low_rank_kernel, low_rank_table
from beam_influence.influence_ops.model.gradients.recurrent_rules import recurrent


def cover(layer: Any, watched: Watched, joined: Joined) -> list[Cover]:
    """The blocks of `layer`; variables in none of them must be materialised in another way.

    Args:
      watched: which variables are.
      joined: whether two variables may be rows of one matrix; else each is a block of its own.
    """
    rule = _rule_of(type(layer))
    if getattr(layer, "quantization_mode", None) is not None or (_has_lora(layer) and rule not in (_dense, _einsum_dense, _embedding)):
        return []
    return rule(layer, watched, joined)


def _has_lora(layer: Any) -> bool:
    return bool(getattr(layer, "lora_enabled", False))


def _rule_of(kind: type) -> Rule:
    """The rule of a class, or of the one that its `call` is inherited from; of any other, what is tried on an unknown layer."""
    for base in kind.__mro__:
        if base in RULES and getattr(kind, "call", None) is getattr(base, "call", None):
            return RULES[base]
    return scale_rules.unknown


def _dense(layer: Any, watched: Watched, joined: Joined) -> list[Cover]:
    shape = sizes(layer.kernel)
    if _has_lora(layer):
        covers = low_rank_kernel(layer, (0,), watched, positions, positions)
        return [*covers, *bias_everywhere(layer.bias, watched)]
    return affine(layer.kernel, (0, 1), layer.bias, (0,), (shape[0], shape[1]), watched, joined, positions, positions)


def _einsum_dense(layer: Any, watched: Watched, joined: Joined) -> list[Cover]:
    left, _, outs = layer.equation.replace(" ", "").replace("...", ".").partition("->")  # "." stands for several positions
    ins, _, kernels = left.partition(",")
    contracted = [char for char in kernels if char in ins and char not in outs]
    made = [char for char in kernels if char in outs and char not in ins]
    shared = [char for char in outs if char in ins and char not in kernels]
    if len(contracted) + len(made) != len(kernels) or len(contracted) + len(shared) != len(ins) or not shared:
        return []  # a label that all three share, or that only one has
    if ins[0] != outs[0] or ins[0] not in shared:
        return []
    lengths = dict(zip(kernels, sizes(layer.kernel), strict=True))
    rows = columns = 1
    for char in contracted:
        rows *= lengths[char]
    for char in made:
        columns *= lengths[char]

    def matrix(labels: str, kept: list[str], size: int) -> Callable[[tf.Tensor], tf.Tensor]:
        def rows_of(tensor: tf.Tensor) -> tf.Tensor:
            spread = tensor.shape.rank - len(labels) + 1  # how many axes "." stands for
            axes: dict[str, list[int]] = {}
            for char in labels:
                first = sum(len(found) for found in axes.values())
                axes[char] = list(range(first, first + (spread if char == "." else 1)))
            order = [axis for char in (*shared, *kept) for axis in axes[char]]
            return tf.reshape(tf.transpose(tensor, order), [tf.shape(tensor)[0], -1, size])

        return rows_of

    kernel_axes = tuple(kernels.index(char) for char in (*contracted, *made))
    kernel, covers, bias, bias_axes = layer.kernel, [], layer.bias, ()
    if _has_lora(layer):
        if made[-1] != kernels[-1]:
            return []
        axes = tuple(kernels.index(char) for char in contracted)
        covers = low_rank_kernel(layer, axes, watched, matrix(ins, contracted, rows), matrix(outs, made, columns))
        kernel = None  # no variable, but what the factors make
    if watched(bias):
        of_bias = [char for char in outs if char in (layer.bias_axes or "")]
        if sorted(of_bias) != sorted(made) or len(layer.bias.shape) != len(of_bias):
            bias = None  # added along positions: no row of the matrix
        else:
            bias_axes = tuple(of_bias.index(char) for char in made)
    matrices = matrix(ins, contracted, rows), matrix(outs, made, columns)
    return [*covers, *affine(kernel, kernel_axes, bias, bias_axes, (rows, columns), watched, joined, *matrices)]


def _embedding(layer: Any, watched: Watched, joined: Joined) -> list[Cover]:
    if _has_lora(layer):
        return low_rank_table(layer, watched)
    if not watched(layer.embeddings):
        return []
    rows, columns = sizes(layer.embeddings)

    def looked_up(x: tf.Tensor, g: tf.Tensor) -> Block:
        return OneHot(tf.reshape(tf.cast(x, tf.int32), [tf.shape(x)[0], -1]), positions(g))

    return [Cover(((layer.embeddings, (0, 1), 0, rows),), "one_hot", rows, columns, looked_up)]


class Reversed(NamedTuple):
    """The inputs of a `ReversibleEmbedding` that was called with reverse=True.

    Attributes:
      states: [B, ..., D].
    """

    states: tf.Tensor


def _reversible(layer: Any, watched: Watched, joined: Joined) -> list[Cover]:
    """A table E that is looked up in, and multiplied with: by itself, so that both are Σ a ⊗ g with E's rows as rows, or by a kernel."""
    rows, columns = sizes(layer.embeddings)

    def lookups(x: Any, g: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        if isinstance(x, Reversed):
            return tf.zeros([tf.shape(g)[0], 0], tf.int32), tf.zeros([tf.shape(g)[0], 0, columns], g.dtype)
        return tf.reshape(tf.cast(x, tf.int32), [tf.shape(x)[0], -1]), positions(g)

    def products(x: Any, g: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        if not isinstance(x, Reversed):
            return tf.zeros([tf.shape(g)[0], 0, columns], g.dtype), tf.zeros([tf.shape(g)[0], 0, rows], g.dtype)
        cap = layer.logit_soft_cap
        if cap is not None:  # z = cap · tanh(h K / cap), and g is by z
            kernel = tf.transpose(layer.embeddings.value) if layer.tie_weights else layer.reverse_embeddings.value
            g *= 1 - tf.square(tf.tanh(tf.cast(tf.tensordot(x.states, tf.cast(kernel, x.states.dtype), 1) / cap, g.dtype)))
        return tf.cast(positions(x.states), g.dtype), positions(g)

    def both(x: Any, g: tf.Tensor) -> Block:
        if isinstance(x, Reversed):  # z = h Eᵀ, so its gradient is g ⊗ h
            return Factored(*reversed(products(x, g)))
        ids, errors = lookups(x, g)
        return Factored(tf.one_hot(ids, rows, dtype=g.dtype), errors)

    covers, of_table = [], (layer.embeddings, (0, 1), 0, rows)
    if watched(layer.embeddings) and layer.tie_weights:
        covers.append(Cover((of_table,), "factored", rows, columns, both))
    elif watched(layer.embeddings):
        covers.append(Cover((of_table,), "one_hot", rows, columns, lambda x, g: OneHot(*lookups(x, g))))
    if not layer.tie_weights and watched(layer.reverse_embeddings):
        of_kernel = (layer.reverse_embeddings, (0, 1), 0, columns)
        covers.append(Cover((of_kernel,), "factored", columns, rows, lambda x, g: Factored(*products(x, g))))
    return covers


RULES: dict[type, Rule] = {
    keras.layers.Dense: _dense,
    keras.layers.EinsumDense: _einsum_dense,
    **dict.fromkeys((keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D), convolution_rules.convolution),
    **dict.fromkeys((keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D), convolution_rules.depthwise),
    **dict.fromkeys((keras.layers.SeparableConv1D, keras.layers.SeparableConv2D), convolution_rules.separable),
    **dict.fromkeys(
        (keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose, keras.layers.Conv3DTranspose), convolution_rules.transposed
    ),
    **dict.fromkeys((keras.layers.RNN, keras.layers.LSTM, keras.layers.GRU, keras.layers.SimpleRNN), recurrent),
    **dict.fromkeys((keras.layers.ConvLSTM1D, keras.layers.ConvLSTM2D, keras.layers.ConvLSTM3D), recurrent),
    keras.layers.Embedding: _embedding,
    keras.layers.ReversibleEmbedding: _reversible,
    keras.layers.LayerNormalization: scale_rules.layer_normalization,
    keras.layers.RMSNormalization: scale_rules.rms_normalization,
    keras.layers.BatchNormalization: scale_rules.batch_normalization,
    keras.layers.GroupNormalization: scale_rules.group_normalization,
    keras.layers.PReLU: scale_rules.prelu,
}
