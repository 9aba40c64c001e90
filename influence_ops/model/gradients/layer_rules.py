"""For each kind of layer: how its weights form a matrix, and the factors of their gradient.

A rule gives, for a layer and its watched variables, the blocks that it covers; each block computes its tensors from one
call of the layer: the input x and the derivative g of the loss by the output before the activation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from beam_influence.influence_ops.model.gradients.blocks import Block, Factored, Materialised, OneHot


@dataclasses.dataclass(frozen=True)
class Cover:
    """One block of a layer.

    Attributes:
      variables: (variable, axes, first row, rows): see `Piece`.
      kind, rows, columns: see `BlockLayout`.
      block: (x, g) of one call -> the block.
    """

    variables: tuple[tuple[Any, tuple[int, ...], int, int], ...]
    kind: str
    rows: int
    columns: int
    block: Callable[[tf.Tensor, tf.Tensor], Block]


Watched = Callable[[Any], bool]
"""Whether a variable (or None) is watched."""


def cover(layer: Any, watched: Watched, joined: bool) -> list[Cover]:
    """The blocks of `layer`; variables in none of them must be materialised in another way.

    Args:
      watched: which variables are.
      joined: whether the bias is a row of the kernel's matrix; else it is a block of its own.
    """
    rule = RULES.get(type(layer))
    if rule is None or getattr(layer, "lora_enabled", False) or getattr(layer, "quantization_mode", None) is not None:
        return []
    return rule(layer, watched, joined)


def _affine(
    kernel: Any,
    kernel_axes: tuple[int, ...],
    bias: Any,
    bias_axes: tuple[int, ...],
    shape: tuple[int, int],
    watched: Watched,
    joined: bool,
    inputs: Callable[[tf.Tensor], tf.Tensor],
    errors: Callable[[tf.Tensor], tf.Tensor],
) -> list[Cover]:
    """Kernel and bias of z = a W + b at every position, from a [B, S, I] and g [B, S, O]."""
    rows, columns = shape
    has_kernel, has_bias = watched(kernel), watched(bias)

    def with_one(x: tf.Tensor, g: tf.Tensor) -> Block:
        a = inputs(x)
        return Factored(tf.concat([a, tf.ones_like(a[:, :, :1])], axis=2), errors(g))

    def summed(x: tf.Tensor, g: tf.Tensor) -> Block:
        return Materialised(tf.reduce_sum(errors(g), axis=1))

    of_kernel = (kernel, kernel_axes, 0, rows)
    if has_kernel and has_bias and joined:
        return [Cover((of_kernel, (bias, bias_axes, rows, 1)), "factored", rows + 1, columns, with_one)]
    covers = []
    if has_kernel:
        covers.append(Cover((of_kernel,), "factored", rows, columns, lambda x, g: Factored(inputs(x), errors(g))))
    if has_bias:
        covers.append(Cover(((bias, bias_axes, 0, 1),), "materialised", 1, columns, summed))
    return covers


def _positions(tensor: tf.Tensor) -> tf.Tensor:
    """[B, ..., D] -> [B, S, D]."""
    return tf.reshape(tensor, [tf.shape(tensor)[0], -1, tensor.shape[-1]])


def _dense(layer: Any, watched: Watched, joined: bool) -> list[Cover]:
    shape = tuple(int(size) for size in layer.kernel.shape)
    return _affine(layer.kernel, (0, 1), layer.bias, (0,), (shape[0], shape[1]), watched, joined, _positions, _positions)


def _einsum_dense(layer: Any, watched: Watched, joined: bool) -> list[Cover]:
    left, _, outs = layer.equation.replace(" ", "").replace("...", ".").partition("->")  # "." stands for several positions
    ins, _, kernels = left.partition(",")
    contracted = [char for char in kernels if char in ins and char not in outs]
    made = [char for char in kernels if char in outs and char not in ins]
    positions = [char for char in outs if char in ins and char not in kernels]
    if len(contracted) + len(made) != len(kernels) or len(contracted) + len(positions) != len(ins) or not positions:
        return []  # a label that all three share, or that only one has
    if ins[0] != outs[0] or ins[0] not in positions:
        return []
    sizes = dict(zip(kernels, (int(size) for size in layer.kernel.shape), strict=True))
    rows = columns = 1
    for char in contracted:
        rows *= sizes[char]
    for char in made:
        columns *= sizes[char]

    def matrix(labels: str, kept: list[str], size: int) -> Callable[[tf.Tensor], tf.Tensor]:
        def rows_of(tensor: tf.Tensor) -> tf.Tensor:
            spread = tensor.shape.rank - len(labels) + 1  # how many axes "." stands for
            axes: dict[str, list[int]] = {}
            for char in labels:
                first = sum(len(found) for found in axes.values())
                axes[char] = list(range(first, first + (spread if char == "." else 1)))
            order = [axis for char in (*positions, *kept) for axis in axes[char]]
            return tf.reshape(tf.transpose(tensor, order), [tf.shape(tensor)[0], -1, size])

        return rows_of

    kernel_axes = tuple(kernels.index(char) for char in (*contracted, *made))
    bias, bias_axes = layer.bias, ()
    if watched(bias):
        of_bias = [char for char in outs if char in (layer.bias_axes or "")]
        if sorted(of_bias) != sorted(made) or len(layer.bias.shape) != len(of_bias):
            bias = None  # added along positions: no row of the matrix
        else:
            bias_axes = tuple(of_bias.index(char) for char in made)
    return _affine(
        layer.kernel,
        kernel_axes,
        bias,
        bias_axes,
        (rows, columns),
        watched,
        joined,
        matrix(ins, contracted, rows),
        matrix(outs, made, columns),
    )


def _patches(layer: Any, x: tf.Tensor) -> tf.Tensor:
    """What each output position of a convolution sees: [B, S, window, channels]."""
    window, strides, rates = tuple(layer.kernel_size), tuple(layer.strides), tuple(layer.dilation_rate)
    padding = layer.padding.upper()
    if layer.rank == 1:
        if padding == "CAUSAL":
            x, padding = tf.pad(x, [[0, 0], [rates[0] * (window[0] - 1), 0], [0, 0]]), "VALID"
        x, window, strides, rates = x[:, None], (1, *window), (1, *strides), (1, *rates)
    channels = x.shape[-1]
    patches = tf.image.extract_patches(x, [1, *window, 1], [1, *strides, 1], [1, *rates, 1], padding)
    return tf.reshape(patches, [tf.shape(x)[0], -1, window[0] * window[1], channels])


def _convolution(layer: Any, watched: Watched, joined: bool) -> list[Cover]:
    if layer.data_format != "channels_last":
        return []
    shape = tuple(int(size) for size in layer.kernel.shape)
    axes = tuple(range(len(shape)))
    inputs_per_group, columns = shape[-2], shape[-1]
    window = 1
    for size in shape[:-2]:
        window *= size
    if layer.groups == 1:
        rows = window * inputs_per_group

        def inputs(x: tf.Tensor) -> tf.Tensor:
            patches = _patches(layer, x)
            return tf.reshape(patches, [tf.shape(patches)[0], -1, rows])

        return _affine(layer.kernel, axes, layer.bias, (0,), (rows, columns), watched, joined, inputs, _positions)

    groups = layer.groups

    def grouped(x: tf.Tensor, g: tf.Tensor) -> Block:
        patches = _patches(layer, x)
        count = tf.shape(patches)[0]
        a = tf.reshape(patches, [count, -1, window, groups, inputs_per_group])
        e = tf.reshape(g, [count, -1, groups, columns // groups])
        return Materialised(tf.reshape(tf.einsum("bskgi,bsgo->bkigo", a, e), [count, window * inputs_per_group * columns]))

    return _materialised_kernel(layer.kernel, grouped, layer.bias, watched)


def _depthwise(layer: Any, watched: Watched, joined: bool) -> list[Cover]:
    if layer.data_format != "channels_last":
        return []
    shape = tuple(int(size) for size in layer.kernel.shape)
    channels, multiplier = shape[-2], shape[-1]

    def by_channel(x: tf.Tensor, g: tf.Tensor) -> Block:
        a = _patches(layer, x)
        count = tf.shape(a)[0]
        e = tf.reshape(g, [count, -1, channels, multiplier])
        return Materialised(tf.reshape(tf.einsum("bskc,bscm->bkcm", a, e), [count, int(layer.kernel.value.shape.num_elements())]))

    return _materialised_kernel(layer.kernel, by_channel, layer.bias, watched)


def _materialised_kernel(kernel: Any, gradient: Callable[[tf.Tensor, tf.Tensor], Block], bias: Any, watched: Watched) -> list[Cover]:
    """A kernel whose [B, n] is cheap to build, and a bias that is added at every position."""
    covers = []
    if watched(kernel):
        shape = tuple(kernel.shape)
        covers.append(Cover(((kernel, tuple(range(len(shape))), 0, 1),), "materialised", 1, kernel.value.shape.num_elements(), gradient))
    if watched(bias):
        covers.append(_bias_of_every_position(bias))
    return covers


def _bias_of_every_position(bias: Any) -> Cover:
    def summed(x: tf.Tensor, g: tf.Tensor) -> Block:
        return Materialised(tf.reduce_sum(_positions(g), axis=1))

    return Cover(((bias, (0,), 0, 1),), "materialised", 1, int(bias.shape[0]), summed)


def _embedding(layer: Any, watched: Watched, joined: bool) -> list[Cover]:
    if not watched(layer.embeddings):
        return []
    rows, columns = (int(size) for size in layer.embeddings.shape)

    def looked_up(x: tf.Tensor, g: tf.Tensor) -> Block:
        return OneHot(tf.reshape(tf.cast(x, tf.int32), [tf.shape(x)[0], -1]), _positions(g))

    return [Cover(((layer.embeddings, (0, 1), 0, rows),), "one_hot", rows, columns, looked_up)]


def _scaled(scale: Any, shift: Any, normalised: Callable[[tf.Tensor], tf.Tensor], watched: Watched) -> list[Cover]:
    """γ and β of z = γ·x̂ + β over the last axis."""
    covers = []
    if watched(scale):

        def gradient(x: tf.Tensor, g: tf.Tensor) -> Block:
            return Materialised(tf.reduce_sum(_positions(normalised(x) * g), axis=1))

        covers.append(Cover(((scale, (0,), 0, 1),), "materialised", 1, int(scale.shape[0]), gradient))
    if watched(shift):
        covers.append(_bias_of_every_position(shift))
    return covers


def _layer_normalization(layer: Any, watched: Watched, joined: bool) -> list[Cover]:
    if layer.rms_scaling or len(layer.axis) != 1:
        return []

    def normalised(x: tf.Tensor) -> tf.Tensor:
        mean, variance = tf.nn.moments(x, axes=[-1], keepdims=True)
        return (x - mean) / tf.sqrt(variance + layer.epsilon)

    return _scaled(layer.gamma, layer.beta, normalised, watched)


def _batch_normalization(layer: Any, watched: Watched, joined: bool) -> list[Cover]:
    def normalised(x: tf.Tensor) -> tf.Tensor:
        return (x - layer.moving_mean.value) / tf.sqrt(layer.moving_variance.value + layer.epsilon)

    return _scaled(layer.gamma, layer.beta, normalised, watched)


Rule = Callable[[Any, Watched, bool], list[Cover]]
RULES: dict[type, Rule] = {
    keras.layers.Dense: _dense,
    keras.layers.EinsumDense: _einsum_dense,
    keras.layers.Conv1D: _convolution,
    keras.layers.Conv2D: _convolution,
    keras.layers.DepthwiseConv1D: _depthwise,
    keras.layers.DepthwiseConv2D: _depthwise,
    keras.layers.Embedding: _embedding,
    keras.layers.LayerNormalization: _layer_normalization,
    keras.layers.BatchNormalization: _batch_normalization,
}
