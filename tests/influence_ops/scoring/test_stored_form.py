"""Solved test points kept as factors give the scores of their matrices; the factors are the shortest for their error."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from beam_influence.influence_ops.curvature import FinishOptions, curvature_by_name, fit
from beam_influence.influence_ops.curvature.identity import Identity
from beam_influence.influence_ops.curvature.solved_block import Quotients, SolvedBlock
from beam_influence.influence_ops.model.gradients import BlockLayout, Factored
from beam_influence.influence_ops.scoring.contraction import Contraction
from beam_influence.influence_ops.scoring.low_rank import shortest, truncated
from beam_influence.influence_ops.scoring.query_block import QueryBlock, concatenate_queries
from beam_influence.influence_ops.scoring.scores import ScoreOptions, Scorer, embed_queries
from beam_influence.influence_ops.scoring.stored_form import FactoredSolutions, StoredForm
from beam_influence.influence_ops.scoring.turned import TurnedProducts
from tests.influence_ops.curvature.test_kronecker import data, make


def rebuilt(solutions: FactoredSolutions, blocks: tuple, size: int) -> np.ndarray:
    """[T, P] in float64, by NumPy alone."""
    flat = np.zeros((len(solutions), size))
    for block, part in zip(blocks, solutions.parts, strict=True):
        wide = [np.asarray(each, np.float64) for each in part]
        block.write(wide[0] if len(wide) == 1 else np.einsum("tri,tro->tio", *wide), flat)
    return flat


def _in_bfloat16(array: np.ndarray) -> np.ndarray:
    return array.astype(tf.bfloat16.as_numpy_dtype).astype(np.float32)


@pytest.mark.parametrize("kind", ["dense", "conv2d-strided-same", "dense-over-sequence", "embedding", "lstm"])
def test_scores_of_factors(kind: str) -> None:
    """Each way, the constant part of each gradient too, against the product of whole arrays."""
    model = make(kind)
    gradients = model.losses_and_gradients(data(model, kind))[1]
    offset = np.random.default_rng(1).standard_normal(model.size)
    gradients = dataclasses.replace(gradients, offset=offset.astype(model.dtype))
    flat = np.random.default_rng(0).standard_normal((5, model.size))
    stored = StoredForm("float32", 2, 1e-7).of(gradients.layout, flat)
    assert isinstance(stored, FactoredSolutions)
    near = rebuilt(stored, gradients.layout.blocks, model.size)
    errors = np.linalg.norm(near - flat, axis=1) / np.linalg.norm(flat, axis=1)
    assert stored.error == pytest.approx(errors.max(), rel=1e-6, abs=1e-15)
    wanted = near @ np.asarray(gradients, np.float64).T
    contraction = Contraction(gradients.layout, stored, model.dtype, 10**9, 0.0)
    np.testing.assert_allclose(contraction.scores(gradients), wanted, rtol=0, atol=1e-9 * np.abs(wanted).max())
    ways = {cost.way for cost in contraction.costs}
    assert isinstance(stored, FactoredSolutions)
    held = dataclasses.replace(stored, parts=tuple(tuple(_in_bfloat16(each) for each in part) for part in stored.parts))
    near = rebuilt(held, gradients.layout.blocks, model.size) @ np.asarray(dataclasses.replace(gradients, offset=None), np.float64).T
    near += (rebuilt(stored, gradients.layout.blocks, model.size) @ offset)[:, None]
    found = Contraction(gradients.layout, stored, "bfloat16", 10**9, 0.0).scores(gradients)
    np.testing.assert_allclose(found, near, rtol=0, atol=1e-9 * np.abs(near).max())  # sums are in the model's float64
    numbers = sum(array[0].size for part in stored.parts for array in part)
    assert numbers == StoredForm("float32", 2).numbers(gradients.layout) <= model.size
    assert (numbers < model.size) == bool(ways & {"low_rank", "rebuilt"})


def test_many_positions_are_rebuilt() -> None:
    """Where two products over all positions cost more than building the matrices once for the batch."""
    model = make("conv2d-strided-same")
    gradients = model.losses_and_gradients(data(model, "conv2d-strided-same"))[1]
    stored = StoredForm("float32", 2).of(gradients.layout, np.random.default_rng(0).standard_normal((400, model.size)))
    assert isinstance(stored, FactoredSolutions)
    contraction = Contraction(gradients.layout, stored, "bfloat16", 10**9, 0.0)
    contraction.choose(gradients)
    assert "rebuilt" in {cost.way for cost in contraction.costs}
    assert isinstance(stored, FactoredSolutions)
    held = dataclasses.replace(stored, parts=tuple(tuple(_in_bfloat16(each) for each in part) for part in stored.parts))
    wanted = rebuilt(held, gradients.layout.blocks, model.size) @ np.asarray(gradients, np.float64).T
    np.testing.assert_allclose(contraction.scores(gradients), wanted, rtol=0, atol=1e-9 * np.abs(wanted).max())


@pytest.mark.parametrize("shape", [(40, 12), (12, 40), (300, 270)])
def test_the_shortest_factors(shape: tuple[int, int]) -> None:
    """NumPy's own decomposition gives the smallest error that r products can have; a tolerance takes fewer of them."""
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((size, 12)))[0] for size in shape)
    values = 10.0 ** -np.arange(12)
    matrices = np.stack([left * values @ right.T, 3 * left * values[::-1] @ right.T])
    factors = truncated(matrices, 3, 0.0)
    error = np.linalg.norm(matrices - np.einsum("tri,tro->tio", *factors), axis=(1, 2))
    least = [np.linalg.norm(np.linalg.svd(matrix, compute_uv=False)[3:]) for matrix in matrices]
    np.testing.assert_allclose(error, least, rtol=1e-6)
    assert truncated(matrices, 8, 0.05)[0].shape[1] == 2


