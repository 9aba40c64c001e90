"""Every form in which a data set may come, told apart by the model, and each refusal."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from beam_influence import FirstOrderInfluenceCalculator, InfluenceModel
from beam_influence.influence_ops.calculator.tf_datasets import (
    NESTED,
    PAIR,
    PROCESSED,
    WEIGHTED,
    count_points,
    dataset_form,
    example_batches,
    example_digests,
)
from beam_influence.influence_ops.curvature.sample import concatenate, from_arrays, to_arrays
from beam_influence.influence_ops.reading.example_batch import ExampleBatch

EXACT = 1e-9  # the same float64 sums in another order
rng = np.random.default_rng(0)
X, LABELS, WEIGHTS = rng.normal(5, 3, (8, 4)).astype(np.float32), rng.integers(0, 3, 8), rng.uniform(0.5, 2, 8).astype(np.float32)
OTHER = X[::-1].copy()


def difference_model(declared: str = "list", loss: Any = "sparse_categorical_crossentropy") -> InfluenceModel:
    """softmax((a − b) W + c): a model of two inputs, declared as a list or a dictionary."""
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    keras.utils.set_random_seed(1)
    outputs = keras.layers.Dense(3, "softmax")(keras.layers.Subtract()([a, b]))
    return InfluenceModel(keras.Model([a, b] if declared == "list" else {"a": a, "b": b}, outputs), weights="all", loss_function=loss)


def one_input_model() -> InfluenceModel:
    return InfluenceModel(keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]), loss_function="softmax_cross_entropy")


def sliced(data: Any, batch: int = 3) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices(data).batch(batch)


def self_influence(model: InfluenceModel, dataset: tf.data.Dataset) -> np.ndarray:
    values = FirstOrderInfluenceCalculator(model, dataset, "identity").compute_influence_values(dataset)
    return np.concatenate([np.asarray(value)[:, 0] for _, value in values])


def closed_form(model: InfluenceModel) -> np.ndarray:
    """‖∇ℓ‖² of softmax regression on a − b: (Σ_c (p_c − y_c)²) (‖a − b‖² + 1)."""
    theta = model.parameters()
    difference = X.astype(np.float64) - OTHER
    z = difference @ theta[:12].reshape(4, 3) + theta[12:]
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[np.arange(8), LABELS] -= 1
    return np.sum(p**2, 1) * (np.sum(difference**2, 1) + 1)


@pytest.mark.parametrize("declared", ["list", "dict"])
@pytest.mark.parametrize("data, form, weighted", [
    (((X, OTHER), LABELS), PAIR, False),
    (((X, OTHER), LABELS, WEIGHTS), WEIGHTED, True),
    ((((X, OTHER), LABELS), WEIGHTS), NESTED, True),
    (({"a": X, "b": OTHER}, LABELS), PAIR, False),
    (({"b": OTHER, "a": X, "not_an_input": LABELS}, LABELS), PAIR, False),
    (({"a": X, "b": OTHER}, LABELS, WEIGHTS), WEIGHTED, True),
    ((({"a": X, "b": OTHER, "not_an_input": LABELS}, LABELS), WEIGHTS), NESTED, True),
])  # fmt: skip
def test_a_model_of_two_inputs(declared, data, form, weighted):
    model, dataset = difference_model(declared), sliced(data)
    assert dataset_form(dataset, model) == form
    wanted = closed_form(model) * (WEIGHTS.astype(np.float64) ** 2 if weighted else 1)
    assert np.allclose(self_influence(model, dataset), wanted, rtol=EXACT)
    found = FirstOrderInfluenceCalculator(model, dataset, "identity").top_k(dataset, dataset, 1, d_type=tf.float64)
    spec: Any = found.element_spec
    assert tf.nest.map_structure(lambda leaf: leaf.shape.rank, spec[2]) == tf.nest.map_structure(
        lambda leaf: leaf.ndim + 1, data[0] if form != NESTED else data[0][0]
    )
    # The example with itself is the best one here, or a longer one of the same direction: the value tells.
    assert all(np.isfinite(values).all() for _, values, _ in found)


@pytest.mark.parametrize("data, form", [
    ((X, LABELS), PAIR), ((X, LABELS, WEIGHTS), WEIGHTED), (((X, LABELS), WEIGHTS), NESTED), (((X,), LABELS), PAIR),
])  # fmt: skip
def test_a_model_of_one_input(data, form):
    model, dataset = one_input_model(), sliced(data)
    assert dataset_form(dataset, model) == form
    ((_, batch),) = list(example_batches(dataset.unbatch().batch(8), model))
    assert np.array_equal(np.asarray(tf.nest.flatten(batch.inputs)[0]), X) and np.array_equal(np.asarray(batch.labels), LABELS)


class Subclassed(keras.Model):
    """Declares no inputs."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(3)

    def call(self, inputs):
        return self.dense(inputs["a"] if isinstance(inputs, dict) else inputs)


