"""The notebook calculator against the reference's numbers, and each of the reference's shortcomings."""

from __future__ import annotations

import warnings
from typing import Any, cast

import keras
import numpy as np
import pytest
import tensorflow as tf

from beam_influence import ORDER, FirstOrderInfluenceCalculator, IHVPCalculator, InfluenceModel, LinearSearch
from beam_influence.influence_ops.curvature.conjugate_gradient import NotConvergedWarning
from tests.arrays import joined, matrix_of, relative
from tests.influence_ops import reference
from tests.influence_ops.calculator.calculator_case import EXACT, Case

FLOAT32 = 1e-4  # the reference computes in float32: its README's tolerance for `exact`
FLOAT32_CG = 1e-2  # its conjugate gradients stop at three digits: its README's tolerance for `cgd`


@pytest.mark.parametrize("name, prefix, kind, tolerance, normalize", [
    ("a", "exact", "exact", FLOAT32, False), ("a", "exact", "exact", FLOAT32, True), ("a", "cgd", "cgd", FLOAT32_CG, True),
    ("b", "l2_exact", IHVPCalculator.Exact, FLOAT32, True),
])  # fmt: skip
def test_every_method_gives_the_reference_numbers(name, prefix, kind, tolerance, normalize):
    case = Case(name, ihvp_calculator=kind, normalize=normalize)
    wanted = {key.split("__")[1]: value for key, value in case.data.items() if key.startswith(f"{prefix}_norm{int(normalize)}__")}
    calculator = case.calculator
    values = calculator.compute_influence_values(case.train)
    _, spec = cast(tuple, values.element_spec)
    assert spec.shape.as_list() == [None, 1]
    assert relative(joined(values)[:, 0], wanted["influence_values"]) < tolerance
    vectors = joined(calculator.compute_influence_vector(case.train))
    assert relative(vectors[: len(wanted["influence_vectors"])], wanted["influence_vectors"]) < tolerance
    group = case.head(10)
    assert relative(calculator.compute_influence_vector_group(group), wanted["group_vector"]) < tolerance
    assert relative(calculator.estimate_influence_values_group(group), wanted["group_value_self"]) < tolerance
    on_test = calculator.estimate_influence_values_group(group, case.test_head(10))
    assert relative(on_test, wanted["group_value_eval"]) < tolerance
    assert relative(matrix_of(calculator.estimate_influence_values_in_batches(case.test, case.train)), wanted["values_matrix"]) < tolerance
    for order, key in ((ORDER.DESCENDING, "desc"), (ORDER.ASCENDING, "asc")):
        samples, top = calculator.compute_top_k_from_training_dataset(case.train, 5, order)
        # The smallest self-influences are near 0 in case a: compare on the scale of all values.
        assert np.abs(top - wanted[f"train_top_{key}_values"]).max() < tolerance * np.abs(wanted["influence_values"]).max()
        assert samples.shape == (5, case.x.shape[1])
        found = calculator.top_k(case.test, case.train, 5, order=order)
        assert relative(joined(found), wanted[f"top_k_{key}_values"]) < tolerance


def test_top_k_gives_the_examples_their_positions_and_labels():
    case = Case("b")
    rows = list(case.calculator.top_k(case.test, case.train, 3, d_type=tf.float64, with_ids=True))
    matrix = matrix_of(case.calculator.estimate_influence_values_in_batches(case.test, case.train))
    start = 0
    for (x, _), values, samples, positions, labels in rows:
        expected = np.argsort(-matrix[start : start + len(x)], axis=1)[:, :3]
        assert np.array_equal(positions, expected)
        assert np.array_equal(samples, case.x[expected]) and np.array_equal(labels, case.y[expected])
        assert np.allclose(values, np.take_along_axis(matrix[start : start + len(x)], expected, 1), rtol=EXACT)
        start += len(x)
    assert start == 20


