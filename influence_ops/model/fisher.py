"""Directions along the outputs whose gradients have the Fisher information as their second moment.

The Fisher information of an example is Jᵀ R Rᵀ J with R Rᵀ = ∂²ℓ/∂z², the covariance of ∂ℓ/∂z over the labels that the model
predicts (Martens 2020, section 9.2). Four ways to take the expectation:

    signed     J ᵀ R ξ with a random sign ξ for each column of R: every label takes part, weighed by its probability
    true       one label drawn from the model's own prediction; where a model is sure, nearly all draws are the same label, and the
               estimate is noisy
    expected   each column of R by itself: no noise, and as many backward passes as the model has outputs
    empirical  the label that the data has: not the Fisher information, but its usual stand-in

Signs and labels depend on the example's id and a seed alone.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from beam_influence.influence_ops.model.explained_model import ExplainedModel
from beam_influence.influence_ops.model.gradients import Block
from beam_influence.influence_ops.model.influence_model import InfluenceModel
from beam_influence.influence_ops.reading.example_batch import ExampleBatch
from beam_influence.influence_ops.settings import Fisher

MAX_OUTPUTS = 256
"""The largest output for which ∂²ℓ/∂z² of a loss without a known likelihood is decomposed, example by example."""


def fisher_blocks(model: ExplainedModel, batch: ExampleBatch, fisher: Fisher, seed: int) -> Iterator[tuple[Block, ...]]:
    """Gradients as blocks, without the examples' weights, whose outer products sum to a Fisher matrix of the batch.

    Raises:
      ValueError: the loss has no known likelihood, and too many outputs for the general way.
    """
    for draws in zip(*(_blocks_of_one(part, batch, fisher, seed) for part in model.parts), strict=True):
        yield tuple(block for draw in draws for block in draw)


def _blocks_of_one(model: InfluenceModel, batch: ExampleBatch, fisher: Fisher, seed: int) -> Iterator[tuple[Block, ...]]:
    if fisher == "empirical":
        yield model.loss_blocks(batch)
        return
    outputs = model.packed_outputs(batch)
    shape = outputs.numpy().shape
    size = math.prod(shape[1:])
    root = _Root(model, batch, outputs, fisher)
    if fisher == "expected":
        for column in range(size):
            yield model.output_blocks(batch, root.times(tf.one_hot(tf.fill([len(batch)], column), size, dtype=outputs.dtype)))
    elif fisher == "true" and model.likelihood is not None:
        drawn = uniform(batch.ids, seed, math.prod(shape[1:-1] if model.likelihood == "categorical" else shape[1:]))
        yield model.output_blocks(batch, _drawn_errors(model.likelihood, outputs, drawn) * root.scale)
    else:
        signs = np.where(uniform(batch.ids, seed, size) < 0.5, -1.0, 1.0)
        yield model.output_blocks(batch, root.times(tf.constant(signs, outputs.dtype)))


class _Root:
    """R of a batch: in closed form for a known likelihood, else by an eigendecomposition for each example.

    Attributes:
      scale: with a likelihood: the root of each position's weight in the example's loss.
    """

    def __init__(self, model: InfluenceModel, batch: ExampleBatch, outputs: tf.Tensor, fisher: str):
        self._outputs = outputs
        self._likelihood = model.likelihood
        self._roots = None
        size = math.prod(outputs.numpy().shape[1:])
        if self._likelihood is None and size > MAX_OUTPUTS:
            raise ValueError(
                f"the {fisher} Fisher of a loss without a known likelihood decomposes a matrix of {size} × {size} outputs for each "
                f"example, more than {MAX_OUTPUTS}; use --fisher empirical, or --loss softmax_cross_entropy where that is the loss"
            )
        if self._likelihood is None:
            self._roots = model.output_curvature_root(batch)
        else:
            scale = tf.sqrt(tf.maximum(model.position_weights(batch), 0))
            self.scale = tf.reshape(scale, [*tf.unstack(tf.shape(scale)), *[1] * (outputs.shape.rank - scale.shape.rank)])

    def times(self, vectors: tf.Tensor) -> tf.Tensor:
        """R v for v [B, C], in the shape of the outputs."""
        if self._roots is not None:
            return tf.reshape(tf.einsum("bij,bj->bi", self._roots, vectors), tf.shape(self._outputs))
        vectors = tf.reshape(vectors, tf.shape(self._outputs))
        if self._likelihood == "bernoulli":
            p = tf.sigmoid(self._outputs)
            return self.scale * vectors * tf.sqrt(p * (1 - p))
        # (diag(√p) − p √pᵀ)(diag(√p) − p √pᵀ)ᵀ = diag(p) − p pᵀ, the Hessian of the softmax cross-entropy.
        p = tf.nn.softmax(self._outputs)
        weighted = tf.sqrt(p) * vectors
        return self.scale * (weighted - p * tf.reduce_sum(weighted, axis=-1, keepdims=True))


def _drawn_errors(likelihood: str, outputs: tf.Tensor, drawn: np.ndarray) -> tf.Tensor:
    """∂ℓ/∂z at labels drawn from the prediction: p − e_y, or p − y."""
    numbers = tf.constant(drawn, outputs.dtype)
    if likelihood == "bernoulli":
        p = tf.sigmoid(outputs)
        return p - tf.cast(tf.reshape(numbers, tf.shape(p)) < p, p.dtype)
    p = tf.nn.softmax(outputs)
    below = tf.cumsum(p, axis=-1) <= tf.reshape(numbers, [*tf.unstack(tf.shape(p))[:-1], 1])
    labels = tf.minimum(tf.reduce_sum(tf.cast(below, tf.int32), axis=-1), tf.shape(p)[-1] - 1)
    return p - tf.one_hot(labels, tf.shape(p)[-1], dtype=p.dtype)


def uniform(ids: Any, seed: int, count: int) -> np.ndarray:
    """[B, count] numbers in [0, 1), each row by its example's id and the seed alone."""
    first = np.array(
        [int.from_bytes(hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest(), "little") for name in ids], dtype=np.uint64
    )
    with np.errstate(over="ignore"):  # splitmix64 (Steele, Lea & Flood 2014) wraps around
        x = first[:, None] + np.arange(1, count + 1, dtype=np.uint64)[None] * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((x ^ (x >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) * 2.0**-53
