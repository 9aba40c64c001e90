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
from beam_influence.influence_ops.model.gradients import Block, Gradients
from beam_influence.influence_ops.model.influence_model import InfluenceModel
from beam_influence.influence_ops.reading.example_batch import ExampleBatch
from beam_influence.influence_ops.settings import Fisher
from beam_influence.influence_ops.types import Float64Vector

MAX_OUTPUTS = 256
"""The largest output for which ∂²ℓ/∂z² of a loss without a known likelihood is decomposed, example by example."""


def fisher_blocks(model: ExplainedModel, batch: ExampleBatch, fisher: Fisher, seed: int) -> Iterator[tuple[Block, ...]]:
    """Gradients as blocks, without the examples' weights, whose outer products sum to a Fisher matrix of the batch.

    Raises:
      ValueError: the loss has no known likelihood, and too many outputs for the general way.
    """
    for draws in zip(*(_blocks_of_one(part, batch, fisher, seed) for part in model.parts), strict=True):
        yield tuple(block for draw in draws for block in draw)


def blocks_with_losses(
    model: ExplainedModel, batch: ExampleBatch, fisher: Fisher, seed: int
) -> tuple[Float64Vector, Gradients, tuple[Block, ...]] | None:
    """`losses_and_gradients` and the only draw of `fisher_blocks` by one pass forward; None where that is not how they are found."""
    if not isinstance(model, InfluenceModel):
        return None
    if fisher == "empirical":
        if batch.weights is not None:  # they are on the gradients, and not on the draw
            return None
        losses, gradients = model.losses_and_gradients(batch)
        return losses, gradients, gradients.blocks
    if fisher == "expected" or model.likelihood is None:
        return None
    return model.losses_gradients_and_fisher(batch, *_numbers(model, batch, fisher, seed))


def _numbers(model: InfluenceModel, batch: ExampleBatch, fisher: Fisher, seed: int) -> tuple[np.ndarray, bool]:
    """What gives the directions of a loss with a likelihood (`ExampleLoss.fisher_directions`), and whether it draws labels."""
    shape = model.output_shape(batch)
    if fisher == "true":
        return uniform(batch.ids, seed, math.prod(shape[:-1] if model.likelihood == "categorical" else shape)), True
    return np.where(uniform(batch.ids, seed, math.prod(shape)) < 0.5, -1.0, 1.0), False


def _blocks_of_one(model: InfluenceModel, batch: ExampleBatch, fisher: Fisher, seed: int) -> Iterator[tuple[Block, ...]]:
    if fisher == "empirical":
        yield model.loss_blocks(batch)
        return
    if fisher != "expected" and model.likelihood is not None:
        yield model.fisher_blocks(batch, *_numbers(model, batch, fisher, seed))
        return
    if fisher == "true":
        raise ValueError(
            "--fisher true draws labels from the model's prediction, and what distribution this loss is of is not known; use --fisher "
            "signed, whose expectation is the same"
        )
    shape = model.output_shape(batch)
    size = math.prod(shape)
    if fisher == "expected":
        draws = (np.broadcast_to(column, (len(batch), size)) for column in np.eye(size))
    else:
        draws = iter([np.where(uniform(batch.ids, seed, size) < 0.5, -1.0, 1.0)])
    if model.likelihood is not None:
        for vectors in draws:
            yield model.fisher_blocks(batch, vectors, drawn=False)
        return
    if size > MAX_OUTPUTS:
        raise ValueError(
            f"the {fisher} Fisher of a loss without a known likelihood decomposes a matrix of {size} × {size} outputs for each "
            f"example, more than {MAX_OUTPUTS}; use --fisher empirical, or a loss with one: Keras's cross-entropies or its squared error"
        )
    roots = model.output_curvature_root(batch)
    for vectors in draws:
        along = tf.einsum("bij,bj->bi", roots, tf.constant(vectors, roots.dtype))
        yield model.output_blocks(batch, tf.reshape(along, [len(batch), *shape]))


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