def test_more_than_there_are_gives_shorter_lists():
    case = Case("a")
    ((_, values, samples),) = list(case.calculator.top_k(case.test_head(2), case.head(3), k=10))
    assert values.shape == (2, 3) and samples.shape == (2, 3, 5) and np.isfinite(values).all()
    samples, values = case.calculator.compute_top_k_from_training_dataset(case.head(3), 10, ORDER.ASCENDING)
    assert values.shape == (3,) and np.all(np.diff(values) >= 0)


def test_a_nearest_neighbor_object_plugs_in():
    case = Case("a")
    wanted = joined(case.calculator.top_k(case.test, case.train, 4))

    class Recorded(LinearSearch):
        asked = 0

        def query(self, queries):
            self.asked += len(queries)
            return super().query(queries)

    search = Recorded()
    assert relative(joined(case.calculator.top_k(case.test, case.train, 4, nearest_neighbors=search)), wanted) < EXACT
    assert search.asked == 12


@pytest.mark.parametrize("kind", ["exact", "cgd", "gauss_newton"])
@pytest.mark.parametrize("source", ["slices", "generator", "prefetch", "tfrecord"])
def test_samples_for_the_hessian_work_on_any_dataset(kind, source, tmp_path):
    case = Case("a")
    dataset = case.train
    if source == "generator":
        signature = (tf.TensorSpec([None, 5], tf.float32), tf.TensorSpec([None, 1], tf.float32))
        dataset = tf.data.Dataset.from_generator(lambda: iter(case.train), output_signature=signature)
    elif source == "tfrecord":
        with tf.io.TFRecordWriter(str(tmp_path / "train.tfrecord")) as writer:
            for row in np.concatenate([case.x, case.y], axis=1).astype(np.float32):
                writer.write(row.tobytes())
        records = tf.data.TFRecordDataset(str(tmp_path / "train.tfrecord"))
        rows = records.map(lambda record: tf.ensure_shape(tf.io.decode_raw(record, tf.float32), [6]))
        dataset = rows.map(lambda row: (row[:5], row[5:])).batch(17)
    elif source == "prefetch":
        dataset = case.train.map(lambda x, y: (x, y)).cache().prefetch(2)
    options = {"ihvp_calculator": kind, "n_samples_for_hessian": 40}
    values = joined(FirstOrderInfluenceCalculator(case.model, dataset, **options).compute_influence_values(case.head(9)))
    again = joined(FirstOrderInfluenceCalculator(case.model, case.train, **options).compute_influence_values(case.head(9)))
    other = joined(FirstOrderInfluenceCalculator(case.model, dataset, **options, seed=1).compute_influence_values(case.head(9)))
    assert np.isfinite(values).all() and (values != 0).any()
    assert np.allclose(values, again, rtol=1e-6)  # seeded: the same examples, whatever the dataset; cg's own tolerance is 1e-8
    assert not np.allclose(values, other, rtol=1e-3)


def test_sizes_that_are_no_multiple_of_anything():
    case = Case("a", batch=7)
    wanted = joined(case.calculator.compute_influence_values(case.train))
    test = tf.data.Dataset.from_tensor_slices((case.data["x_test"], case.data["y_test"])).batch(5)  # 12 = 5 + 5 + 2
    assert joined(case.calculator.top_k(test, case.train.unbatch().batch(11), 3)).shape == (12, 3)
    assert relative(joined(case.calculator.compute_influence_values(case.train.unbatch().batch(13))), wanted) < EXACT
    value = case.calculator.estimate_influence_values_group(case.head(7, batch=3), case.test_head(5))  # 7 against 5
    matrix = matrix_of(case.calculator.estimate_influence_values_in_batches(case.test, case.train))
    assert np.isclose(value.numpy()[0, 0], matrix[:5, :7].sum(), rtol=EXACT)


