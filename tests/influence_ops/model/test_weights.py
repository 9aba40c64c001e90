"""Every way to choose the watched weights, and each refusal."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from beam_influence.influence_ops.model.weights import LAST_WITH_WEIGHTS, StartLayer, watched_variables

layers = keras.layers


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(3, name="first"),
            layers.BatchNormalization(name="norm"),
            layers.Activation("tanh", name="no_weights"),
            layers.Dense(3, name="second"),
            layers.Dropout(0.5, name="dropout"),
            layers.Dense(2, use_bias=False, name="head"),
        ]
    )


def chosen(
    model: keras.Model, weights: str | None = None, start: StartLayer = LAST_WITH_WEIGHTS, last: int | str | None = None
) -> list[str]:
    return ["/".join(variable.path.split("/")[-2:]) for variable in watched_variables(model, weights, start, last)]


FIRST = ["first/kernel", "first/bias"]
NORM = ["norm/gamma", "norm/beta"]
SECOND = ["second/kernel", "second/bias"]
HEAD = ["head/kernel"]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, HEAD),
        ({"weights": "last"}, HEAD),
        ({"weights": "all"}, FIRST + NORM + SECOND + HEAD),
        ({"weights": "second/"}, SECOND),
        ({"weights": "kernel$"}, ["first/kernel", "second/kernel", "head/kernel"]),
        ({"weights": "first/kernel|head"}, ["first/kernel", "head/kernel"]),
        # Indices are over all layers: 0 first, 1 norm, 2 no_weights, 3 second, 4 dropout, 5 head.
        ({"start": 0}, FIRST),
        ({"start": 3}, SECOND),
        ({"start": "3"}, SECOND),
        ({"start": -1}, HEAD),
        ({"start": -3}, SECOND),
        ({"start": "second"}, SECOND),
        ({"start": None}, SECOND),  # the reference's default: the layer before the head
        ({"start": 0, "last": 1}, FIRST + NORM),
        ({"start": 0, "last": -1}, FIRST + NORM + SECOND + HEAD),
        ({"start": "first", "last": "norm"}, FIRST + NORM),
        ({"start": "second", "last": "second"}, SECOND),
        ({"start": 1, "last": -3}, NORM + SECOND),
        ({"start": 2, "last": 4}, SECOND),  # a range may begin and end without weights
        ({"start": None, "last": "head"}, SECOND + HEAD),
        ({"last": -1}, HEAD),
    ],
)
def test_selections(model, options, wanted):
    assert chosen(model, **options) == wanted


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "nothing_like_it"}, "weights='nothing_like_it' matches none of the model's weights: .*first/kernel.*head/kernel"),
        ({"weights": "("}, r"weights='\(' is not a regular expression"),
        ({"start": "no_weights"}, r"layer 'no_weights' \(no_weights\) has no trainable weights; .* 0: first, 1: norm, 3: second, 5: head"),
        ({"start": -2}, r"layer -2 \(dropout\) has no trainable weights; .* 0: first"),
        ({"start": 2, "last": 2}, r"layer 2 \(no_weights\) has no trainable weights"),
        ({"start": 6}, "no layer 6 among the model's 6; the layers with trainable weights are 0: first"),
        ({"start": -7}, "no layer -7 "),
        ({"start": "missing"}, "no layer 'missing' "),
        ({"start": 0, "last": "missing"}, "no layer 'missing' "),
        ({"start": "head", "last": "first"}, "last_layer='first' comes before start_layer='head'"),
        ({"start": -1, "last": 0}, "last_layer=0 comes before start_layer=-1: 'first' before 'head'"),
        ({"last": 0}, "last_layer=0 comes before start_layer=the last layer with weights"),
        ({"weights": "last", "start": 0}, "weights='last' and start_layer=0, last_layer=None both choose"),
    ],
)
def test_refusals(model, options, message):
    with pytest.raises(ValueError, match=message):
        chosen(model, **options)


def test_only_trainable_weights_are_watched():
    network = keras.Sequential([keras.Input((4,)), layers.Dense(3, name="frozen"), layers.Dense(2, name="head")])
    network.get_layer("frozen").trainable = False
    assert chosen(network, "all") == ["head/kernel", "head/bias"]
    assert chosen(network, None, 0, -1) == ["head/kernel", "head/bias"]
    network.get_layer("head").trainable = False
    with pytest.raises(ValueError, match="no trainable weights; nothing can be watched"):
        chosen(network, "all")


def test_a_model_that_ends_without_weights():
    """None is the last layer with weights before the last layer of all, -1 that last layer."""
    network = keras.Sequential([keras.Input((4,)), layers.Dense(3, name="hidden"), layers.Dense(2, name="head"), layers.Softmax()])
    assert chosen(network) == chosen(network, start=None) == ["head/kernel", "head/bias"]
    with pytest.raises(ValueError, match="layer -1 .*softmax.* has no trainable weights"):
        chosen(network, start=-1)


def test_one_layer_has_none_before_it():
    network = keras.Sequential([keras.Input((4,)), layers.Dense(2, name="only")])
    assert chosen(network, start=-1) == chosen(network, start=0) == chosen(network) == ["only/kernel", "only/bias"]
    with pytest.raises(ValueError, match="start_layer=None .* there is none; .* 0: only"):
        chosen(network, start=None)


def test_an_input_layer_is_counted_and_a_frozen_one_has_no_weights_to_watch():
    inputs = keras.Input((4,), name="in")
    network = keras.Model(inputs, layers.Dense(2, name="b")(layers.Dense(3, name="a")(inputs)))
    assert chosen(network, start=1) == ["a/kernel", "a/bias"]
    with pytest.raises(ValueError, match=r"layer 0 \(in\) has no trainable weights; .* 1: a, 2: b"):
        chosen(network, start=0)
    network.get_layer("a").trainable = False
    with pytest.raises(ValueError, match=r"layer 'a' \(a\) has no trainable weights; the layers with trainable weights are 2: b"):
        chosen(network, start="a")


class Bare(keras.Model):
    """Weights of its own and no layers."""

    def __init__(self):
        super().__init__()
        self.scale = self.add_weight(shape=(2,), name="scale")

    def call(self, x):
        return x * self.scale


@pytest.mark.parametrize("options", [{}, {"weights": "last"}])
def test_a_model_without_layers_is_told_so(options):
    network = Bare()
    network(np.zeros((1, 2), np.float32))
    with pytest.raises(ValueError, match="no layers with trainable weights of their own; use weights='all'"):
        chosen(network, **options)
    assert [variable.name for variable in watched_variables(network, "all", LAST_WITH_WEIGHTS, None)] == ["scale"]