def subclassed_model() -> InfluenceModel:
    network = Subclassed()
    network(X)
    return InfluenceModel(network, loss_function="softmax_cross_entropy", weights="all")


@pytest.mark.parametrize("make, data, message", [
    (difference_model, ((X, OTHER, X), LABELS), r"taken as \(inputs, labels\), with 3 inputs; the model has 2: a, b. Give them as"),
    (difference_model, (X, LABELS), "with 1 inputs; the model has 2: a, b"),
    (difference_model, (X, OTHER, LABELS), r"taken as \(inputs, labels, weights\), with 1 inputs; the model has 2"),
    (difference_model, ({"a": X, "c": OTHER}, LABELS), r"inputs are \['a', 'c'\]; the model's input 'b' is not among them"),
    (one_input_model, ((X, OTHER, X), LABELS), "with 3 inputs; the model has 1"),
    (one_input_model, X, r"must be \(inputs, labels\)"),
    (subclassed_model, ((X, OTHER), LABELS), r"can't be told, since the model declares no inputs; give the inputs as a dictionary"),
    (subclassed_model, ((X, OTHER), LABELS, WEIGHTS), "a tuple of them has no names; give them as a dictionary"),
])  # fmt: skip
def test_what_can_not_be_told_is_refused(make, data, message):
    with pytest.raises(ValueError, match=message):
        dataset_form(sliced(data), make())


def test_a_subclassed_model_takes_weights_and_dictionaries():
    model = subclassed_model()
    assert dataset_form(sliced(((X, LABELS), WEIGHTS)), model) == NESTED
    by_name = sliced(({"a": X}, LABELS))
    assert dataset_form(by_name, model) == PAIR
    ((_, batch),) = list(example_batches(by_name.unbatch().batch(8), model))
    assert np.array_equal(batch.inputs["a"], X)  # type: ignore[index]


def test_ragged_and_unbatched_are_refused():
    model = one_input_model()
    for dataset in (tf.data.Dataset.from_tensor_slices((X, LABELS)), tf.data.Dataset.from_tensor_slices(((X, LABELS), WEIGHTS))):
        with pytest.raises(ValueError, match=r"not batched \(an input has the shape \(4,\)\); call dataset.batch\(n\) first"):
            dataset_form(dataset, model)
    ragged = tf.data.Dataset.from_tensor_slices((tf.ragged.constant([[1.0], [1.0, 2.0]]), [0, 1])).batch(2)
    with pytest.raises(ValueError, match="must be dense: pad ragged ones with padded_batch"):
        dataset_form(ragged, model)


def batch_of(data: Any, model: InfluenceModel) -> ExampleBatch:
    ((_, batch),) = list(example_batches(sliced(data, 8), model))
    return batch


def test_weights_by_example_or_by_position():
    model = one_input_model()
    by_position = rng.uniform(size=(8, 5)).astype(np.float32)
    for given, wanted in ((WEIGHTS, WEIGHTS), (WEIGHTS[:, None], WEIGHTS), (by_position, by_position)):
        found = batch_of((X, LABELS, given), model).weights
        assert found is not None and found.dtype == np.float64 and np.array_equal(found, wanted.astype(np.float64))
    with pytest.raises(ValueError, match="has weights for each output; give one array"):
        batch_of((X, (LABELS, LABELS), (WEIGHTS, WEIGHTS)), model)