def test_integer_inputs():
    images = reference.case_b()["x_train_raw"]
    case = Case("b")
    train = tf.data.Dataset.from_tensor_slices((images, case.y)).batch(32)
    floats = tf.data.Dataset.from_tensor_slices((images.astype(np.float32), case.y)).batch(32)
    found, wanted = (joined(FirstOrderInfluenceCalculator(case.model, d).compute_influence_values(d)) for d in (train, floats))
    assert relative(found, wanted) < EXACT


def test_dict_inputs_sample_weights_and_both_forms_of_elements():
    rng = np.random.default_rng(0)
    inputs = {"a": rng.normal(size=(30, 3)).astype(np.float32), "b": rng.normal(size=(30, 2)).astype(np.float32)}
    labels, weights = rng.integers(0, 3, 30), rng.uniform(0.5, 2, 30).astype(np.float32)
    features = keras.layers.Concatenate()([a := keras.Input((3,), name="a"), b := keras.Input((2,), name="b")])
    network = keras.Model({"a": a, "b": b}, keras.layers.Dense(3)(features))
    model = InfluenceModel(network, loss_function="softmax_cross_entropy", weight_decay=0.1)
    forms = {
        "(inputs, labels, weights)": (inputs, labels, weights),
        "((inputs, labels), weights)": ((inputs, labels), weights),
    }
    found = {}
    for form, data in forms.items():
        dataset = tf.data.Dataset.from_tensor_slices(data).batch(8)
        for kind in ("exact", "cgd"):
            calculator = FirstOrderInfluenceCalculator(model, dataset, kind)
            assert calculator.dataset_form == form
            found[form, kind] = joined(calculator.compute_influence_values(dataset))
    unweighted_data: Any = (inputs, labels)
    unweighted = tf.data.Dataset.from_tensor_slices(unweighted_data).batch(8)
    plain = joined(FirstOrderInfluenceCalculator(model, unweighted).compute_influence_values(unweighted))
    first, *others = found.values()
    assert all(np.allclose(first, other, rtol=1e-6) for other in others)  # cg's tolerance is 1e-8
    assert not np.allclose(first, plain, rtol=1e-2)


def test_batch_norm_statistics_are_not_weights():
    layers = [keras.layers.Dense(3), keras.layers.BatchNormalization(), keras.layers.Dropout(0.5), keras.layers.Dense(2)]
    network = keras.Sequential([keras.Input((4,)), *layers])
    model = InfluenceModel(network, weights="all", loss_function="squared_error")
    assert model.size == 4 * 3 + 3 + 2 * 3 + 3 * 2 + 2
    assert not any("moving" in name for name in model.weight_names)


def test_a_zero_gradient_stays_zero_when_normalized():
    x = np.array([[1.0, 2.0], [0.5, -1.0], [3.0, 1.0], [-1.0, 1.0]], np.float32)
    network = reference.dense_model(np.array([[2.0], [1.0]], np.float32), np.array([0.5], np.float32))
    y = network(x).numpy()
    y[1:] += 1
    train = tf.data.Dataset.from_tensor_slices((x, y)).batch(3)
    for normalize in (True, "theta", "loss"):
        model = InfluenceModel(network, loss_function="squared_error")
        calculator = FirstOrderInfluenceCalculator(model, train, normalize=normalize, damping=0.1)
        values = joined(calculator.compute_influence_values(train))
        assert values[0] == 0 and np.isfinite(values).all() and (values[1:] > 0).all()


def test_conjugate_gradients_say_when_they_did_not_converge():
    case = Case("b")
    network = keras.Sequential([keras.Input((64,)), keras.layers.Dense(4, activation="tanh"), keras.layers.Dense(10)])
    model = InfluenceModel(network, weights="all", loss_function="softmax_cross_entropy")
    with pytest.warns(NotConvergedWarning, match="relative residual of"):  # an untrained network: H is indefinite
        joined(FirstOrderInfluenceCalculator(model, case.train, "cgd").compute_influence_values(case.head(4)))
    with warnings.catch_warnings():
        warnings.simplefilter("error", NotConvergedWarning)
        joined(FirstOrderInfluenceCalculator(model, case.train, "cgd", damping=10.0).compute_influence_values(case.head(4)))


