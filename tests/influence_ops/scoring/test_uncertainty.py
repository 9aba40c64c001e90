"""Standard errors from one run: their intervals hold the exact answer, and they are the jackknife that they say they are, in NumPy."""

from __future__ import annotations

import functools
from typing import Any

import keras
import numpy as np
import pyarrow as pa
import pytest
from sklearn.datasets import load_digits

from beam_influence.influence_ops.curvature import curvature_by_name
from beam_influence.influence_ops.curvature.deleted_rows import BLOCKS, DeletedRows
from beam_influence.influence_ops.ensemble.intervals import interval_factor
from beam_influence.influence_ops.model.influence_model import InfluenceModel
from beam_influence.influence_ops.reading.example_batch import ExampleBatch
from beam_influence.influence_ops.scoring.in_memory import compute_in_memory
from beam_influence.influence_ops.scoring.ranking import Order
from beam_influence.influence_ops.scoring.scores import ScoreOptions
from beam_influence.influence_ops.scoring.top_k import TopK

TRAIN, TEST, K = 300, 30, 5
DAMPING = 0.002


@functools.cache
def softmax() -> tuple[InfluenceModel, list[ExampleBatch], ExampleBatch]:
    """Softmax regression on digits after some steps, P = 650."""
    data: Any = load_digits()  # a Bunch, whose attributes its type does not tell
    rows = np.random.default_rng(0).permutation(len(data.data))[: TRAIN + TEST]
    x, y = data.data[rows] / 16, data.target[rows]
    weights, bias = np.zeros((64, 10)), np.zeros(10)
    for _ in range(60):
        wrong = np.exp(x[:TRAIN] @ weights + bias)
        wrong = wrong / wrong.sum(axis=1, keepdims=True) - np.eye(10)[y[:TRAIN]]
        weights, bias = weights - 0.5 * x[:TRAIN].T @ wrong / TRAIN, bias - 0.5 * wrong.mean(axis=0)
    inputs = keras.Input((64,), dtype="float64")
    network = keras.Model(inputs, keras.layers.Dense(10, dtype="float64")(inputs))
    network.set_weights([weights, bias])
    ids = np.array([f"{row:03d}" for row in range(TRAIN + TEST)], object)
    train = [ExampleBatch(ids[part], x[part], y[part]) for part in np.array_split(np.arange(TRAIN), 3)]
    model = InfluenceModel(network, loss_function="softmax_cross_entropy", weights="all", weight_decay=1e-3)
    return model, train, ExampleBatch(ids[TRAIN:], x[TRAIN:], y[TRAIN:])


@functools.cache
def exact() -> np.ndarray:
    """Influence by the whole matrix: [TRAIN, TEST]."""
    model, train, test = softmax()
    matrix = sum(model.gauss_newton_products(batch, np.eye(model.size)) for batch in train) / TRAIN + 1e-3 * np.eye(model.size)
    gradients = np.concatenate([np.asarray(model.losses_and_gradients(batch)[1], np.float64) for batch in train])
    right = np.asarray(model.losses_and_gradients(test)[1], np.float64)
    return gradients @ np.linalg.solve(matrix + DAMPING * np.eye(model.size), right.T)


def tables(name: str, passes: int = 0, **settings: object) -> dict[str, pa.Table]:
    model, train, test = softmax()
    curvature = curvature_by_name(name, settings=settings)
    how: dict[str, Any] = {"outputs": ("scores", "top_k"), "top_k": K, "damping": DAMPING, "passes": passes, "uncertainty": True}
    return compute_in_memory(model, curvature, train, [test], **how).tables


@pytest.mark.parametrize(
    ("name", "passes", "settings"),
    [
        ("random_projection", 0, {"projection_dim": 100}),
        ("gauss_newton_cg", 1, {}),
        ("gauss_newton_cg", 3, {}),
    ],
    ids=["hadamard", "cg-1", "cg-3"],
)
def test_intervals_hold_the_exact_answer(name: str, passes: int, settings: dict[str, object]) -> None:
    """At least 85 % of 90 % intervals do, and fewer would if they were an eighth as wide: they are no empty promise."""
    found = tables(name, passes, **settings)
    scores, best = found["scores"], found["top_k"]
    factor = interval_factor(curvature_by_name(name, settings=settings).error_draws)
    away = np.abs(scores["influence"].to_numpy().reshape(TRAIN, TEST) - exact())
    error = scores["standard_error"].to_numpy().reshape(TRAIN, TEST)
    assert np.corrcoef(scores["influence"].to_numpy(), exact().ravel())[0, 1] < 0.9999  # there is an error to be told
    assert (away <= factor * error).mean() > 0.85
    assert (away <= factor / 8 * error).mean() < 0.85
    trains, tests = (best[name].to_numpy().astype(int) - first for name, first in (("train_id", 0), ("test_id", TRAIN)))
    away = np.abs(best["influence"].to_numpy() - exact()[trains, tests])
    assert (away <= factor * best["standard_error"].to_numpy()).mean() > 0.85


def test_stable_rows_are_those_of_the_scores() -> None:
    found = tables("random_projection", projection_dim=400)
    scores, errors = (found["scores"][name].to_numpy().reshape(TRAIN, TEST) for name in ("influence", "standard_error"))
    order = np.argsort(-scores, axis=0)
    first, after = order[:K], np.take_along_axis(scores, order[K : K + 1], axis=0)
    low = np.take_along_axis(scores - interval_factor(BLOCKS) * errors, first, axis=0)
    best = found["top_k"]
    assert best["train_id"].to_numpy().astype(int).reshape(TEST, K).T.tolist() == first.tolist()
    assert (best["stable"].to_numpy().reshape(TEST, K).T == (low > after)).all() and 0 < best["stable"].to_numpy().sum() < K * TEST
    assert np.allclose(best["standard_error"].to_numpy().reshape(TEST, K).T, np.take_along_axis(errors, first, axis=0), rtol=1e-12)