@pytest.mark.parametrize("labels", [(LABELS, X), {"kind": LABELS, "where": X}])
def test_labels_of_several_outputs_keep_their_structure(labels):
    batch = batch_of((X, labels), one_input_model())
    tf.nest.assert_same_structure(batch.labels, labels)
    some = batch.select(np.array([1, 5]))
    for found, wanted in zip(tf.nest.flatten(some.labels), tf.nest.flatten(labels), strict=True):
        assert np.array_equal(found, wanted[[1, 5]])
    again = from_arrays(to_arrays(concatenate(some, batch.select(np.array([0])))))  # as a sample keeps and saves it
    for found, wanted in zip(tf.nest.flatten(again.labels), tf.nest.flatten(labels), strict=True):
        assert np.array_equal(found, wanted[[1, 5, 0]])
    tf.nest.assert_same_structure(again.labels, labels)


def two_heads_loss(labels: Any, outputs: Any) -> tf.Tensor:
    return tf.reduce_sum(tf.square(labels[0] - outputs[0]), -1) + 3 * tf.reduce_sum(tf.square(labels[1] - outputs[1]), -1)


def test_a_model_of_two_outputs_takes_a_tuple_of_labels():
    inputs = keras.Input((4,), name="x")
    network = keras.Model(inputs, [keras.layers.Dense(1, use_bias=False)(inputs), keras.layers.Dense(2, use_bias=False)(inputs)])
    model = InfluenceModel(network, weights="all", loss_function=two_heads_loss)
    first, second = rng.normal(size=(8, 1)).astype(np.float32), rng.normal(size=(8, 2)).astype(np.float32)
    data: Any = (X, (first, second))
    theta = model.parameters()
    errors = (2 * (X @ theta[:4, None] - first), 6 * (X @ theta[4:].reshape(4, 2) - second))
    wanted = sum(np.sum(error.astype(np.float64) ** 2, 1) for error in errors) * np.sum(X.astype(np.float64) ** 2, 1)
    assert np.allclose(self_influence(model, sliced(data)), wanted, rtol=1e-6)  # X and labels are float32


def test_strings_pass_through():
    words = np.array(["one", "two", "three", "four", "five", "six", "seven", "eight"])
    batch = batch_of((words, LABELS), subclassed_model())
    assert batch.inputs[2] == b"three"  # type: ignore[index]
    assert len(set(example_digests(batch).tolist())) == 8


def test_the_models_own_process_function_takes_the_element_apart():
    """As the reference's `process_batch_for_loss_fn`: (inputs, labels, weights or None) from whatever the elements are."""
    model = one_input_model()
    wanted = self_influence(model, sliced((X, LABELS, WEIGHTS)))
    rows = {"pixels": (X * 2).astype(np.float32), "truth": LABELS, "trust": WEIGHTS}
    model.process_batch_for_loss_fn = lambda row: (row["pixels"] / 2, row["truth"], row["trust"])
    dataset = sliced(rows)
    assert dataset_form(dataset, model) == PROCESSED
    assert np.allclose(self_influence(model, dataset), wanted, rtol=EXACT)
    calculator = FirstOrderInfluenceCalculator(model, dataset, "identity")
    ((element, values, samples),) = list(calculator.top_k(dataset.take(1), dataset, 2, d_type=tf.float64))
    assert set(element) == {"pixels", "truth", "trust"} and values.shape == (3, 2)
    assert np.isin(np.asarray(samples["pixels"]).reshape(-1, 4), rows["pixels"]).all()


def test_digests_tell_examples_apart_and_stay_wherever_they_stand():
    model = one_input_model()
    whole = example_digests(batch_of((X, LABELS, WEIGHTS), model))
    assert len(set(whole.tolist())) == 8
    by_three = [example_digests(batch) for _, batch in example_batches(sliced((X[::-1], LABELS[::-1], WEIGHTS[::-1])), model)]
    assert np.array_equal(np.concatenate(by_three)[::-1], whole)
    changed = np.where(np.arange(8) == 3, LABELS + 1, LABELS)
    assert (example_digests(batch_of((X, changed, WEIGHTS), model)) != whole).nonzero()[0].tolist() == [3]


def test_points_are_counted():
    assert count_points(sliced((X, LABELS))) == 8
    assert count_points(sliced(({"a": X, "b": X}, LABELS), 5)) == 8
