"""The tokens that a model makes of its text: those of its `TextVectorization` layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import keras
import tensorflow as tf

Tokenizer: TypeAlias = Callable[[str], tuple[str, ...]]


def tokenizers(model: Any) -> Mapping[str, Tokenizer]:
    """How each input of a Keras model that goes straight into a `TextVectorization` layer becomes tokens; a word that is not in the
    vocabulary is [UNK]."""
    found = {}
    for layer in getattr(model, "layers", ()):
        if not isinstance(layer, keras.layers.TextVectorization):
            continue
        try:
            taken = layer.input
        except (AttributeError, ValueError):  # called several times, or not at all
            continue
        for tensor in getattr(model, "inputs", None) or ():
            if tensor is taken:
                found[tensor.name] = _tokenizer(layer)
    return found


def _tokenizer(layer: keras.layers.TextVectorization) -> Tokenizer:
    # The same words in their order, whatever the layer counts or pads.
    config = layer.get_config() | {"name": None, "output_mode": "int", "output_sequence_length": None, "pad_to_max_tokens": False}
    words = keras.layers.TextVectorization.from_config(config | {"vocabulary": layer.get_vocabulary(False), "idf_weights": None})
    vocabulary = words.get_vocabulary()

    def tokens(text: str) -> tuple[str, ...]:
        return tuple(vocabulary[number] for number in words(tf.constant([text])).numpy()[0])

    return tokens