def test_candidates_have_errors_too() -> None:
    model, train, test = softmax()
    curvature = curvature_by_name("random_projection", settings={"projection_dim": 100})
    how: dict[str, Any] = {"damping": DAMPING, "uncertainty": True, "candidates": train[:1], "top_k": 2}
    found = compute_in_memory(model, curvature, train, [test], **how).tables["top_k"]
    assert found.schema.names == ["test_id", "rank", "candidate_id", "influence", "loss_change_if_added", "standard_error", "stable"]
    assert (found["standard_error"].to_numpy() > 0).all()


def test_it_is_the_jackknife() -> None:
    """Against the matrices without each block's rows, inverted one by one: k = 21 does not fall into 8 equal blocks."""
    size, penalty, damping = 21, 0.3, 0.2
    random = np.random.default_rng(0)
    root = random.normal(size=(size, 60))
    of_data = root @ root.T / 60
    values, vectors = np.linalg.eigh(of_data + penalty * np.eye(size))
    queries, gradient = random.normal(size=(3, size)), random.normal(size=size)
    blocks = np.array_split(np.random.default_rng([4, size, BLOCKS]).permutation(size), BLOCKS)
    answers = []
    for block in blocks:
        kept = np.setdiff1d(np.arange(size), block)
        scale = size / len(kept)
        matrix = scale * of_data[np.ix_(kept, kept)] + (penalty + damping) * np.eye(len(kept))
        answers.append(scale * queries[:, kept] @ np.linalg.solve(matrix, gradient[kept]))
    mean, inverse = np.mean(answers, axis=0), np.linalg.inv(of_data + (penalty + damping) * np.eye(size))
    variance = (BLOCKS - 1) / BLOCKS * np.sum((answers - mean) ** 2, axis=0)
    bias = (BLOCKS - 1) * (mean - queries @ inverse @ gradient)
    wanted = np.sqrt(variance + bias**2 / (1 - np.trace(of_data @ inverse) / size))
    found = DeletedRows(vectors, values, penalty, damping, 4).error_vectors(queries)
    np.testing.assert_allclose(np.linalg.norm(found @ gradient, axis=1), wanted, rtol=1e-10)


@pytest.mark.parametrize("order", ["descending", "ascending"])
def test_errors_stay_with_their_scores(order: Order) -> None:
    """Over any split: also a part of no example, and batches that beat nothing."""
    random = np.random.default_rng(0)
    scores, ids = random.normal(size=(4, 60)), np.array([f"{row:02d}" for row in range(60)], object)
    errors = 0.05 * scores**2
    tops = [TopK(4, K + 1, order) for _ in range(3)]
    for place, part in enumerate(np.array_split(random.permutation(60), 9)):
        tops[place % 2].add(scores[:, part], ids[part], errors[:, part])
    tops[2].merge(tops[0])
    tops[2].merge(TopK(4, K + 1, order))
    tops[2].merge(tops[1])
    top, stable = tops[2].without_last(2.0)
    assert top.errors is not None and top.values.shape == (4, K)
    assert np.array_equal(top.errors, 0.05 * top.values**2)
    sign = 1 if order == "descending" else -1
    after = np.sort(sign * scores, axis=1)[:, -K - 1, None]
    assert (stable == (sign * top.values - 2 * top.errors > after)).all() and stable.any() and not stable.all()
    few = TopK(1, K + 1, order)
    few.add(np.ones((1, K)), ids[:K], np.ones((1, K)))
    assert few.without_last(9.0)[1].all()  # there is none that could take a row's place


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ekfac", {}, "the error of --curvature ekfac is not known from one run; use .* beam-influence ensemble"),
        ("gauss_newton_cg", {"passes": 0}, "without passes is EK-FAC, whose error is not known; use --passes 1 or more"),
        ("random_projection", {"projection_dim": 650}, "a projection to as many numbers as there are weights.* 650 weights are watched"),
        ("random_projection", {"projection": "two_sided"}, "not independent, so that its error is not known; use hadamard"),
        ("random_projection", {"projection": "sjlt"}, "rows of --projection sjlt are not independent"),
        ("gauss_newton_cg", {"passes": 4}, "after --passes 4 what is left to solve is where EK-FAC is wrong"),
        ("random_projection", {"fisher": "true"}, "--fisher true draws labels"),
        ("random_projection", {"projection_dim": 7}, "the error of --projection_dim 7 can't be told; use 8 or more"),
        ("random_projection", {"outputs": ("self_influence",)}, "uncertainty is of single scores, in the tables top_k and scores, not of"),
        ("random_projection", {"options": ScoreOptions(normalize="loss")}, "the error of normalize is not known"),
        ("random_projection", {"damping": 0.0, "weight_decay": 0.0}, "can be told with a --damping above 0 alone"),
    ],
)
def test_what_has_no_known_error_is_refused(name: str, options: dict[str, Any], message: str) -> None:
    model, train, test = softmax()
    settings = {key: options.pop(key) for key in ("projection_dim", "projection", "fisher") if key in options}
    if options.pop("weight_decay", None) is not None:
        model = InfluenceModel(model.model, loss_function="softmax_cross_entropy", weights="all")
        settings["projection_dim"] = 16
    with pytest.raises(ValueError, match=message):
        compute_in_memory(model, curvature_by_name(name, settings=settings), train, [test], uncertainty=True, **options)
