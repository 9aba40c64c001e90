"""The layers that a model is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras.src.models import Functional


def all_layers(model: Any) -> list[keras.layers.Layer]:
    """Every layer of a model, those within others too; none of a SavedModel."""
    flatten = getattr(model, "_flatten_layers", None)
    return list(flatten(include_self=False, recursive=True)) if flatten is not None else []


def why_not_vectorised(model: Any, variables: Sequence[keras.Variable]) -> str:
    """What TensorFlow is known not to vectorise over examples in derivatives by `variables`; empty where nothing is."""
    if getattr(model, "one_by_one", False):
        return "a SavedModel that parses its inputs"
    watched = set(map(id, variables))
    is_reached = not isinstance(model, (keras.Sequential, Functional))  # by a gradient; else layers come in the order of their calls
    for layer in all_layers(model):
        is_reached = is_reached or not watched.isdisjoint(map(id, layer.trainable_variables))
        in_groups = isinstance(layer, (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)) and layer.groups > 1
        if is_reached and in_groups:
            return f"the convolution {layer.name!r} in {layer.groups} groups"
    return ""
