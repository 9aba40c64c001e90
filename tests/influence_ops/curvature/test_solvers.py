"""The iterative solvers against `numpy.linalg.solve`, and the seeded sample that they (and any curvature) can be made from."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator

import keras
import numpy as np
import pytest

from beam_influence import Curvature, FinishOptions, InfluenceModel, Preconditioner
from beam_influence.influence_ops.curvature import FittedOnSample, curvature_by_name, load_preconditioner
from beam_influence.influence_ops.curvature.conjugate_gradient import (
    ConjugateGradient,
    IterativePreconditioner,
    NotConvergedWarning,
    Products,
    conjugate_gradients,
    largest_eigenvalue,
    mean_eigenvalue,
)
from beam_influence.influence_ops.curvature.exact import Exact
from beam_influence.influence_ops.curvature.lissa import Lissa, neumann_series
from beam_influence.influence_ops.curvature.sample import Sample, concatenate, from_arrays, to_arrays
from beam_influence.influence_ops.curvature.sampled import SAMPLE
from beam_influence.influence_ops.reading.example_batch import ExampleBatch
from beam_influence.influence_ops.settings import IterativeSettings, LissaSettings
from tests.influence_ops import reference

SIZE = 40
SCALES = np.array([1.0, 1e-9, 1e7, 0.0, 1e-3])  # of the right-hand sides; one is zero
TOLERANCE = 1e-10
ROUNDING = 1e-9  # a residual of the recursion against the real one: a few hundred products of float64

Solve = Callable[[Products, np.ndarray], tuple[np.ndarray, np.ndarray]]


def matrix(eigenvalues: np.ndarray, seed: int = 0) -> np.ndarray:
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(eigenvalues), len(eigenvalues))))
    return (rotation * eigenvalues) @ rotation.T


def right_hand_sides(seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((len(SCALES), SIZE)) * SCALES[:, None]


def by_cg(products: Products, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return conjugate_gradients(products, right, TOLERANCE, 500)


def by_series(products: Products, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return neumann_series(products, right, 1.05, TOLERANCE, 100_000)


class Counted:
    """A matrix that counts the rows it is multiplied with, at each call."""

    def __init__(self, matrix: np.ndarray):
        self._matrix = matrix
        self.rows: list[int] = []

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        self.rows.append(len(vectors))
        return vectors @ self._matrix


@pytest.mark.parametrize("solve", [by_cg, by_series])
def test_right_hand_sides_of_any_scale(solve: Solve) -> None:
    condition = 100.0
    a, right = matrix(np.geomspace(1 / condition, 1, SIZE)), right_hand_sides()
    x, residuals = solve(Counted(a), right)
    wanted = np.linalg.solve(a, right.T).T
    assert np.all(x[3] == 0) and residuals[3] == 0
    for row in (0, 1, 2, 4):  # each to its own scale: error ≤ condition · residual
        assert residuals[row] <= TOLERANCE
        assert np.linalg.norm(x[row] - wanted[row]) <= 2 * condition * TOLERANCE * np.linalg.norm(wanted[row])


@pytest.mark.parametrize("solve", [by_cg, by_series])
def test_rows_do_not_depend_on_each_other(solve: Solve) -> None:
    a, right = matrix(np.geomspace(0.01, 1, SIZE)), right_hand_sides()
    together, _ = solve(Counted(a), right)
    for row in range(len(right)):
        alone, _ = solve(Counted(a), right[row : row + 1])
        # A product's last bits depend on the number of rows; they grow in the recursion, up to its own tolerance.
        assert np.linalg.norm(alone[0] - together[row]) <= 100 * TOLERANCE * max(np.linalg.norm(together[row]), 1e-300)


@pytest.mark.parametrize("solve", [by_cg, by_series])
def test_no_right_hand_sides(solve: Solve) -> None:
    x, residuals = solve(Counted(np.eye(SIZE)), np.zeros((0, SIZE)))
    assert x.shape == (0, SIZE) and residuals.shape == (0,)


@pytest.mark.parametrize("solve", [by_cg, by_series])
def test_an_indefinite_matrix_gives_the_best_iterate_and_its_residual(solve: Solve) -> None:
    eigenvalues = np.geomspace(0.05, 1, SIZE)
    eigenvalues[::7] *= -1
    a, right = matrix(eigenvalues), right_hand_sides()
    x, residuals = solve(Counted(a), right)
    assert np.isfinite(x).all()
    for row in (0, 1, 2, 4):
        real = np.linalg.norm(right[row] - x[row] @ a) / np.linalg.norm(right[row])
        assert residuals[row] == pytest.approx(real, rel=ROUNDING)  # what it tells is the truth
        assert TOLERANCE < residuals[row] <= 1 + ROUNDING  # not solved, but no worse than x = 0
    damped, residuals = solve(Counted((a + 1.1 * np.eye(SIZE)) / 2.1), right)
    assert residuals.max() <= TOLERANCE and np.allclose(damped, 2.1 * np.linalg.solve(a + 1.1 * np.eye(SIZE), right.T).T, rtol=1e-6)


@pytest.mark.parametrize("solve", [conjugate_gradients, lambda a, b, tolerance, cap: neumann_series(a, b, 1.05, tolerance, cap)])
def test_the_cap_is_kept_and_the_residual_told(solve: Callable) -> None:
    a, right = matrix(np.geomspace(1e-6, 1, SIZE)), right_hand_sides()
    counted = Counted(a)
    x, residuals = solve(counted, right, TOLERANCE, 5)
    assert len(counted.rows) == 5
    real = np.linalg.norm(right[0] - x[0] @ a) / np.linalg.norm(right[0])
    assert residuals[0] == pytest.approx(real, rel=ROUNDING) and residuals[0] > TOLERANCE


def test_conjugate_gradients_need_one_step_for_each_distinct_eigenvalue_and_leave_solved_rows_alone() -> None:
    a = matrix(np.repeat([1.0, 2.0, 5.0, 7.0], 10))
    right = right_hand_sides()
    eigenvector = np.linalg.eigh(a)[1][:, 0]
    right[0] = eigenvector  # solved in one step; row 3 is zero and never multiplied
    counted = Counted(a)
    _, residuals = by_cg(counted, right)
    assert residuals.max() <= TOLERANCE
    assert counted.rows == [4, 3, 3, 3]


def test_the_series_converges_up_to_twice_its_scale() -> None:
    right = right_hand_sides()[:1]
    below, above = (np.array([0.5, *np.full(SIZE - 2, 1.0), largest]) for largest in (1.9, 2.1))
    assert neumann_series(Counted(matrix(below)), right, 1.0, TOLERANCE, 1000)[1][0] <= TOLERANCE
    counted = Counted(matrix(above))
    x, residuals = neumann_series(counted, right, 1.0, TOLERANCE, 1000)
    assert TOLERANCE < residuals[0] <= 1 and len(counted.rows) < 1000  # it stops when it diverges
    assert residuals[0] == pytest.approx(np.linalg.norm(right[0] - x[0] @ matrix(above)) / np.linalg.norm(right[0]), rel=ROUNDING)


def test_spectrum_estimates() -> None:
    eigenvalues = np.concatenate([np.linspace(0.1, 1, SIZE - 1), [4.0]])
    a = matrix(eigenvalues)
    assert largest_eigenvalue(Counted(a), SIZE, 0) == pytest.approx(4, rel=1e-6)  # 30 steps, (1/4)^60 of it left
    assert largest_eigenvalue(Counted(-a), SIZE, 0) == pytest.approx(-4, rel=1e-6)
    assert largest_eigenvalue(Counted(np.zeros((SIZE, SIZE))), SIZE, 0) == 0
    off_diagonal = np.sqrt(2 * (np.sum(a**2) - np.sum(np.diag(a) ** 2)) / 32) / SIZE  # Hutchinson's standard deviation, 32 probes
    assert abs(mean_eigenvalue(Counted(a), SIZE, 0) - eigenvalues.mean()) < 4 * off_diagonal


# As curvatures.


def softmax_regression(l2: float = 0.01) -> tuple[InfluenceModel, list[ExampleBatch], np.ndarray]:
    """The model of case b, its training batches, and gradients [7, P] to solve for."""
    case = reference.case_b()
    model = InfluenceModel(reference.dense_model(case["kernel"], case["bias"]), loss_function="softmax_cross_entropy", weight_decay=l2)
    train = reference.batches(case["x_train"], case["t_train"], 64)
    return model, train, np.asarray(model.losses_and_gradients(train[0].select(np.arange(7)))[1], dtype=np.float64)


def fitted(curvature: Curvature, model: InfluenceModel, batches: list[ExampleBatch], damping: float | str = 0.005) -> Preconditioner:
    statistic = curvature.create(model)
    for batch in batches:
        statistic = curvature.add(model, statistic, batch)
    return curvature.finish(model, statistic, FinishOptions(damping))


@pytest.mark.parametrize(
    ("curvature", "tolerance"),
    [(ConjugateGradient(IterativeSettings(n_samples=300)), 1e-8), (Lissa(LissaSettings(n_samples=300, tolerance=1e-3)), 1e-3)],
)
def test_over_all_examples_they_are_exact(curvature: ConjugateGradient, tolerance: float, tmp_path: pathlib.Path) -> None:
    model, train, gradients = softmax_regression()
    exact = fitted(Exact(), model, train)
    operator = fitted(curvature, model, train)
    wanted = exact.apply(gradients)
    condition = (float(exact.meta["largest_eigenvalue"]) + 0.005) / (float(exact.meta["smallest_eigenvalue"]) + 0.005)
    bound = condition * tolerance * np.linalg.norm(wanted, axis=1)
    assert np.all(np.linalg.norm(operator.apply(gradients) - wanted, axis=1) <= bound)
    # In fact the error is nowhere near that bound.
    assert np.linalg.norm(operator.apply(gradients) - wanted) <= 100 * tolerance * np.linalg.norm(wanted)
    assert operator.meta["largest_eigenvalue"] == pytest.approx(exact.meta["largest_eigenvalue"], rel=0.02)  # power iteration
    operator.save(str(tmp_path))
    again = load_preconditioner(str(tmp_path)).bind(model)
    assert np.array_equal(again.apply(gradients), operator.apply(gradients))


def test_a_whole_dataset_in_place_of_a_sample() -> None:
    model, train, gradients = softmax_regression()
    operator = ConjugateGradient().over(model, lambda: train, FinishOptions(0.005))
    wanted = fitted(Exact(), model, train).apply(gradients)
    assert operator.examples == 300 and isinstance(operator, IterativePreconditioner)
    assert np.linalg.norm(operator.apply(gradients) - wanted) <= 1e-6 * np.linalg.norm(wanted)  # 100 × its tolerance 1e-8
    with pytest.raises(ValueError, match="holds no sample that could be saved"):
        operator.save("nowhere")


def test_damping_auto_is_a_tenth_of_the_mean_eigenvalue() -> None:
    model, train, _ = softmax_regression()
    exact = fitted(Exact(), model, train, "auto").meta["damping"]
    assert exact == pytest.approx(0.1 * fitted(Exact(), model, train).arrays["eigenvalues"].mean(), rel=1e-12)
    estimated = fitted(ConjugateGradient(IterativeSettings(n_samples=300)), model, train, "auto").meta["damping"]
    assert estimated == pytest.approx(exact, rel=0.1)  # Hutchinson's estimate of the trace, 32 probes; seen: 2 %


def test_the_warning_carries_the_residual() -> None:
    model, train, gradients = softmax_regression()
    operator = fitted(ConjugateGradient(IterativeSettings(n_samples=300, max_iterations=3)), model, train)
    with pytest.warns(NotConvergedWarning, match=r"at most 3 iterations at a relative residual of 0\.\d+"):
        operator.apply(gradients)


# The sample.


def stream(count: int, seed: int = 0) -> ExampleBatch:
    random = np.random.default_rng(seed)
    return ExampleBatch(
        ids=np.array([f"file-{row % 3}:{row}" for row in range(count)], dtype=object),
        inputs={"a": random.standard_normal((count, 2)), "b": np.arange(count)},
        labels=random.integers(0, 5, count),
        weights=random.uniform(0.5, 2, count),
    )


def pieces(batch: ExampleBatch, random: np.random.Generator) -> Iterator[ExampleBatch]:
    """The batch shuffled, in random pieces, some of them empty."""
    cuts = np.sort(random.integers(0, len(batch) + 1, random.integers(0, 9)))
    for rows in np.split(random.permutation(len(batch)), cuts):
        yield batch.select(rows)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("size", [1, 10, 57, 200])
def test_the_sample_does_not_depend_on_order_splits_and_merges(size: int, seed: int) -> None:
    whole, random = stream(57), np.random.default_rng(seed)
    plain = Sample(size, 4)
    plain.add(whole)
    parts = [Sample(size, 4)]
    for piece in pieces(whole, random):
        if random.random() < 0.5:
            parts.append(Sample(size, 4))
        parts[-1].add(piece)
    while len(parts) > 1:
        other = parts.pop(random.integers(len(parts)))
        parts[random.integers(len(parts))].merge(other)
    (found,) = parts
    assert found.seen == plain.seen == 57
    assert found.batch is not None and plain.batch is not None
    assert len(found.batch) == min(size, 57)
    assert found.batch.ids.tolist() == plain.batch.ids.tolist()
    rows = np.asarray(found.batch.inputs["b"])  # type: ignore[call-overload]
    # Each example keeps its own inputs, label and weight.
    assert found.batch.ids.tolist() == whole.ids[rows].tolist()
    assert np.array_equal(np.asarray(found.batch.labels), np.asarray(whole.labels)[rows])
    assert np.array_equal(np.asarray(found.batch.weights), np.asarray(whole.weights)[rows])


def sampled_rows(count: int, size: int, seed: int) -> np.ndarray:
    sample = Sample(size, seed)
    sample.add(stream(count))
    assert sample.batch is not None
    return np.asarray(sample.batch.inputs["b"])  # type: ignore[call-overload]


def test_the_sample_is_uniform() -> None:
    count, size, draws = 100, 25, 400
    hits = np.zeros(count)
    both = 0
    for seed in range(draws):
        rows = sampled_rows(count, size, seed)
        hits[rows] += 1
        both += 0 in rows and 1 in rows
    share = size / count
    deviation = np.sqrt(draws * share * (1 - share))
    assert hits.sum() == draws * size
    assert np.abs(hits - draws * share).max() < 4.5 * deviation  # 100 binomials: beyond it with a chance of 1e-3; the seeds are fixed
    statistic = np.sum((hits - draws * share) ** 2) / (deviation**2)
    assert 60 < statistic < 145  # χ² of about 99 degrees of freedom, ± 3 standard deviations
    pair = share * (size - 1) / (count - 1)
    assert abs(both - draws * pair) < 4.5 * np.sqrt(draws * pair)  # neighbours are not drawn together


def test_the_sample_is_seeded() -> None:
    assert np.array_equal(sampled_rows(100, 25, 7), sampled_rows(100, 25, 7))
    assert not np.array_equal(np.sort(sampled_rows(100, 25, 7)), np.sort(sampled_rows(100, 25, 8)))
    # A larger sample of the same seed holds the smaller one.
    assert set(sampled_rows(100, 10, 7)) < set(sampled_rows(100, 25, 7))
    with pytest.raises(ValueError, match="n_samples=0"):
        Sample(0, 0)


def test_batches_of_a_sample() -> None:
    sample = Sample(25, 0)
    assert list(sample.batches(4)) == []
    sample.add(stream(60))
    assert [len(batch) for batch in sample.batches(10)] == [10, 10, 5]
    assert sample.batch is not None
    assert np.concatenate([batch.ids for batch in sample.batches(10)]).tolist() == sample.batch.ids.tolist()


@pytest.mark.parametrize("named_labels", [False, True])
@pytest.mark.parametrize("named_inputs", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_arrays_round_trip(named_inputs: bool, named_labels: bool, weighted: bool) -> None:
    random = np.random.default_rng(0)
    images = random.standard_normal((5, 2, 2)).astype(np.float32)
    batch = ExampleBatch(
        ids=np.array(list("vwxyz"), dtype=object),
        inputs={"image": images, "count": np.arange(5), "a.b": np.ones((5, 1))} if named_inputs else images,
        labels={"y": np.arange(5), "z": np.eye(5)} if named_labels else np.arange(5),
        weights=np.linspace(1, 2, 5) if weighted else None,
    )
    arrays = to_arrays(batch)
    assert all(isinstance(array, np.ndarray) and array.dtype != object for array in arrays.values())
    again = from_arrays(arrays)
    assert again.ids.tolist() == ["0", "1", "2", "3", "4"]
    for name in ("inputs", "labels"):
        before, after = getattr(batch, name), getattr(again, name)
        if isinstance(before, dict):
            assert before.keys() == after.keys()
        else:
            before, after = {"": before}, {"": after}
        for key, array in before.items():
            assert array.dtype == after[key].dtype and np.array_equal(array, after[key])
    assert (again.weights is None) == (not weighted)
    assert len(concatenate(again, again)) == 10
    assert again.weights is None or np.array_equal(again.weights, np.linspace(1, 2, 5))


def test_strings_travel_as_fixed_width_bytes() -> None:
    words = np.array([word.encode() for word in ("a", "bc", "", "é")], dtype=object)
    saved = to_arrays(ExampleBatch(np.arange(4).astype(str), words, np.arange(4)))["input"]
    assert saved.dtype.kind == "S" and saved.tolist() == words.tolist()


def test_fitted_on_sample_is_the_curvature_of_the_sampled_examples() -> None:
    model, train, gradients = softmax_regression()
    curvature = curvature_by_name("exact", n_samples=50, seed=3)
    assert isinstance(curvature, FittedOnSample)
    operator = fitted(curvature, model, train)
    chosen = Sample(50, 3)
    for batch in train:
        chosen.add(batch)
    assert chosen.batch is not None
    wanted = fitted(Exact(), model, [chosen.batch])
    found, expected = operator.apply(gradients), wanted.apply(gradients)
    assert np.abs(found - expected).max() <= 1e-9 * np.abs(expected).max()  # the same float64 sums
    # n stays the size of the training set: loss_change depends on it.
    assert operator.examples == 300 and operator.meta["examples_used"] == 50 and operator.meta["sample_seed"] == 3
    assert wanted.examples == 50


def test_fitted_on_sample_merges_and_travels() -> None:
    model, train, gradients = softmax_regression()
    curvature = FittedOnSample(Exact(), 50, 3)
    halves = []
    for batches in (train[:2], train[2:]):
        statistic = curvature.create(model)
        for batch in batches:
            statistic = curvature.add(model, statistic, batch)
        halves.append(statistic)
    merged = curvature.merge(*reversed(halves))
    packed = {name: curvature.pack_part(name, part) for name, part in merged.items()}
    assert all(array.dtype != object for arrays in packed.values() for array in arrays.values())
    travelled = {name: curvature.unpack_part(name, arrays) for name, arrays in packed.items()}
    assert travelled[SAMPLE].seen == 300
    found = curvature.finish(model, travelled, FinishOptions(0.005))
    wanted = fitted(curvature, model, train)
    assert np.array_equal(found.apply(gradients), wanted.apply(gradients)) and found.meta == wanted.meta
    empty = curvature.unpack_part(SAMPLE, curvature.pack_part(SAMPLE, Sample(50, 3)))
    with pytest.raises(ValueError, match="no training example is left"):
        curvature.finish(model, {SAMPLE: empty}, FinishOptions())


def test_fitted_on_sample_with_named_inputs_and_weights() -> None:
    a, b = keras.Input((2,), name="a"), keras.Input((), name="b")
    flat = keras.layers.Concatenate()([a, keras.layers.Reshape((1,))(b)])
    network = keras.Model({"a": a, "b": b}, keras.layers.Dense(5)(flat))
    model = InfluenceModel(network, loss_function="softmax_cross_entropy", weight_decay=0.1)
    data = stream(40)
    gradients = np.asarray(model.losses_and_gradients(data)[1])
    curvature = FittedOnSample(Exact(), 40)
    statistic = curvature.add(model, curvature.create(model), data)
    packed = {SAMPLE: curvature.unpack_part(SAMPLE, curvature.pack_part(SAMPLE, statistic[SAMPLE]))}
    found = curvature.finish(model, packed, FinishOptions(0.0)).apply(gradients)
    wanted = fitted(Exact(), model, [data], 0.0).apply(gradients)
    assert np.abs(found - wanted).max() <= 1e-9 * np.abs(wanted).max()  # the same float64 sums, in the sample's order