def test_the_curvature_reports_rank_damping_and_eigenvalues():
    meta = Case("b", damping=1e-3).calculator.preconditioner.meta
    assert meta["damping"] == 1e-3 and meta["rank"] == 650 and meta["examples"] == 300
    assert meta["smallest_eigenvalue"] == pytest.approx(0.005, rel=1e-6)  # the L2 term alone, in the flat directions


def test_rank_keeps_the_residual_term_and_passes_cap_the_iterations():
    case = Case("b", damping=1e-3, rank=20)
    gradients, hessian = reference.softmax_closed_form(
        case.x, case.y, case.data["kernel"], case.data["bias"], float(case.data["lam"])
    )
    values, vectors = np.linalg.eigh(hessian)
    values[:-20] = values[-20]
    wanted = np.einsum("ip,ip->i", gradients @ (vectors / (values + 1e-3)) @ vectors.T, gradients)
    assert relative(joined(case.calculator.compute_influence_values(case.train))[:, 0], wanted) < EXACT
    assert case.calculator.preconditioner.meta["rank"] == 20
    with pytest.warns(NotConvergedWarning, match="after at most 3 iterations"):
        joined(Case("b", ihvp_calculator="cgd", passes=3).calculator.compute_influence_values(case.head(4)))
    with pytest.raises(ValueError, match="passes=3 must be at least 1, and goes with"):
        Case("b", passes=3)
    with pytest.raises(ValueError, match="rank=0 must be at least 1"):
        Case("b", rank=0)


def test_what_it_can_not_do_is_refused_with_the_mend():
    case = Case("a")
    with pytest.raises(ValueError, match=r"not batched.*batch\(n\)"):
        FirstOrderInfluenceCalculator(case.model, case.train.unbatch())
    with pytest.raises(ValueError, match="can't evaluate the dataset"):
        nine = tf.data.Dataset.from_tensor_slices((np.zeros((4, 9), np.float32), np.zeros((4, 1)))).batch(2)
        FirstOrderInfluenceCalculator(case.model, nine)
    with pytest.raises(ValueError, match=r"model must be an InfluenceModel, not Sequential; write InfluenceModel\(model\)"):
        FirstOrderInfluenceCalculator(tf.keras.Sequential(), case.train)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no curvature is called 'nope'"):
        FirstOrderInfluenceCalculator(case.model, case.train, "nope")
    with pytest.raises(ValueError, match="n_samples=0"):
        FirstOrderInfluenceCalculator(case.model, case.train, n_samples_for_hessian=0)
    bad = tf.data.Dataset.from_tensor_slices((np.full((2, 5), np.nan, np.float32), np.zeros((2, 1), np.float32))).batch(2)
    with pytest.raises(tf.errors.InvalidArgumentError, match="loss is nan"):  # TensorFlow's wrapping of a generator's error
        joined(case.calculator.compute_influence_values(bad))


def test_compatible_datasets_have_the_same_number_of_examples():
    """Whatever their batches: 20 in batches of 5 and of 4 are compatible, 20 and 17 are not."""
    compatible = FirstOrderInfluenceCalculator.assert_compatible_datasets
    twenty, seventeen = tf.data.Dataset.range(20), tf.data.Dataset.range(17)
    assert compatible(twenty.batch(5), twenty.batch(4)) == 20
    assert compatible(twenty.batch(6), twenty.filter(lambda _: True).batch(20)) == 20  # unknown cardinality
    with pytest.raises(ValueError, match="20 and 17 examples; they must have the same number"):
        compatible(twenty.batch(5), seventeen.batch(5))  # four batches each
    with pytest.raises(ValueError, match=r"not batched: its elements are single numbers; call dataset.batch\(n\)"):
        compatible(twenty.batch(5), twenty)
    case = Case("a")
    assert case.calculator.assert_compatible_datasets(case.train, case.train.map(lambda x, y: x).unbatch().batch(7)) == 60