@pytest.mark.parametrize("shape", [(40, 12), (300, 270)])
def test_matrices_that_are_not_built(shape: tuple[int, int]) -> None:
    """Products with them, their norms, their shortest factors and how far these are, against the matrices."""
    rng = np.random.default_rng(0)
    weights = 1 / (np.outer(*(10.0 ** -np.linspace(0, 4, size) for size in shape)) + 1e-2)
    quotients = Quotients(rng.standard_normal((3, shape[0])), rng.standard_normal((3, shape[1])), weights)
    built = np.einsum("bi,bo,io->bio", quotients.left, quotients.right, weights)
    columns = rng.standard_normal((3, shape[1], 4))
    np.testing.assert_allclose(quotients.times(columns), built @ columns, rtol=1e-12, atol=1e-9)
    rows = built[1:] @ columns[1:]
    np.testing.assert_allclose(quotients[slice(1, 3)].transposed_times(rows), built[1:].transpose(0, 2, 1) @ rows, rtol=1e-9)
    found = shortest(quotients, 20, 1e-5)
    least = int(np.sum(np.linalg.svd(built, compute_uv=False).max(axis=0) > 0))
    assert found is not None and found[0].shape[1] < min(least, 20)
    distances = np.linalg.norm(built - np.einsum("bri,bro->bio", *found), axis=(1, 2)) ** 2
    assert (distances <= 1e-10 * np.linalg.norm(built, axis=(1, 2)) ** 2).all()
    side = np.linalg.qr(rng.standard_normal((shape[0], shape[0])))[0]
    solved = SolvedBlock(quotients, side)
    np.testing.assert_allclose(solved.squared_distances(*found), distances, rtol=1e-2)
    np.testing.assert_allclose(solved.turned_back(), side @ built, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["dense", "dense-over-sequence", "embedding"])
