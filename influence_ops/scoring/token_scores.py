"""Influence position by position: which part of a sequence makes a pair's score.

    I(z, t) = Σ_s ⟨a_s ⊗ g_s, V⟩

For the training example a_s ⊗ g_s are its gradient's terms and V = (H + λI)⁻¹ ∇ℓ(t); for the test point they are those of ∇ℓ(t), and
V = (H + λI)⁻¹ ∇ℓ(z). A position is that of the sequence at which a layer was used (token-wise influence of Grosse et al. 2023, 2308.03296,
section 3.3, for the tokens at which activations are), not that of a term of the loss. What layers do at no position, as on a pooled
vector, is a number of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from beam_influence.influence_ops.curvature import Preconditioner
from beam_influence.influence_ops.model.evaluate import evaluate
from beam_influence.influence_ops.model.explained_model import ExplainedModel
from beam_influence.influence_ops.model.gradients.placed import PlacedGradients
from beam_influence.influence_ops.reading.example_batch import ExampleBatch
from beam_influence.influence_ops.scoring.query_block import QueryBlock
from beam_influence.influence_ops.scoring.scores import Normalize, relative_factor
from beam_influence.influence_ops.scoring.top_k import TokenScores, TopK


class Pair(NamedTuple):
    """One that a table of the best has: the key of its block of test points, and the row of the test point in it."""

    key: str
    row: int


def pairs_by_example(tables: Mapping[str, TopK]) -> dict[str, list[Pair]]:
    """Of each training example in the tables, by their keys, its pairs."""
    found: dict[str, list[Pair]] = {}
    for key, table in tables.items():
        for row, ids in enumerate(table.ids):
            for name in ids:
                found.setdefault(str(name), []).append(Pair(key, row))
    return found


def add_token_scores(
    tables: Mapping[str, TopK],
    pairs: Mapping[str, list[Pair]],
    model: ExplainedModel,
    preconditioner: Preconditioner,
    queries: Mapping[str, QueryBlock],
    batch: ExampleBatch,
    normalize: Normalize = "none",
) -> None:
    """Adds to the tables, by their keys, the scores by position of the batch's examples that are among the pairs.

    Args:
      preconditioner: bound to the model.
      queries: blocks of test points by key, with their solutions and their gradients position by position.
    """
    batch = batch.select(np.array([str(name) in pairs for name in batch.ids], dtype=bool))
    if not len(batch):
        return
    batch, _, gradients, _ = evaluate(model, batch)
    layout, placed = gradients.layout, model.placed_gradients(batch)
    offset = model.regularizer_gradient() if model.regularizer == "loss" else None
    for row, name in enumerate(map(str, batch.ids)):
        gradient = np.asarray(gradients.select(np.array([row])), dtype=np.float64)
        vector = preconditioner.apply(gradient)
        factor = float(relative_factor(normalize, 1, vector, np.einsum("bp,bp->b", gradient, vector))[0])
        solved = [block.matrices(vector)[0] for block in layout.blocks]
        for key, test_row in pairs[name]:
            query = queries[key]
            assert query.placed is not None
            solution = query.solution(layout, test_row)
            own, own_unplaced = placed.products(row, solution)
            test, test_unplaced = query.placed.products(test_row, solved)
            if offset is not None:
                parts = [block.matrices(offset[None])[0] for block in layout.blocks]
                own_unplaced += _product(parts, solution)
                test_unplaced += _product(parts, solved)
            tables[key].add_tokens(test_row, name, TokenScores(own * factor, test * factor, own_unplaced * factor, test_unplaced * factor))


def _product(one: Iterable[np.ndarray], other: Iterable[np.ndarray]) -> float:
    return float(sum(np.vdot(a, b) for a, b in zip(one, other, strict=True)))


def token_bytes(train: PlacedGradients, test: PlacedGradients, top_k: int) -> int:
    """What the scores of a test point's pairs take."""
    return 8 * top_k * (train.length + test.length + 2)
