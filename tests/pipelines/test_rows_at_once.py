"""`--batch_size 0`: as many examples as the layers' activations and gradients let 256 MiB hold."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from beam_influence import InfluenceModel
from beam_influence.pipelines.rows_at_once import rows_at_once

layers = keras.layers


def small() -> keras.Model:
    return keras.Sequential([keras.Input((784,)), layers.Dense(32, "relu"), layers.Dense(10)])


def images() -> keras.Model:
    """Each layer gives 64 × 64 × 128 numbers, 2 MiB of float32."""
    convolutions = [layers.Conv2D(128, 3, padding="same", activation="relu") for _ in range(3)]
    return keras.Sequential([keras.Input((64, 64, 3)), *convolutions, layers.GlobalAveragePooling2D(), layers.Dense(10)])


def sequences() -> keras.Model:
    """Of any length, so that its layers don't tell how many numbers they give."""
    return keras.Sequential([keras.Input((None, 4)), layers.LSTM(8), layers.Dense(1)])


class Own(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.dense = layers.Dense(1)

    def call(self, inputs: keras.KerasTensor) -> keras.KerasTensor:
        return self.dense(inputs)


def own() -> keras.Model:
    model = Own()
    model(keras.ops.ones((1, 3)))
    return model


def huge() -> keras.Model:
    """32 MiB for each example's activations."""
    return keras.Sequential([keras.Input((2048, 2048, 1)), layers.Conv2D(2, 3), layers.GlobalAveragePooling2D(), layers.Dense(1)])


@pytest.mark.parametrize(("network", "wanted"), [(small, 512), (images, 16), (sequences, 256), (own, 256), (huge, 8)])
def test_by_what_the_layers_give(network, wanted: int) -> None:
    model = InfluenceModel(network(), weights="last", loss_function="mse", precision="native")
    model.layout(np.ones((1, 3), np.float32))
    assert rows_at_once(model) == wanted
