"""A model whose file names functions of the user's own: the message has them, and what it says to write loads the model."""

from __future__ import annotations

import pathlib
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from beam_influence.influence_ops.model.network import load_keras_file


def split_at_hyphens(texts: Any) -> Any:
    return tf.strings.split(texts, "-")


def test_a_function_that_splits_text(tmp_path: pathlib.Path) -> None:
    texts = keras.Input((), dtype="string", name="text")
    options: Any = {"split": split_at_hyphens, "standardize": None}  # Keras declares both as str
    encode = keras.layers.TextVectorization(**options, output_mode="multi_hot", name="encode")
    encode.adapt(["a-b", "c-d"])
    path = str(tmp_path / "model.keras")
    model = keras.Model(texts, keras.layers.Dense(2)(encode(texts)))
    model.save(path)
    with pytest.raises(ValueError, match=r"your own: split_at_hyphens \(split of 'encode'\). Give --model module:function") as error:
        load_keras_file(path)
    assert str(error.value).endswith("custom_objects={'split_at_hyphens': split_at_hyphens})")
    loaded: Any = keras.models.load_model(path, custom_objects={"split_at_hyphens": split_at_hyphens})
    given = tf.constant(["a-d", "b"])
    np.testing.assert_array_equal(loaded(given), model(given))