def test_solutions_by_blocks(kind: str) -> None:
    """EK-FAC's, of which no array of P numbers is made, are those of `apply`; kept whole where factors are no shorter."""
    model = make(kind)
    batch = data(model, kind)
    operator = fit(model, curvature_by_name("ekfac"), lambda: [batch], FinishOptions("auto")).bind(model)
    gradients = model.losses_and_gradients(batch)[1]
    wanted = operator.apply(np.asarray(gradients, np.float64))
    exact, coarse = StoredForm("float64", None, 1e-12, factors=True), StoredForm("float32", None, 1e-2, factors=True)
    stored = [form.of_gradients(gradients, operator) for form in (exact, coarse)]
    near = [rebuilt(each, gradients.layout.blocks, model.size) for each in stored]
    for found, of, tolerance in zip(near, stored, (1e-7, 1e-2), strict=True):
        errors = np.linalg.norm(found - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
        assert errors.max() < tolerance and of.error == pytest.approx(errors.max(), rel=1e-2, abs=5e-8)
    other = StoredForm("float32", 1).of_gradients(gradients, operator)
    both = FactoredSolutions.concatenate([stored[1], other])
    assert len(both) == 2 * len(other) and both.error == max(stored[1].error, other.error)
    first = rebuilt(both, gradients.layout.blocks, model.size)[: len(other)]
    np.testing.assert_allclose(first, near[1], rtol=0, atol=1e-6 * np.abs(near[1]).max())


@pytest.mark.parametrize(("kind", "turned"), [("dense", {0, 1}), ("dense-over-sequence", {1})])
@pytest.mark.parametrize("curvature", ["kfac", "ekfac"])
def test_unsolved_in_the_basis(curvature: str, kind: str, turned: set[int]) -> None:
    """Layers that are used at one position are not solved; scores are those of whole solutions, to rounding, also where a batch of
    training examples has more positions."""
    model = make(kind)
    batch = data(model, kind)
    operator = fit(model, curvature_by_name(curvature), lambda: [batch], FinishOptions("auto")).bind(model)
    gradients = model.losses_and_gradients(batch)[1]
    form = StoredForm("float64", points=100, is_short=True)
    assert form.numbers(gradients.layout) == model.size
    block = embed_queries(model, operator, batch, ("solved",), form)[0]
    assert block.factored is not None and set(block.factored.turned) == turned and block.factored.error < 1e-15
    assert all(part[0].shape[1] == 1 for number, part in enumerate(block.factored.parts) if number in turned)
    wanted = operator.apply(np.asarray(gradients, np.float64)) @ np.asarray(gradients, np.float64).T
    blocks = concatenate_queries([block, embed_queries(model, operator, batch, ("solved",), StoredForm("float64", 1, 1e-9))[0]], 3)
    assert [len(each) for each in blocks] == [*[3] * (len(batch) // 3), *([len(batch) % 3] if len(batch) % 3 else [])] * 2
    found = np.concatenate(Scorer(model, operator, blocks, ScoreOptions()).score(batch).scores)[: len(batch)]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12 * np.abs(wanted).max())
    (number,) = turned - {0}
    weights, layout = 1 / operator.damped(number), gradients.layout.blocks[number]  # type: ignore[attr-defined]
    left, right = (each[:3] for each in block.factored.parts[number])
    rng = np.random.default_rng(0)
    inputs, errors = rng.standard_normal((4, 2, layout.rows)), rng.standard_normal((4, 2, layout.columns))
    several = Factored(tf.constant(inputs), tf.constant(errors))
    products = TurnedProducts(layout, left, right, "float64").scores(several, tf.constant(weights)).numpy()
    wanted = np.einsum("bsi,bso,io,ti,to->bt", inputs, errors, weights, left[:, 0], right[:, 0])
    np.testing.assert_allclose(products, wanted, rtol=0, atol=1e-12 * np.abs(wanted).max())
    held, rounded = TurnedProducts(layout, left, right, "bfloat16"), [_in_bfloat16(each[:, 0]) for each in (left, right)]
    for positions in (1, 2):
        some = Factored(tf.constant(inputs[:, :positions]), tf.constant(errors[:, :positions]))
        wanted = np.einsum("bsi,bso,io,ti,to->bt", *map(np.asarray, some), weights, *rounded)
        found = held.scores(some, tf.constant(weights)).numpy()
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12 * np.abs(wanted).max())


def test_what_is_kept_unsolved() -> None:
    """By arithmetic: few training examples beside the test points, or a loose tolerance and many training examples."""
    layout = BlockLayout("dense", "factored", 1000, 1000, ())
    fits = StoredForm("float32", points=100)
    short = dataclasses.replace(fits, is_short=True, factors=True, tolerance=1e-7)
    loose = dataclasses.replace(short, tolerance=1e-3)
    kept = [form._keeps_turned(layout, examples) for form in (fits, short, loose) for examples in (10**4, 10**6)]
    assert kept == [True, False, True, True, True, False]
    assert not short._keeps_turned(BlockLayout("dense", "factored", 1000, 1, ()), 10)


def test_blocks_of_factors() -> None:
    """Cut and scored as blocks of whole solutions are."""
    model = make("dense")
    batch = data(model, "dense")
    gradients = model.losses_and_gradients(batch)[1]
    operator = fit(model, Identity(), lambda: [batch], FinishOptions("auto"))
    flat = np.asarray(gradients, np.float64)[:7]
    nothing, ids = np.zeros((7, 0)), np.array([f"t{row}" for row in range(7)], dtype=object)
    parts = []
    for rows in (slice(0, 3), slice(3, 7)):
        form = StoredForm("float32", 1).of(gradients.layout, flat[rows])
        assert isinstance(form, FactoredSolutions)
        parts.append(QueryBlock(ids[rows], nothing[rows], nothing[rows], None, form))
    blocks = concatenate_queries(parts, 2)
    assert [list(block.ids) for block in blocks] == [["t0", "t1"], ["t2", "t3"], ["t4", "t5"], ["t6"]]
    scores = np.concatenate(Scorer(model, operator, blocks, ScoreOptions()).score(batch).scores)
    wanted = flat @ np.asarray(gradients, np.float64).T
    np.testing.assert_allclose(scores, wanted, rtol=0, atol=1e-6 * np.abs(wanted).max())
