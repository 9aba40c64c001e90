"""The other classes, each against its formula in NumPy: second order, Arnoldi, TracIn; `gauss_newton_cg`; `dtype`."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from beam_influence import (
    CACHE,
    ArnoldiInfluenceCalculator,
    FirstOrderInfluenceCalculator,
    InfluenceModel,
    SecondOrderInfluenceCalculator,
    TracIn,
    compute_in_memory,
)
from beam_influence.influence_ops.calculator.tf_datasets import example_batches
from tests.arrays import joined, matrix_of, relative
from tests.influence_ops import reference

EXACT = 1e-8  # the same float64 sums and solves in another order
SOLVED = 1e-5  # conjugate gradients stop at a relative residual of 1e-6

DATA = reference.case_b()
X, LABELS = DATA["x_train"][:60, 20:28], DATA["t_train"][:60] % 3
rng = np.random.default_rng(0)
KERNEL, BIAS = rng.normal(size=(8, 3)).astype(np.float32), rng.normal(size=3).astype(np.float32)
DECAY = 0.05


def linear_model(scale: float = 1.0) -> InfluenceModel:
    """Softmax regression, P = 27, with weight decay in the curvature."""
    return InfluenceModel(reference.dense_model(KERNEL * scale, BIAS), loss_function="softmax_cross_entropy", weight_decay=DECAY)


def gradients_and_hessian(scale: float = 1.0, rows: slice = slice(None)) -> tuple[np.ndarray, np.ndarray]:
    """Without the regulariser."""
    return reference.softmax_closed_form(X[rows], LABELS[rows], KERNEL * np.float32(scale), BIAS, 0.0)


def dataset(rows: slice = slice(None), batch: int = 7) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices((X[rows], LABELS[rows])).batch(batch)





def second_order_change(group: slice, damping: float) -> np.ndarray:
    """θ_{−G} − θ by the module's formula (`groups`), every matrix explicit."""
    gradients, data = gradients_and_hessian()
    n, inverse = len(gradients), np.linalg.inv(data + (DECAY + damping) * np.eye(27))
    of_group = gradients_and_hessian(rows=group)[1]
    count = len(gradients[group])
    part = count / n
    theta = np.concatenate([KERNEL.ravel(), BIAS]).astype(np.float64)
    u = inverse @ (gradients[group].sum(0) + count * DECAY * theta) / (n * (1 - part))
    return u - part / (1 - part) * inverse @ (data - of_group) @ u


@pytest.mark.parametrize("kind, tolerance", [("exact", EXACT), ("cgd", SOLVED)])
@pytest.mark.parametrize("damping", [0.0, 0.1])
def test_second_order_groups(kind, tolerance, damping):
    calculator = SecondOrderInfluenceCalculator(linear_model(), dataset(), kind, damping=damping)
    group = slice(0, 15)
    change = second_order_change(group, damping)
    assert relative(calculator.compute_influence_vector_group(dataset(group, 4)), change[None]) < tolerance
    own, others = (gradients_and_hessian(rows=rows)[0].sum(0) for rows in (group, slice(20, 33)))
    assert relative(calculator.estimate_influence_values_group(dataset(group)), [[own @ change]]) < tolerance
    assert relative(calculator.estimate_influence_values_group(dataset(group), dataset(slice(20, 33))), [[others @ change]]) < tolerance


def test_a_second_order_group_is_nearer_to_the_truth_than_a_first_order_one():
    """Least squares without the group, solved anew; sign and scale are the change's own."""
    data = reference.case_a()
    x, y = data["x_train"], data["y_train"]
    wide = np.concatenate([x, np.ones((60, 1))], axis=1).astype(np.float64)
    truth = np.linalg.lstsq(wide[20:], y[20:, 0], rcond=None)[0] - np.linalg.lstsq(wide, y[:, 0], rcond=None)[0]
    model = InfluenceModel(reference.dense_model(data["kernel"], data["bias"]), loss_function="squared_error")
    train, group = (tf.data.Dataset.from_tensor_slices((x[:k], y[:k])).batch(9) for k in (60, 20))
    second = np.asarray(SecondOrderInfluenceCalculator(model, train).compute_influence_vector_group(group))[0]
    first = np.asarray(FirstOrderInfluenceCalculator(model, train).compute_influence_vector_group(group))[0] / 60
    assert np.linalg.norm(second - truth) < 0.6 * np.linalg.norm(first - truth)


def test_second_order_refusals():
    calculator = SecondOrderInfluenceCalculator(linear_model(), dataset())
    with pytest.raises(ValueError, match="whole training set"):
        calculator.compute_influence_vector_group(dataset())
    with pytest.raises(ValueError, match="the group has no examples"):
        calculator.compute_influence_vector_group(dataset(slice(0, 0)))
    with pytest.raises(ValueError, match="the same ones at each pass.*reshuffle_each_iteration=False"):
        calculator.compute_influence_vector_group(dataset().unbatch().shuffle(60).take(20).batch(7))
    with pytest.raises(ValueError, match="not batched"):
        SecondOrderInfluenceCalculator(linear_model(), dataset().unbatch())


