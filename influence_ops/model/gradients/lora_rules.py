"""Rules of LoRA: a kernel W + s A B whose factors alone are trained (Hu et al. 2021, 2106.09685).

With G = Σ a ⊗ g the gradient of the whole kernel, that of A is s G Bᵀ = Σ a ⊗ s B g, and that of B is s Aᵀ G = Σ s Aᵀ a ⊗ g.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from beam_influence.influence_ops.model.gradients.blocks import Block, Factored, OneHot
from beam_influence.influence_ops.model.gradients.cover import Cover, Watched, positions, sizes


def low_rank_kernel(
    layer: Any,
    contracted: tuple[int, ...],
    watched: Watched,
    inputs: Callable[[tf.Tensor], tf.Tensor],
    errors: Callable[[tf.Tensor], tf.Tensor],
) -> list[Cover]:
    """A [..., r] and B [r, E] of a kernel [..., E], from a [B, S, I] and g [B, S, O] as the whole kernel has them.

    Args:
      contracted: the kernel's axes that make I; the others, in order and the last among them, make O.
    """
    a, b = layer.lora_kernel_a, layer.lora_kernel_b
    shape, (rank, last), scale = sizes(a), sizes(b), layer.lora_alpha / layer.lora_rank
    others = tuple(axis for axis in range(len(shape) - 1) if axis not in contracted)
    rows, middle = (math.prod(shape[axis] for axis in axes) for axes in (contracted, others))

    def apart(g: tf.Tensor) -> tf.Tensor:
        return tf.reshape(errors(g), [tf.shape(g)[0], -1, middle, last])

    def of_a(x: tf.Tensor, g: tf.Tensor) -> Block:
        found = scale * tf.einsum("bsme,re->bsmr", apart(g), tf.cast(b.value, g.dtype))
        return Factored(inputs(x), tf.reshape(found, [tf.shape(g)[0], -1, middle * rank]))

    def of_b(x: tf.Tensor, g: tf.Tensor) -> Block:
        factor = tf.reshape(tf.transpose(tf.cast(a.value, x.dtype), [*contracted, *others, len(shape) - 1]), [rows, middle, rank])
        found = scale * tf.einsum("bsi,imr->bsmr", inputs(x), factor)  # a position for each of the others
        count = tf.shape(g)[0]
        return Factored(tf.reshape(found, [count, -1, rank]), tf.reshape(apart(g), [count, -1, last]))

    covers = []
    if watched(a):
        pieces = ((a, (*contracted, *others, len(shape) - 1), 0, rows),)
        covers.append(Cover(pieces, "factored", rows, middle * rank, of_a))
    if watched(b):
        covers.append(Cover(((b, (0, 1), 0, rank),), "factored", rank, last, of_b))
    return covers


def low_rank_table(layer: Any, watched: Watched) -> list[Cover]:
    """A [I, r] and B [r, O] of an embedding's table."""
    a, b, scale = layer.lora_embeddings_a, layer.lora_embeddings_b, layer.lora_alpha / layer.lora_rank
    (rows, rank), columns = sizes(a), sizes(b)[1]

    def ids(x: tf.Tensor) -> tf.Tensor:
        return tf.reshape(tf.cast(x, tf.int32), [tf.shape(x)[0], -1])

    def of_a(x: tf.Tensor, g: tf.Tensor) -> Block:
        return OneHot(ids(x), scale * tf.matmul(positions(g), tf.cast(b.value, g.dtype), transpose_b=True))

    def of_b(x: tf.Tensor, g: tf.Tensor) -> Block:
        return Factored(scale * tf.gather(tf.cast(a.value, g.dtype), ids(x)), positions(g))

    covers = []
    if watched(a):
        covers.append(Cover(((a, (0, 1), 0, rows),), "one_hot", rows, rank, of_a))
    if watched(b):
        covers.append(Cover(((b, (0, 1), 0, rank),), "factored", rank, columns, of_b))
    return covers
