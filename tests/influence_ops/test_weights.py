"""Every way to choose the watched weights, and each refusal."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from influence_ops.weights import watched_variables

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
    model: keras.Model, weights: str | None = None, start: int | str | None = -1, last: int | str | None = None
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
        ({"weights": "last", "start": 0}, HEAD),
        ({"weights": "all"}, FIRST + NORM + SECOND + HEAD),
        ({"weights": "second/"}, SECOND),
        ({"weights": "kernel$"}, ["first/kernel", "second/kernel", "head/kernel"]),
        ({"weights": "first/kernel|head"}, ["first/kernel", "head/kernel"]),
        ({"start": 0}, FIRST + NORM + SECOND + HEAD),
        ({"start": 2}, SECOND + HEAD),
        ({"start": "2"}, SECOND + HEAD),
        ({"start": -2}, SECOND + HEAD),
        ({"start": "second"}, SECOND + HEAD),
        ({"start": None}, SECOND),  # the reference's default: the layer before the head
        ({"start": 0, "last": 1}, FIRST + NORM),
        ({"start": "first", "last": "norm"}, FIRST + NORM),
        ({"start": "second", "last": "second"}, SECOND),
        ({"start": 1, "last": -2}, NORM + SECOND),
        ({"start": None, "last": "head"}, SECOND + HEAD),
    ],
)
def test_selections(model, options, wanted):
    assert chosen(model, **options) == wanted


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "nothing_like_it"}, "weights='nothing_like_it' matches none of the model's weights: .*first/kernel.*head/kernel"),
        ({"weights": "("}, r"weights='\(' is not a regular expression"),
        ({"start": "no_weights"}, "no layer 'no_weights'; .* 0: first, 1: norm, 2: second, 3: head"),
        ({"start": 4}, "no layer 4; the layers with trainable weights are 0: first"),
        ({"start": -5}, "no layer -5;"),
        ({"start": 0, "last": "missing"}, "no layer 'missing';"),
        ({"start": "head", "last": "first"}, "last_layer='first' comes before start_layer='head'"),
        ({"start": -1, "last": 0}, "last_layer=0 comes before start_layer=-1"),
    ],
)
def test_refusals(model, options, message):
    with pytest.raises(ValueError, match=message):
        chosen(model, **options)


def test_only_trainable_weights_are_watched():
    network = keras.Sequential([keras.Input((4,)), layers.Dense(3, name="frozen"), layers.Dense(2, name="head")])
    network.get_layer("frozen").trainable = False
    assert chosen(network, "all") == ["head/kernel", "head/bias"]
    assert chosen(network, None, 0) == ["head/kernel", "head/bias"]
    network.get_layer("head").trainable = False
    with pytest.raises(ValueError, match="no trainable weights; nothing can be watched"):
        chosen(network, "all")


def test_one_layer_is_both_first_and_last():
    network = keras.Sequential([keras.Input((4,)), layers.Dense(2, name="only")])
    for start in (-1, 0, None):
        assert chosen(network, None, start) == ["only/kernel", "only/bias"]


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
    with pytest.raises(ValueError, match="no layer -1"):
        chosen(network, **options)
    assert [variable.name for variable in watched_variables(network, "all", None, None)] == ["scale"]