def test_arnoldi_in_the_whole_space_is_the_inverse():
    """Least squares: its eigenvalues are distinct, as a Krylov space needs them."""
    data = reference.case_a()
    model = InfluenceModel(reference.dense_model(data["kernel"], data["bias"]), loss_function="squared_error")
    train, test = (tf.data.Dataset.from_tensor_slices((data[f"x_{split}"], data[f"y_{split}"])).batch(7) for split in ("train", "test"))
    calculator = ArnoldiInfluenceCalculator(model, train, 6, False, 6, dtype=tf.float64)
    directions, values = np.asarray(calculator.G), np.asarray(calculator.eig_vals)
    assert relative(directions.T @ (directions / values[:, None]), data["exact_inv_hessian"]) < 1e-6  # computed there in float32
    plain = FirstOrderInfluenceCalculator(model, train)
    assert relative(joined(calculator.compute_influence_values(train)), joined(plain.compute_influence_values(train))) < EXACT
    found, wanted = (matrix_of(c.estimate_influence_values_in_batches(test, train)) for c in (calculator, plain))
    assert relative(found, wanted) < EXACT


def test_arnoldi_keeps_the_largest_eigenpairs_and_nothing_else(tmp_path):
    model, (gradients, data) = linear_model(), gradients_and_hessian()
    calculator = ArnoldiInfluenceCalculator(model, dataset(), 27, True, 4, damping=0.1)
    assert calculator.dtype == tf.float32
    values, vectors = np.linalg.eigh(data + DECAY * np.eye(27))
    values, vectors = values[:-5:-1], vectors[:, :-5:-1]
    assert np.allclose(calculator.eig_vals, values, rtol=1e-6)
    wanted = (gradients @ vectors / (values + 0.1)) @ (gradients @ vectors).T
    path = str(tmp_path / "vectors")
    found = calculator.compute_influence_vector(dataset(), path)
    assert joined(found).shape == (60, 4)
    assert relative(matrix_of(calculator.estimate_influence_values_in_batches(dataset(), dataset())), wanted.T) < 1e-5  # float32 results
    top = list(calculator.top_k(dataset(slice(0, 3)), dataset(), 2, load_influence_vector_ds_path=path))
    assert np.allclose(top[0][1], np.sort(wanted.T[:3], axis=1)[:, :-3:-1], rtol=1e-5)
    with pytest.raises(ValueError, match="curvature 'arnoldi"):  # another calculator's vectors
        FirstOrderInfluenceCalculator(model, dataset(), "arnoldi", damping=0.1).compute_influence_vector(dataset(), path)
    for wrong in ((0, 1), (5, 6), (5, 0)):
        with pytest.raises(ValueError, match="must be at least 1 and at most subspace_dim"):
            ArnoldiInfluenceCalculator(model, dataset(), wrong[0], False, wrong[1])


def test_tracin_sums_gradient_products_over_checkpoints(tmp_path):
    models, rates = [linear_model(1.0), linear_model(0.5)], [0.3, 0.7]
    calculator = TracIn(models, rates)
    parts = [gradients_and_hessian(scale)[0] for scale in (1.0, 0.5)]
    wanted = sum(rate * part @ part.T for rate, part in zip(rates, parts, strict=True))
    vectors = np.concatenate([rate**0.5 * part for rate, part in zip(rates, parts, strict=True)], axis=1)
    path = str(tmp_path / "vectors")
    assert relative(joined(calculator.compute_influence_vector(dataset(), path)), vectors) < EXACT
    assert relative(joined(calculator.compute_influence_values(dataset()))[:, 0], np.diag(wanted)) < EXACT
    for cache in CACHE:
        assert relative(matrix_of(calculator.estimate_influence_values_in_batches(dataset(), dataset(), cache)), wanted) < EXACT
    loaded = calculator.estimate_influence_values_in_batches(dataset(), dataset(), load_influence_vector_path=path)
    assert relative(matrix_of(loaded), wanted) < EXACT
    samples, values = calculator.compute_top_k_from_training_dataset(dataset(), 3)
    best = np.argsort(-np.diag(wanted))[:3]
    assert np.array_equal(samples, X[best]) and np.allclose(values, np.diag(wanted)[best], rtol=EXACT)
    assert TracIn(models, 0.3).learning_rates == [0.3, 0.3]
    with pytest.raises(ValueError, match="must be 2 numbers above 0"):
        TracIn(models, [0.1])
    with pytest.raises(ValueError, match="at least one checkpoint"):
        TracIn([], 0.1)


def network_model() -> InfluenceModel:
    keras.utils.set_random_seed(2)
    network = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, "tanh"), keras.layers.Dense(3)])
    return InfluenceModel(network, weights="all", loss_function="softmax_cross_entropy", weight_decay=DECAY)


