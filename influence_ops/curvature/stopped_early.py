"""Was training stopped early? What the trained model and some of its training examples tell of it, and the damping that follows.

Training that ends before the loss is at its minimum leaves a mean gradient ∇L(θ) ≠ 0. Stopping early acts as a penalty ½ λ ‖θ − θ₀‖² on the
way from the first weights θ₀ (Bishop 1995, Neural Networks for Pattern Recognition, section 9.2.4): at the end ∇L(θ) + λ (θ − θ₀) = 0,
so λ = ‖∇L(θ)‖ / ‖θ − θ₀‖. θ₀ is not known; ‖θ − θ₀‖ is taken as a third of ‖θ‖. Retraining has that penalty too, so H + λI is what it
answers with: a smaller λ counts on directions in which training has hardly moved.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from beam_influence.influence_ops.curvature.cholesky import AUTO_FRACTION
from beam_influence.influence_ops.curvature.kronecker import squared_sum
from beam_influence.influence_ops.model.explained_model import ExplainedModel
from beam_influence.influence_ops.model.fisher import fisher_blocks
from beam_influence.influence_ops.model.gradients import Block
from beam_influence.influence_ops.model.influence_model import InfluenceModel
from beam_influence.influence_ops.reading.example_batch import ExampleBatch

MOVED = 1 / 3
"""‖θ − θ₀‖ / ‖θ‖, as it is taken."""
EARLY = 38.0
"""Where λ of stopping early is so many times the λ of `auto`, training counts as stopped early, far from a minimum."""


class TrainingEnd(NamedTuple):
    """What the end of training tells of λ.

    Attributes:
      damping: λ = ‖∇L(θ)‖ / ‖θ − θ₀‖; 0 where training has ended at a minimum, or some examples can't tell.
      automatic: 0.1 × the mean eigenvalue of the Gauss–Newton matrix, as estimated: λ of `--damping auto`.
      examples: how many were looked at.
    """

    damping: float
    automatic: float
    examples: int

    @property
    def is_early(self) -> bool:
        """Whether training counts as stopped early, far from a minimum."""
        return self.damping > EARLY * self.automatic


def training_end(model: ExplainedModel, batches: Sequence[ExampleBatch], is_whole: bool, seed: int = 0) -> TrainingEnd:
    """Looks at some training examples.

    Args:
      model: the trained model.
      batches: of training examples; what differs between them is noise, which is taken out of ‖∇L‖².
      is_whole: whether they are the whole training set, whose mean gradient has no noise.
      seed: of the signs that estimate the trace.
    """
    sizes = np.array([len(batch) for batch in batches])
    total, with_itself = np.zeros(model.size), 0.0
    for batch in batches:
        summed = np.concatenate([_summed_gradient(part, batch) for part in model.parts])
        total += summed
        with_itself += float(summed @ summed)
    # The inner product of different batches' mean gradients is ‖∇L‖² in expectation; that of one with itself has its noise besides.
    pairs, squared = sizes.sum() ** 2, float(total @ total)
    if not is_whole:
        pairs, squared = pairs - (sizes**2).sum(), squared - with_itself
    norm = float(np.linalg.norm(model.parameters()))
    damping = float(np.sqrt(max(squared, 0.0) / pairs)) / (MOVED * norm) if norm and pairs else 0.0
    return TrainingEnd(damping, AUTO_FRACTION * mean_eigenvalue(model, batches, seed), int(sizes.sum()))


def _summed_gradient(part: InfluenceModel, batch: ExampleBatch) -> np.ndarray:
    """Σ_i ∇(ℓ(z_i) + R) of one checkpoint, without its weight: [P]."""
    summed = np.asarray(part.losses_and_gradients(batch)[1].total(), dtype=np.float64)
    return summed if part.regularizer == "loss" else summed + len(batch) * part.regularizer_gradient()  # "loss": it is in each already


def mean_eigenvalue(model: ExplainedModel, batches: Iterable[ExampleBatch], seed: int) -> float:
    """trace(H)/P of the Gauss–Newton matrix and the regulariser, from one draw of the Fisher information of each example."""
    squares, count = 0.0, 0
    for batch in batches:
        layouts, weights = model.layout(batch.inputs).blocks, model.curvature_weights(batch)
        for blocks in _fisher_blocks(model, batch, seed):
            squares += sum(float(tf.reduce_sum(squared_sum(*pair, weights, len(batch)))) for pair in zip(layouts, blocks, strict=True))
        count += len(batch)
    penalties = zip(model.block_penalties(), model.layout().blocks, strict=True)
    return (squares / count + sum(penalty * layout.size for penalty, layout in penalties)) / model.size


def _fisher_blocks(model: ExplainedModel, batch: ExampleBatch, seed: int) -> list[tuple[Block, ...]]:
    try:
        return list(fisher_blocks(model, batch, "signed", seed))
    except ValueError:  # a loss without a known likelihood, of many outputs: the data's own labels are near enough for a mean
        return list(fisher_blocks(model, batch, "empirical", seed))
