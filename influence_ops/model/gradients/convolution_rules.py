"""Rules of convolutions: a layer that is used at every place of an image, whose inputs are the window that it sees there."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from beam_influence.influence_ops.model.gradients.blocks import Factored
from beam_influence.influence_ops.model.gradients.cover import (
    Cover,
    Joined,
    Watched,
    affine,
    bias_everywhere,
    materialised,
    positions,
    sizes,
)


class Window(NamedTuple):
    """Which part of an image one place of a convolution's output is made of: sizes along each axis."""

    size: tuple[int, ...]
    strides: tuple[int, ...]
    rates: tuple[int, ...]
    padding: str

    @property
    def places(self) -> int:
        """How many it sees at once."""
        return math.prod(self.size)


def window_of(layer: Any) -> Window:
    """The window of a convolutional layer or cell."""
    return Window(tuple(layer.kernel_size), tuple(layer.strides), tuple(layer.dilation_rate), layer.padding.upper())


def patches(window: Window, x: tf.Tensor) -> tf.Tensor:
    """What each output position of a convolution sees of x [B, ..., C]: [B, S, window, C].

    Gathered by one index for all examples, in less than half the time of `tf.image.extract_patches`.
    """
    size, strides, rates, padding = window
    if padding == "CAUSAL":
        x, padding = tf.pad(x, [[0, 0], [rates[0] * (size[0] - 1), 0], [0, 0]]), "VALID"
    around, index, places = [], tf.zeros([1, 1], tf.int32), 1
    for length, seen, stride, rate in zip(tf.unstack(tf.shape(x)[1:-1]), size, strides, rates, strict=True):
        reach = (seen - 1) * rate + 1
        out = (length - (1 if padding == "SAME" else reach)) // stride + 1
        more = tf.maximum((out - 1) * stride + reach - length, 0) if padding == "SAME" else tf.constant(0)
        around.append([more // 2, more - more // 2])
        own = tf.range(out)[:, None] * stride + tf.range(seen) * rate
        places *= seen
        index = tf.reshape((index * (length + more))[:, None, :, None] + own[None, :, None], [-1, places])
    if padding == "SAME":
        x = tf.pad(x, [[0, 0], *around, [0, 0]])
    count, channels = tf.shape(x)[0], x.shape[-1]
    found = tf.gather(tf.reshape(x, [count, -1, channels]), tf.reshape(index, [-1]), axis=1)
    return tf.reshape(found, [count, -1, places, channels])


def flat_patches(window: Window, x: tf.Tensor) -> tf.Tensor:
    """`patches` as [B, S, window · C]."""
    found = patches(window, x)
    return tf.reshape(found, [tf.shape(found)[0], -1, window.places * int(x.shape[-1] or 0)])


def convolution(layer: Any, watched: Watched, joined: Joined) -> list[Cover]:
    """z = patch · kernel + b; of several groups, the kernel's gradient itself."""
    if layer.data_format != "channels_last":
        return []
    shape, window, groups = sizes(layer.kernel), window_of(layer), layer.groups
    per_group, columns = shape[-2:]
    if groups == 1:
        rows = window.places * per_group

        def inputs(x: tf.Tensor) -> tf.Tensor:
            return flat_patches(window, x)

        return affine(layer.kernel, tuple(range(len(shape))), layer.bias, (0,), (rows, columns), watched, joined, inputs, positions)

    def grouped(x: tf.Tensor, g: tf.Tensor) -> tf.Tensor:
        a, e = patches(window, x), positions(g)
        a = tf.reshape(a, [tf.shape(a)[0], -1, window.places, groups, per_group])
        return tf.einsum("bskgi,bsgo->bkigo", a, tf.reshape(e, [tf.shape(e)[0], -1, groups, columns // groups]))

    return [*materialised(layer.kernel, grouped, watched), *bias_everywhere(layer.bias, watched)]


def depthwise(layer: Any, watched: Watched, joined: Joined) -> list[Cover]:
    """A kernel [..., channels, multiplier] of each channel's own."""
    if layer.data_format != "channels_last":
        return []
    of_kernel = materialised(layer.kernel, _by_channel(layer, layer.kernel, positions), watched)
    return [*of_kernel, *bias_everywhere(layer.bias, watched)]


def _by_channel(layer: Any, kernel: Any, errors: Callable[[tf.Tensor], tf.Tensor]) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    window, (channels, multiplier) = window_of(layer), sizes(kernel)[-2:]

    def gradient(x: tf.Tensor, g: tf.Tensor) -> tf.Tensor:
        e = errors(g)
        return tf.einsum("bskc,bscm->bkcm", patches(window, x), tf.reshape(e, [tf.shape(e)[0], -1, channels, multiplier]))

    return gradient


def separable(layer: Any, watched: Watched, joined: Joined) -> list[Cover]:
    """A depthwise convolution and a dense layer at each position, without an activation between them."""
    if layer.data_format != "channels_last":
        return []
    window, (channels, multiplier) = window_of(layer), sizes(layer.depthwise_kernel)[-2:]
    rows, columns = channels * multiplier, int(layer.filters)
    each = tuple(range(layer.rank + 2))

    def inputs(x: tf.Tensor) -> tf.Tensor:
        kernel = tf.reshape(tf.cast(layer.depthwise_kernel.value, x.dtype), [window.places, channels, multiplier])
        made = tf.einsum("bskc,kcm->bscm", patches(window, x), kernel)
        return tf.reshape(made, [tf.shape(made)[0], -1, rows])

    def back(g: tf.Tensor) -> tf.Tensor:
        kernel = tf.reshape(tf.cast(layer.pointwise_kernel.value, g.dtype), [rows, columns])
        return tf.matmul(positions(g), kernel, transpose_b=True)

    of_depthwise = materialised(layer.depthwise_kernel, _by_channel(layer, layer.depthwise_kernel, back), watched)
    of_pointwise = affine(layer.pointwise_kernel, each, layer.bias, (0,), (rows, columns), watched, joined, inputs, positions)
    return [*of_depthwise, *of_pointwise]


def transposed(layer: Any, watched: Watched, joined: Joined) -> list[Cover]:
    """Each position of the input adds its row of the kernel [in, window · out] to a window of the output: x ⊗ a patch of g."""
    if layer.data_format != "channels_last":
        return []
    window, (outs, ins) = window_of(layer), sizes(layer.kernel)[-2:]
    columns = window.places * outs
    axes = (layer.rank + 1, *range(layer.rank + 1))
    covers = []
    if watched(layer.kernel):

        def block(x: tf.Tensor, g: tf.Tensor) -> Factored:
            return Factored(positions(x), flat_patches(window, g))

        covers.append(Cover(((layer.kernel, axes, 0, ins),), "factored", ins, columns, block))
    return [*covers, *bias_everywhere(layer.bias, watched)]