def test_gauss_newton_cg_reaches_the_whole_gauss_newton_matrix():
    model, train, test = network_model(), dataset(batch=32), dataset(slice(0, 9), 5)
    exact = FirstOrderInfluenceCalculator(model, train, "gauss_newton", damping=0.01)
    wanted = matrix_of(exact.estimate_influence_values_in_batches(test, train))
    errors = []
    for passes in (0, 2, 40):
        calculator = FirstOrderInfluenceCalculator(model, train, "gauss_newton_cg", damping=0.01, passes=passes)
        errors.append(relative(matrix_of(calculator.estimate_influence_values_in_batches(test, train)), wanted))
    assert errors[0] > errors[1] > errors[2] and errors[2] < SOLVED
    assert relative(joined(calculator.compute_influence_vector(train)), joined(exact.compute_influence_vector(train))) < SOLVED
    assert relative(joined(calculator.compute_influence_values(train)), joined(exact.compute_influence_values(train))) < SOLVED
    found, best = (list(c.top_k(test, train, 3, d_type=tf.float64)) for c in (calculator, exact))
    assert all(np.allclose(a[1], b[1], rtol=SOLVED) for a, b in zip(found, best, strict=True))


def test_gauss_newton_cg_is_that_of_the_job(tmp_path):
    """The same passes give the job's own scores, since it is the test points that are solved; the oracle of the job is in memory."""
    model, train, test = network_model(), dataset(), dataset(slice(0, 9), 9)
    calculator = FirstOrderInfluenceCalculator(model, train, "gauss_newton_cg", damping=0.01, passes=3)
    batches = [batch for _, batch in example_batches(train, model)]
    tests = [batch for _, batch in example_batches(test, model)]
    job = compute_in_memory(model, "gauss_newton_cg", batches, tests, damping=0.01, passes=3, outputs=("scores",))
    rows = job.tables["scores"].to_pandas().pivot(index="test_id", columns="train_id", values="influence")
    wanted = rows.loc[[str(t) for t in range(9)], [str(i) for i in range(60)]].to_numpy()
    assert relative(matrix_of(calculator.estimate_influence_values_in_batches(test, train)), wanted) < EXACT
    assert len(calculator.preconditioner.residuals) == 9  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="save an 'ekfac' curvature"):
        calculator.save_curvature(str(tmp_path / "curvature"))
    with pytest.raises(ValueError, match="passes=-1 must be at least 0"):
        FirstOrderInfluenceCalculator(model, train, "gauss_newton_cg", passes=-1)


@pytest.mark.parametrize("kind", ["cgd", "lissa", "gauss_newton_cg"])
def test_a_tolerance_is_kept(kind):
    """Of a linear model the Gauss–Newton matrix is the Hessian."""
    gradients, data = gradients_and_hessian()
    wanted = gradients @ np.linalg.inv(data + (DECAY + 0.05) * np.eye(27))
    errors = []
    for tolerance in (1e-1, 1e-6):
        calculator = FirstOrderInfluenceCalculator(linear_model(), dataset(batch=60), kind, damping=0.05, passes=500, tolerance=tolerance)
        errors.append(relative(joined(calculator.compute_influence_vector(dataset(batch=60))), wanted))
    assert errors[1] < 1e-5 < errors[0] < 1
    with pytest.raises(ValueError, match="tolerance=1 must be above 0 and below 1"):
        FirstOrderInfluenceCalculator(linear_model(), dataset(), kind, tolerance=1)
    with pytest.raises(ValueError, match="goes with 'cgd', 'lissa'"):
        FirstOrderInfluenceCalculator(linear_model(), dataset(), "exact", tolerance=1e-3)


@pytest.mark.parametrize("dtype", ["float32", tf.float64])
def test_results_come_in_the_dtype_asked_for(dtype):
    model, train, test = linear_model(), dataset(), dataset(slice(0, 9))
    plain, cast = FirstOrderInfluenceCalculator(model, train), FirstOrderInfluenceCalculator(model, train, dtype=dtype)
    second = SecondOrderInfluenceCalculator(model, train, dtype=dtype)
    wanted = tf.as_dtype(dtype)
    results = [
        lambda c: next(iter(c.compute_influence_values(train)))[1],
        lambda c: next(iter(c.compute_influence_vector(train)))[1],
        lambda c: c.compute_top_k_from_training_dataset(train, 2)[1],
        lambda c: c.compute_influence_vector_group(test),
        lambda c: c.estimate_influence_values_group(test, train),
        lambda c: next(iter(next(iter(c.estimate_influence_values_in_batches(test, train)))[1]))[1],
    ]
    for result in results:
        found = result(cast)
        assert found.dtype == wanted and np.allclose(found, result(plain), rtol=1e-5)
    assert second.compute_influence_vector_group(test).dtype == wanted
    assert tf.matmul(next(iter(cast.compute_influence_vector(train)))[1], tf.zeros((27, 1), wanted)).shape == (7, 1)
    with pytest.raises(ValueError, match="must be a floating type"):
        FirstOrderInfluenceCalculator(model, train, dtype=tf.int32)
