"""The model's fingerprint, the privacy of its copy, and what is refused."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from beam_influence import InfluenceModel
from beam_influence.influence_ops.model.linear_head import LinearHeadDerivatives
from beam_influence.influence_ops.reading.example_batch import ExampleBatch
from beam_influence.influence_ops.reading.features import ModelInput

layers = keras.layers


def network(l2: float = 0.0, seed: int = 0, dtype: str = "float32") -> keras.Model:
    penalty = keras.regularizers.L2(l2) if l2 else None
    model = keras.Sequential(
        [
            keras.Input((4,), name="x", dtype=dtype),
            layers.Dense(3, name="hidden", dtype=dtype),
            layers.BatchNormalization(dtype=dtype),
            layers.Dropout(0.5, dtype=dtype),
            layers.Dense(2, name="head", kernel_regularizer=penalty, dtype=dtype),
        ]
    )
    random = np.random.default_rng(seed)
    model.set_weights([random.uniform(0.1, 1, weight.shape).astype(weight.dtype) for weight in model.get_weights()])
    return model


def wrapped(model: keras.Model | None = None, **options: Any) -> InfluenceModel:
    given: dict[str, Any] = {"loss_function": "softmax_cross_entropy"} | options
    return InfluenceModel(model or network(), **given)


def batch(count: int = 3) -> ExampleBatch:
    random = np.random.default_rng(1)
    ids = np.array([str(row) for row in range(count)], dtype=object)
    return ExampleBatch(ids, random.standard_normal((count, 4)).astype(np.float32), random.integers(0, 2, count))


class TestFingerprint:
    def test_is_the_same_for_the_same_model(self):
        assert wrapped().fingerprint() == wrapped().fingerprint()
        assert len(wrapped().fingerprint()) == 64

    def test_does_not_depend_on_the_precision(self):
        assert {wrapped(precision=precision).fingerprint() for precision in ("auto", "float64", "native")} == {wrapped().fingerprint()}

    def test_does_not_change_with_use(self):
        model = wrapped()
        before = model.fingerprint()
        model.losses_and_gradients(batch())
        model.gauss_newton_sum(batch())
        assert model.fingerprint() == before

    @pytest.mark.parametrize("index", range(8))
    def test_changes_with_any_weight(self, index):
        """Of watched and unwatched layers, and BatchNorm's moving statistics."""
        model = network()
        weights = model.get_weights()
        assert len(weights) == 8
        weights[index].flat[-1] = np.nextafter(weights[index].flat[-1], np.float32(2))
        model.set_weights(weights)
        assert wrapped(model).fingerprint() != wrapped().fingerprint()

    @pytest.mark.parametrize(
        "options",
        [
            {"loss_function": "squared_error"},
            {"weight_decay": 0.1},
            {"regularizer": "loss"},
            {"weights": "all"},
            {"weights": "hidden/"},
        ],
    )
    def test_changes_with_each_option(self, options):
        assert wrapped(**options).fingerprint() != wrapped().fingerprint()

    def test_of_a_layer_whose_own_configuration_fails(self):
        class Unconfigured(keras.layers.Dense):
            def get_config(self):
                return {"size": self.size}  # which it does not have

        found = set()
        for seed in (0, 0, 1):
            keras.utils.set_random_seed(seed)
            found.add(wrapped(keras.Sequential([keras.Input((3,)), Unconfigured(2)]), loss_function="squared_error").fingerprint())
        assert len(found) == 2

    def test_changes_with_the_models_own_regulariser(self):
        found = {wrapped(network(l2)).fingerprint() for l2 in (0.0, 0.1, 0.2)}
        assert len(found) == 3
        assert wrapped(network(0.1), precision="native").fingerprint() == wrapped(network(0.1)).fingerprint()

    def test_of_another_weight_decay_of_the_same_model(self):
        model = wrapped()
        other = model.with_weight_decay(0.1)
        assert other.fingerprint() == wrapped(weight_decay=0.1).fingerprint()
        assert model.fingerprint() == wrapped().fingerprint()
        np.testing.assert_allclose(other.regularizer_gradient(), 0.1 * model.parameters(), rtol=1e-12)  # one float64 product
        assert not model.regularizer_gradient().any()


