"""What a train function is given, and what is done with what it returns."""

from __future__ import annotations

import pathlib
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest

from beam_influence.influence_ops.evaluation.retraining import (
    Outcome,
    Retraining,
    evaluate_test_points,
    kept_examples,
    load_train_function,
    retrain,
)
from beam_influence.influence_ops.model.influence_model import InfluenceModel
from beam_influence.influence_ops.reading.example_batch import ExampleBatch

N = 11


def batches(weights: bool = False, inputs: str = "array") -> list[ExampleBatch]:
    x, y = np.arange(2.0 * N).reshape(N, 2), np.arange(N) % 3
    ids = np.array([f"id{row}" for row in range(N)], dtype=object)
    parts = []
    for rows in np.array_split(np.arange(N), 3):
        given = x[rows] if inputs == "array" else {"a": x[rows], "word": np.array([f"w{row}".encode() for row in rows], dtype=object)}
        parts.append(ExampleBatch(ids[rows], given, y[rows], weights=0.5 * rows if weights else None))
    return parts


def places(count: int = N) -> dict[str, int]:
    return {f"id{row}": row for row in range(count)}


def test_the_examples_that_are_kept_in_order_and_as_often_as_wanted() -> None:
    mask = np.arange(N) % 2 == 1
    examples = kept_examples(batches, mask, places())
    assert int(examples.cardinality()) == 5
    for _ in range(2):
        rows = [(x.tolist(), int(y)) for x, y in examples.as_numpy_iterator()]
        assert rows == [([2.0 * row, 2.0 * row + 1], row % 3) for row in (1, 3, 5, 7, 9)]


def test_weights_and_several_inputs() -> None:
    mask = np.isin(np.arange(N), [0, 10])
    rows = list(kept_examples(lambda: batches(True, "several"), mask, places()).as_numpy_iterator())
    assert [(x["word"], x["a"][0], int(y), float(w)) for x, y, w in rows] == [(b"w0", 0.0, 0, 0.0), (b"w10", 20.0, 1, 5.0)]


def test_examples_that_are_in_no_mask_are_left_out() -> None:
    examples = kept_examples(batches, np.ones(4, bool), places(4))
    assert len(list(examples)) == 4 == int(examples.cardinality())
    with pytest.raises(ValueError, match="no training example at all"):
        kept_examples(batches, np.zeros(N, bool), places())


def test_a_retraining_travels_as_bits_and_has_a_name() -> None:
    mask = np.random.default_rng(0).random(1003) < 0.5
    one = Retraining.of(mask, 3)
    assert np.array_equal(one.mask, mask) and len(one.kept) == 126
    names = {one.digest("c"), one.digest("d"), Retraining.of(mask, 4).digest("c"), Retraining.of(~mask, 3).digest("c")}
    assert len(names) == 4 and one.digest("c") == Retraining.of(mask.copy(), 3).digest("c")


def network(units: int = 3, activation: str | None = None) -> keras.Model:
    inputs = keras.Input((2,), name="x")
    return keras.Model(inputs, keras.layers.Dense(units, activation=activation)(inputs))


def test_seeded_before_the_call() -> None:
    def train(examples, seed):
        return network()

    found = [retrain(train, Retraining.of(np.ones(N, bool), seed), batches, places()).get_weights()[0] for seed in (1, 1, 2)]
    assert np.array_equal(found[0], found[1]) and not np.array_equal(found[0], found[2])


def test_trainings_beside_each_other_draw_from_their_own_seeds() -> None:
    """The generators belong to the process: a training that another one interrupted would go on with the other's."""
    mask = np.ones(N, dtype=bool)

    def train(examples: object, seed: int) -> keras.Model:
        model = network()
        for array in model.trainable_variables:
            time.sleep(0.02)  # long enough for the others to come in
            array.assign(np.random.normal(size=array.shape))
        return model

    def weights(seed: int) -> np.ndarray:
        trained = retrain(train, Retraining.of(mask, seed), batches, places())
        return np.concatenate([np.ravel(array) for array in trained.get_weights()])

    alone = [weights(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(weights, range(4)))
    np.testing.assert_array_equal(together, alone)


def test_weights_that_are_not_finite_are_refused() -> None:
    def train(examples, seed):
        model = network()
        model.set_weights([np.full((2, 3), np.nan), np.zeros(3)])
        return model

    with pytest.raises(ValueError, match="weights that are not finite"):
        retrain(train, Retraining.of(np.ones(N, bool), 0), batches, places())


def test_losses_and_classes_under_the_trained_weights() -> None:
    scored = InfluenceModel(network(activation="softmax"), loss_function=keras.losses.SparseCategoricalCrossentropy(), weights="all")
    trained = network(activation="softmax")
    trained.set_weights([0.05 * array for array in trained.get_weights()])  # no probability near 0
    outcome = evaluate_test_points(scored, trained, batches())
    probabilities = np.asarray(trained(np.arange(2.0 * N).reshape(N, 2)), dtype=np.float64)
    labels = np.arange(N) % 3
    # The trained model is float32, the scored copy float64.
    assert outcome.losses == pytest.approx(-np.log(probabilities[np.arange(N), labels]), rel=1e-4)
    assert outcome.predictions.tolist() == probabilities.argmax(axis=1).tolist()
    again = Outcome.from_table(outcome.table())
    assert np.array_equal(again.losses, outcome.losses) and again.test_ids.tolist() == outcome.test_ids.tolist()


@pytest.mark.parametrize(("loss", "activation"), [(keras.losses.BinaryCrossentropy(), "sigmoid"), ("sigmoid_cross_entropy", None)])
def test_one_output_has_two_classes(loss: keras.losses.Loss | str, activation: str | None) -> None:
    scored = InfluenceModel(network(1, activation), loss_function=loss, weights="all")
    trained = network(1, activation)
    trained.set_weights([np.array([[1.0], [0.0]]), np.array([-9.0])])  # positive from the sixth example on
    binary = [ExampleBatch(batch.ids, batch.inputs, batch.labels % 2) for batch in batches()]  # type: ignore[operator]
    assert evaluate_test_points(scored, trained, binary).predictions.tolist() == [0] * 5 + [1] * 6


def test_outputs_that_are_no_classes() -> None:
    scored = InfluenceModel(network(1), loss_function="squared_error", weights="all")
    outcome = evaluate_test_points(scored, network(1), batches())
    assert (outcome.predictions == -1).all() and outcome.table().column("prediction").null_count == N
    assert (Outcome.from_table(outcome.table()).predictions == -1).all()


def test_another_source_is_another_function(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    digests = []
    for body in ("return 1", "return 2"):
        (tmp_path / "their_training.py").write_text(f"def train(examples, seed):\n    {body}\n")
        sys.modules.pop("their_training", None)
        digests.append(load_train_function("their_training:train")[1])
    assert digests[0] != digests[1]
