"""A training set that gives another order at each pass: every value belongs to the example beside it, or it is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from beam_influence import CACHE, ORDER, FaissSearch, FirstOrderInfluenceCalculator, InfluenceModel, LinearSearch
from beam_influence.influence_ops.calculator.samples import TopExamples
from tests.influence_ops import reference

EXACT = 1e-9  # the same float64 sums in another order
FLOAT32 = 1e-4  # FAISS searches in float32
MEND = "use shuffle.*reshuffle_each_iteration=False"


class PlugIn(LinearSearch):
    """A search that is not known to be the linear one."""


class Case:
    """Least squares, P = 6, by the closed form: value(t, i) = g_tᵀ H⁻¹ g_i."""

    def __init__(self) -> None:
        data = reference.case_a()
        network = reference.dense_model(data["kernel"], data["bias"])
        self.x, self.y = data["x_train"].astype(np.float32), data["y_train"].astype(np.float32)
        self.x_test, self.y_test = data["x_test"].astype(np.float32), data["y_test"].astype(np.float32)
        self.model = InfluenceModel(network, loss_function="squared_error")
        theta = np.concatenate([data["kernel"].ravel(), data["bias"]]).astype(np.float64)
        wide, gradients = self._gradients(self.x, self.y, theta)
        self.vectors = np.linalg.solve(2 / len(wide) * wide.T @ wide, gradients.T).T
        self.matrix = self._gradients(self.x_test, self.y_test, theta)[1] @ self.vectors.T
        self.own = np.einsum("ip,ip->i", gradients, self.vectors)
        self.train = tf.data.Dataset.from_tensor_slices((self.x, self.y)).shuffle(60).batch(7)
        self.fixed = tf.data.Dataset.from_tensor_slices((self.x, self.y)).shuffle(60, seed=3, reshuffle_each_iteration=False).batch(7)
        self.test = tf.data.Dataset.from_tensor_slices((self.x_test, self.y_test)).batch(5)
        self.calculator = FirstOrderInfluenceCalculator(self.model, self.train)

    @staticmethod
    def _gradients(x: np.ndarray, y: np.ndarray, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        wide = np.concatenate([x, np.ones((len(x), 1))], axis=1)
        return wide, 2 * (wide @ theta - y[:, 0])[:, None] * wide

    def rows(self, samples: Any) -> np.ndarray:
        """Which training examples these are: [..., 5] -> [...]."""
        samples = np.asarray(samples)
        at = {row.tobytes(): number for number, row in enumerate(self.x)}
        return np.array([at[row.tobytes()] for row in samples.reshape(-1, 5)]).reshape(samples.shape[:-1])


@pytest.fixture(scope="module")
def case() -> Case:
    return Case()


@pytest.mark.parametrize("cache", [CACHE.MEMORY, CACHE.NO_CACHE])
@pytest.mark.parametrize("search, tolerance", [(None, EXACT), (PlugIn(), EXACT), (FaissSearch(), FLOAT32)])
def test_top_k_gives_the_samples_and_labels_that_its_values_are_of(case, cache, search, tolerance):
    found = case.calculator.top_k(
        case.test, case.train, 3, search, influence_vector_in_cache=cache, d_type=tf.float64, with_ids=True
    )
    start = 0
    for (x, _), values, samples, _, labels in found:
        rows = case.rows(samples)
        matrix = case.matrix[start : start + len(x)]
        assert np.allclose(values, np.take_along_axis(matrix, rows, 1), rtol=tolerance)
        assert np.allclose(values, np.sort(matrix, axis=1)[:, :-4:-1], rtol=tolerance)
        assert np.array_equal(labels, case.y[rows])
        start += len(x)
    assert start == 12


@pytest.mark.parametrize("order", list(ORDER))
def test_the_training_sets_own_top_k(case, order):
    samples, values = case.calculator.compute_top_k_from_training_dataset(case.train, 5, order)
    wanted = np.sort(case.own)[::-1] if order is ORDER.DESCENDING else np.sort(case.own)
    assert np.allclose(values, case.own[case.rows(samples)], rtol=EXACT)
    assert np.allclose(values, wanted[:5], rtol=EXACT)


def test_batches_have_the_values_and_vectors_of_their_own_examples(case):
    for (x, _), values in case.calculator.compute_influence_values(case.train):
        assert np.allclose(values[:, 0], case.own[case.rows(x)], rtol=EXACT)
    for (x, _), vectors in case.calculator.compute_influence_vector(case.train):
        assert np.allclose(vectors, case.vectors[case.rows(x)], rtol=EXACT)


@pytest.mark.parametrize("cache", [CACHE.MEMORY, CACHE.NO_CACHE])
def test_nested_blocks_have_the_values_of_their_own_examples(case, cache):
    start = 0
    for (x_test, _), inner in case.calculator.estimate_influence_values_in_batches(case.test, case.train, cache):
        seen = 0
        for (x, _), block in inner:
            assert np.allclose(block, case.matrix[start : start + len(x_test), case.rows(x)], rtol=EXACT)
            seen += len(x)
        assert seen == 60
        start += len(x_test)


def test_what_joins_two_passes_is_refused_with_the_mend(case, tmp_path):
    calculator, paths = case.calculator, iter(range(10))

    def path() -> str:
        return str(tmp_path / str(next(paths)))

    with pytest.raises(ValueError, match=f"nothing is saved.*{MEND}"):
        calculator.compute_influence_vector(case.train, path())
    with pytest.raises(ValueError, match=MEND):
        calculator.top_k(case.test, case.train, influence_vector_in_cache=CACHE.DISK)
    for cache in (CACHE.MEMORY, CACHE.NO_CACHE):
        with pytest.raises(ValueError, match=MEND):
            calculator.top_k(case.test, case.train, influence_vector_in_cache=cache, save_top_k_ds_path=path())
        with pytest.raises(ValueError, match=MEND):
            calculator.estimate_influence_values_in_batches(case.test, case.train, cache, save_influence_value_path=path())
    shuffled_test = case.test.unbatch().shuffle(12).batch(5)
    with pytest.raises(ValueError, match=MEND):
        calculator.estimate_influence_values_in_batches(shuffled_test, case.fixed, save_influence_value_path=path())
    assert not list(tmp_path.rglob("*.parquet")) and not list(tmp_path.rglob("manifest.json"))
    saved = path()
    calculator.compute_influence_vector(case.fixed, saved)
    with pytest.raises(tf.errors.InvalidArgumentError, match="other examples, or in another order"):
        list(calculator.compute_influence_vector(case.train, saved))
    swapped = case.fixed.map(lambda x, y: (tf.concat([x[:1], x[1:][::-1]], 0), tf.concat([y[:1], y[1:][::-1]], 0)))
    with pytest.raises(tf.errors.InvalidArgumentError, match="other examples, or in another order"):  # each batch's first is the same
        list(calculator.compute_influence_vector(swapped, saved))


@pytest.mark.parametrize("cache", list(CACHE))
def test_an_order_that_stays_can_be_saved_and_joined(case, cache, tmp_path):
    top, values = str(tmp_path / "top"), str(tmp_path / "values")
    options: Any = {"influence_vector_in_cache": cache, "save_top_k_ds_path": top, "d_type": tf.float64}
    found = list(case.calculator.top_k(case.test, case.fixed, 2, **options))
    case.calculator.estimate_influence_values_in_batches(case.test, case.fixed, cache, save_influence_value_path=values)
    samples = np.concatenate([np.asarray(row[2]) for row in found])
    assert np.allclose(
        np.concatenate([np.asarray(row[1]) for row in found]), np.take_along_axis(case.matrix, case.rows(samples), 1), rtol=EXACT
    )


def test_examples_drawn_at_random_are_used_as_they_were_or_refused(case):
    """A map that draws: the linear search keeps what it saw; another search can't find it again."""
    draws = np.random.default_rng(0)  # a draw of TensorFlow's would be the same at each pass where a global seed is set

    def noise(x: np.ndarray) -> np.ndarray:
        return (x + draws.normal(size=x.shape)).astype(np.float32)

    noisy = case.fixed.map(lambda x, y: (tf.ensure_shape(tf.numpy_function(noise, [x], tf.float32), x.shape), y))
    plain = FirstOrderInfluenceCalculator(case.model, case.fixed)
    for (x, y), values, samples, _, labels in plain.top_k(
        case.test, noisy, 3, influence_vector_in_cache=CACHE.NO_CACHE, d_type=tf.float64, with_ids=True
    ):
        for row in range(len(x)):
            one = tf.data.Dataset.from_tensors((samples[row], labels[row]))
            ((_, again),) = list(plain.estimate_influence_values_in_batches(tf.data.Dataset.from_tensors((x, y)), one))
            # Alone, an example's sums are in another order; λ = 0 enlarges their rounding.
            assert np.allclose(next(iter(again))[1][row], values[row], rtol=0, atol=1e-7 * np.abs(values).max())
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"can't be found again.*cache\(\)"):
        list(plain.top_k(case.test, noisy, 3, PlugIn(), influence_vector_in_cache=CACHE.NO_CACHE))


