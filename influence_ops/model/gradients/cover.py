"""What a layer rule gives: the blocks that it covers, and how each is computed from one call of the layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from beam_influence.influence_ops.model.gradients.blocks import Block, Factored, Materialised

WHOLE = 1024
"""A materialised block of at most so many weights is one row, whose second moment is whole; a larger one is a matrix."""


@dataclasses.dataclass(frozen=True)
class Cover:
    """One block of a layer.

    Attributes:
      variables: (variable, axes, first row, rows): see `Piece`.
      kind, rows, columns: see `BlockLayout`.
      block: (x, g) of one call -> the block; x is the layer's input, or what its recorder gives (`recorded`).
      at_positions: the same as Σ_s 1 ⊗ g_s, of a block of one row that is a sum over positions.
    """

    variables: tuple[tuple[Any, tuple[int, ...], int, int], ...]
    kind: str
    rows: int
    columns: int
    block: Callable[[Any, tf.Tensor], Block]
    at_positions: Callable[[Any, tf.Tensor], Factored] | None = None


Watched = Callable[[Any], bool]
"""Whether a variable (or None) is watched."""

Joined = Callable[[Any, Any], bool]
"""Whether two variables' regularisers allow them to be rows of one matrix."""

Rule = Callable[[Any, Watched, Joined], list[Cover]]


def sizes(variable: Any) -> tuple[int, ...]:
    """A variable's shape."""
    return tuple(int(size) for size in variable.shape)


def positions(tensor: tf.Tensor) -> tf.Tensor:
    """[B, ..., D] -> [B, S, D]."""
    return tf.reshape(tensor, [tf.shape(tensor)[0], -1, tensor.shape[-1]])


def with_one(inputs: tf.Tensor) -> tf.Tensor:
    """a [B, S, I] with a 1 for the bias: [B, S, I + 1]."""
    return tf.concat([inputs, tf.ones_like(inputs[:, :, :1])], axis=2)


def summed(variable: Any, axes: tuple[int, ...], values: Callable[[Any, tf.Tensor], tf.Tensor]) -> Cover:
    """A variable as a block of one row, whose gradient is the sum of `values` [B, S, n] over positions."""
    columns = 1
    for length in sizes(variable):
        columns *= length

    def block(x: Any, g: tf.Tensor) -> Block:
        return Materialised(tf.reduce_sum(values(x, g), axis=1)[:, None, :])

    def at_positions(x: Any, g: tf.Tensor) -> Factored:
        found = values(x, g)
        return Factored(tf.ones_like(found[:, :, :1]), found)

    return Cover(((variable, axes, 0, 1),), "materialised", 1, columns, block, at_positions)


def affine(
    kernel: Any,
    kernel_axes: tuple[int, ...],
    bias: Any,
    bias_axes: tuple[int, ...],
    shape: tuple[int, int],
    watched: Watched,
    joined: Joined,
    inputs: Callable[[tf.Tensor], tf.Tensor],
    errors: Callable[[tf.Tensor], tf.Tensor],
) -> list[Cover]:
    """Kernel and bias of z = a W + b at every position, from a [B, S, I] and g [B, S, O]."""
    rows, columns = shape
    has_kernel, has_bias = watched(kernel), watched(bias)
    of_kernel = (kernel, kernel_axes, 0, rows)
    if has_kernel and has_bias and joined(kernel, bias):
        variables = (of_kernel, (bias, bias_axes, rows, 1))
        return [Cover(variables, "factored", rows + 1, columns, lambda x, g: Factored(with_one(inputs(x)), errors(g)))]
    covers = []
    if has_kernel:
        covers.append(Cover((of_kernel,), "factored", rows, columns, lambda x, g: Factored(inputs(x), errors(g))))
    if has_bias:
        covers.append(summed(bias, bias_axes, lambda x, g: errors(g)))
    return covers


def materialised(variable: Any, gradient: Callable[[Any, tf.Tensor], tf.Tensor], watched: Watched) -> list[Cover]:
    """A variable whose gradient of each example, of any shape [B, ...], is cheap to build; a large one is a matrix by its first axes.

    A kernel [..., channels, multiplier] of each channel's own has its windows as rows.
    """
    if not watched(variable):
        return []
    shape = sizes(variable)
    size = 1
    for length in shape:
        size *= length
    rows = 1
    if size > WHOLE:
        for length in shape[:-2] if len(shape) > 2 else shape[:-1]:
            rows *= length

    def block(x: Any, g: tf.Tensor) -> Block:
        found = gradient(x, g)
        return Materialised(tf.reshape(found, [tf.shape(found)[0], rows, size // rows]))

    return [Cover(((variable, tuple(range(len(shape))), 0, rows),), "materialised", rows, size // rows, block)]


def bias_everywhere(bias: Any, watched: Watched) -> list[Cover]:
    """A bias [O] that is added at every position."""
    return [summed(bias, (0,), lambda x, g: positions(g))] if watched(bias) else []
