"""Top-k tables against a brute-force sort, in every order of arrival, split and merge."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import tensorflow as tf

from beam_influence.influence_ops.scoring import top_k, top_k_on_device
from beam_influence.influence_ops.scoring.ranking import Order, ranking_key
from beam_influence.influence_ops.scoring.top_k import TopK

ORDERS: tuple[Order, ...] = ("descending", "ascending")


def brute_force(scores: np.ndarray, ids: np.ndarray, k: int, order: Order) -> tuple[list[list[float]], list[list[str]]]:
    """Values and ids of each row of [T, N], sorted by (key, id)."""
    sign = -1 if order == "descending" else 1
    values, names = [], []
    for row in scores:
        keys = sign * ranking_key(row)
        chosen = sorted(range(len(ids)), key=lambda i, keys=keys: (keys[i], ids[i]))[:k]
        values.append([row[i] for i in chosen])
        names.append([ids[i] for i in chosen])
    return values, names


def table_of(scores: np.ndarray, ids: np.ndarray, k: int, order: Order, random: np.random.Generator) -> TopK:
    """The table of the same examples, shuffled, split at random and merged in a random tree."""
    arrival = random.permutation(len(ids))
    pieces = np.split(arrival, np.sort(random.integers(0, len(ids) + 1, random.integers(0, 8))))
    tops = [TopK(len(scores), k, order)]
    for piece in pieces:
        if random.random() < 0.5:
            tops.append(TopK(len(scores), k, order))
        tops[-1].add(scores[:, piece], ids[piece])
    while len(tops) > 1:
        other = tops.pop(random.integers(len(tops)))
        tops[random.integers(len(tops))].merge(other)
    return tops[0]


def names(count: int, random: np.random.Generator) -> np.ndarray:
    """Ids whose order as text is not that of their numbers."""
    return np.array([f"file:{number}" for number in random.permutation(count)], dtype=object)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("seed", range(40))
def test_equals_a_sort_however_it_is_split(seed, order):
    random = np.random.default_rng(seed)
    queries, count = int(random.integers(1, 5)), int(random.integers(1, 60))
    k = int(random.choice([1, 2, 7, count, count + 9]))
    # Of few distinct values there are ties, inside the table and across its edge; among them 0.0 and -0.0.
    few = random.integers(-3, 4, (queries, count)) * random.choice([-1.0, 1.0], (queries, count))
    scores = few if seed % 2 else random.standard_normal((queries, count)) * 10.0 ** random.integers(-12, 12, (queries, count))
    ids = names(count, random)
    top = table_of(scores, ids, k, order, random)
    values, chosen = brute_force(scores, ids, k, order)
    assert top.ids.tolist() == chosen
    assert top.values.tolist() == values  # kept as they are, not rounded


@pytest.mark.parametrize("order", ORDERS)
def test_noise_below_the_key_does_not_decide(order):
    """Equal examples scored in batches of other shapes: the ids decide, whichever came out larger by rounding."""
    random = np.random.default_rng(3)
    ids = names(50, random)
    exact = random.integers(1, 4, (3, 50)).astype(np.float64)
    wanted = brute_force(exact, ids, 20, order)[1]
    for seed in range(10):
        random = np.random.default_rng(seed)
        noisy = exact * (1 + random.uniform(-1, 1, exact.shape) * 1e-14)  # a float64 sum's noise
        assert table_of(noisy, ids, 20, order, random).ids.tolist() == wanted


@pytest.mark.parametrize("order", ORDERS)
def test_the_same_example_twice_takes_two_places(order):
    top = TopK(1, 3, order)
    top.add(np.array([[2.0, 2.0, 2.0]]), np.array(["b", "a", "b"], dtype=object))
    assert top.ids.tolist() == [["a", "b", "b"]]


def test_infinite_scores_are_ranked_and_tie():
    scores = np.array([[np.inf, 1.0, np.inf, -np.inf, np.finfo(np.float64).max]])
    ids = np.array(list("edbca"), dtype=object)
    # The largest double rounds up to infinity, and ties with it.
    for order, wanted in zip(ORDERS, ("abedc", "cdabe"), strict=True):
        top = TopK(1, 5, order)
        top.add(scores, ids)
        assert "".join(top.ids[0]) == wanted


def test_no_examples_and_no_queries():
    empty = TopK(2, 3)
    empty.add(np.empty((2, 0)), np.empty(0, dtype=object))
    empty.merge(TopK(2, 3))
    assert empty.values.shape == (2, 0)
    top = TopK(0, 3)
    top.add(np.empty((0, 5)), names(5, np.random.default_rng(0)))
    assert top.values.shape[0] == 0


def test_wrong_options_are_refused():
    with pytest.raises(ValueError, match="top_k=0 must be at least 1"):
        TopK(1, 0)
    with pytest.raises(ValueError, match="order='best' must be"):
        TopK(1, 1, "best")  # type: ignore[arg-type]


def test_ranking_key_is_monotone_and_close():
    random = np.random.default_rng(0)
    wide = random.standard_normal(20_000) * 10.0 ** random.uniform(-300, 300, 20_000)
    near = 1 + np.cumsum(random.integers(0, 3, 20_000)) * np.finfo(np.float64).eps  # neighbours of 1
    values = np.sort(np.concatenate([wide, near, -near, [0.0, -0.0, np.inf, -np.inf]]))
    keys = ranking_key(values)
    assert (np.diff(keys[np.isfinite(keys)]) >= 0).all()
    finite = np.isfinite(values)
    assert (np.abs(keys[finite] - values[finite]) <= 1e-10 * np.abs(values[finite])).all()  # 34 bits are kept: 6e-11
    assert len(np.unique(keys)) < len(np.unique(values))  # something is rounded at all
    assert keys.tolist() == (-ranking_key(-values)).tolist()  # both orders tie alike
    assert not np.signbit(ranking_key(np.array([-0.0, 0.0]))).any()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("seen", [0, 5])
def test_a_nan_has_no_rank(order: Order, seen: int) -> None:
    """Neither in a table that still fills nor in a full one: it would vanish, or push others out."""
    top = TopK(2, 3, order)
    if seen:
        top.add(np.arange(2.0 * seen).reshape(2, seen), np.array([f"a{i}" for i in range(seen)], dtype=object))
    scores = np.array([[1.0, 2.0], [3.0, np.nan]])
    with pytest.raises(ValueError, match="a score of the example bad is NaN"):
        top.add(scores, np.array(["good", "bad"], dtype=object))
    top.add(np.array([[np.inf], [-np.inf]]), np.array(["large"], dtype=object))
    assert "large" in top.ids


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("seed", range(20))
def test_scores_that_wait_on_the_device_are_ranked_as_arrays(seed, order, monkeypatch):
    random = np.random.default_rng(seed)
    queries, count, k = int(random.integers(1, 5)), int(random.integers(1, 60)), int(random.choice([1, 2, 7, 69]))
    monkeypatch.setattr(top_k, "_WAITING", queries * int(random.choice([1, 20, 1000])))
    few = random.choice([-np.inf, -2.0, -1.0, -0.0, 0.0, 1.0, 2.0, np.inf], (queries, count))
    scores = few if seed % 2 else random.standard_normal((queries, count))
    ids = names(count, random)
    parts = np.split(np.arange(count), np.sort(random.integers(0, count + 1, 5)))
    tops = [TopK(queries, k, order), TopK(queries, k, order)]
    for part in parts:
        tops[random.integers(2)].add(tf.constant(scores[:, part]), ids[part])
    found = pickle.loads(pickle.dumps(tops[0]))
    found.merge(tops[1])
    values, chosen = brute_force(scores, ids, k, order)
    assert found.ids.tolist() == chosen and found.values.tolist() == values


def test_a_score_on_the_device_that_is_nan_is_refused():
    top = TopK(2, 3)
    top.add(tf.constant([[1.0, 2.0], [np.nan, 4.0]], tf.float64), np.array(["a", "b"], object))
    with pytest.raises(ValueError, match="a score of the example a is NaN"):
        top.merge(TopK(2, 3))


def test_ids_whose_array_is_filled_again_while_scores_wait():
    top, ids = TopK(1, 2), np.array(["a", "b"], object)
    top.add(tf.constant([[1.0, 2.0]], tf.float64), ids)
    ids[:] = ["c", "d"]
    top.add(tf.constant([[3.0, 0.0]], tf.float64), ids)
    assert top.ids.tolist() == [["c", "b"]]


def test_what_does_not_fit_the_device_is_ranked_on_the_host(monkeypatch):
    monkeypatch.setattr(top_k_on_device, "first_of", lambda *_: None)
    top = TopK(1, 2)
    for value, name in ((2.0, "b"), (3.0, "c"), (2.0, "a")):
        top.add(tf.constant([[value]], tf.float64), np.array([name], object))
    assert top.ids.tolist() == [["c", "a"]]