def test_a_curvature_of_several_passes_needs_the_same_examples_in_any_order(case):
    wanted = FirstOrderInfluenceCalculator(case.model, case.fixed, "cgd")
    found = FirstOrderInfluenceCalculator(case.model, case.train, "cgd")
    first, other = (np.concatenate([v for _, v in c.compute_influence_values(case.fixed)]) for c in (wanted, found))
    assert np.allclose(first, other, rtol=1e-6)  # the iteration's own tolerance is 1e-8
    half = case.train.unbatch().take(30).batch(7)  # another half at each pass
    with pytest.raises(ValueError, match=f"the same ones at each pass.*{MEND}"):
        FirstOrderInfluenceCalculator(case.model, half, "cgd")


def test_the_candidates_kept_are_no_more_than_asked_for():
    rng = np.random.default_rng(0)
    scores, samples = rng.normal(size=(4, 500)), rng.normal(size=(500, 3))
    top = TopExamples(4, 5, "descending", tf.TensorSpec((None, 3), tf.float64))
    for start in range(0, 500, 50):
        rows = slice(start, start + 50)
        top.add(scores[:, rows], np.arange(start, start + 50), samples[rows])
        assert len(top._rows) <= 4 * 5
    best = np.argsort(-scores, axis=1)[:, :5]
    assert np.array_equal(top.positions, best) and np.array_equal(top.parts(), samples[best])


def test_samples_of_several_shapes_are_refused():
    top = TopExamples(1, 2, "descending", tf.TensorSpec((None, None), tf.float64))
    top.add(np.ones((1, 1)), np.array([0]), np.zeros((1, 3)))
    top.add(np.ones((1, 1)), np.array([1]), np.zeros((1, 4)))
    with pytest.raises(ValueError, match=r"shapes \(3,\) and \(4,\) can't stand in one array; pad all batches to one length"):
        top.parts()