@pytest.mark.parametrize("precision", ["float64", "native"])
def test_the_users_model_is_never_changed(precision):
    model = network()
    model.compile(loss="mse")
    weights, dtypes = model.get_weights(), [weight.dtype for weight in model.weights]
    explained = wrapped(model, weights="all", precision=precision)
    before = explained.losses(batch())
    explained.losses_and_gradients(batch())
    explained.hessian_sum(batch())
    explained.check(batch())
    assert all((a == b).all() for a, b in zip(weights, model.get_weights(), strict=True))
    assert [weight.dtype for weight in model.weights] == dtypes
    assert model.loss == "mse"
    assert all(layer.trainable for layer in model.layers)
    # A copy does not follow further training; in its own precision the model is itself.
    model.set_weights([weight * 0 for weight in weights])
    assert (explained.losses(batch()).tolist() == before.tolist()) == (precision == "float64")
    assert (explained.fingerprint() == wrapped(weights="all").fingerprint()) == (precision == "float64")


def test_the_activation_stays_on_the_users_model():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, activation="softmax")])
    x = batch().inputs
    before = np.asarray(model(x))
    assert isinstance(wrapped(model).derivatives, LinearHeadDerivatives)
    assert np.asarray(model(x)).tolist() == before.tolist()
    assert model.layers[-1].activation is keras.activations.softmax


def test_sizes_names_and_parameters():
    model = wrapped()
    assert (model.size, model.total_size) == (8, 8 + 15 + 6)
    assert [name.split("/")[-1] for name in model.weight_names] == ["kernel", "bias"]
    assert model.dtype == "float64"
    assert wrapped(precision="native").dtype == "float32"
    original = network()
    wanted = np.concatenate([np.asarray(weight).ravel() for weight in original.layers[-1].get_weights()])
    assert model.parameters().dtype == np.float64
    assert model.parameters().tolist() == wanted.astype(np.float64).tolist()


def test_inputs_as_declared():
    assert wrapped().inputs == (ModelInput("x", (4,), "float32"),)
    assert wrapped(network(dtype="float64")).inputs == (ModelInput("x", (4,), "float64"),)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight_decay": -0.1}, "weight_decay=-0.1 must be a number of at least 0"),
        ({"weight_decay": float("nan")}, "weight_decay=nan must be"),
        ({"weight_decay": float("inf")}, "weight_decay=inf must be"),
        ({"regularizer": "both"}, "regularizer='both' must be 'curvature' or 'loss'"),
        ({"precision": "float16"}, "precision='float16' must be one of auto, float64, native, tf32, bfloat16"),
        ({"loss_function": None}, "carries no compiled loss"),
        ({"loss_function": "nonsense"}, "no loss is called 'nonsense'"),
        ({"weights": "nonsense"}, "weights='nonsense' matches none"),
        ({"start_layer": 7}, "no layer 7"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        wrapped(**options)


@pytest.mark.parametrize("value", [-1.0, float("nan")])
def test_a_wrong_weight_decay_of_the_same_model_is_refused(value):
    with pytest.raises(ValueError, match="weight_decay=.* must be a number of at least 0"):
        wrapped().with_weight_decay(value)


def test_a_model_without_weights_yet_is_refused():
    with pytest.raises(ValueError, match="no weights yet; call it once on a batch"):
        wrapped(keras.Sequential([layers.Dense(2)]))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.head = layers.Dense(2)

    def call(self, x: Any) -> Any:
        return self.head(x)


def test_a_subclassed_model_stays_in_its_own_precision():
    model = Subclassed()
    model(np.zeros((1, 4), np.float32))
    explained = wrapped(model)
    assert explained.dtype == "float32"
    with pytest.raises(ValueError, match="Subclassed is a subclassed model and can't be rebuilt in float64; use precision 'native'"):
        wrapped(model, precision="float64")
    with pytest.raises(ValueError, match="declares no inputs .a subclassed model.; wrap it"):
        _ = explained.inputs


def test_the_fingerprint_changes_with_the_architecture_alone() -> None:
    def network(activation: str, last: str) -> keras.Model:
        layers = [keras.layers.Dense(4, activation=activation), keras.layers.Dense(3, activation=last)]
        model = keras.Sequential([keras.Input((5,)), *layers])
        model.set_weights([np.full(weight.shape, 0.1, np.float32) for weight in model.get_weights()])
        return model

    kinds = [("relu", "linear"), ("tanh", "linear"), ("relu", "softmax")]
    prints = [InfluenceModel(network(*kind), loss_function="squared_error").fingerprint() for kind in kinds]
    assert len(set(prints)) == 3
    assert InfluenceModel(network("relu", "linear"), loss_function="squared_error").fingerprint() == prints[0]
