"""The layers that a model is made of."""

from __future__ import annotations

from typing import Any

import keras


def all_layers(model: Any) -> list[keras.layers.Layer]:
    """Every layer of a model, those within others too; none of a SavedModel."""
    flatten = getattr(model, "_flatten_layers", None)
    return list(flatten(include_self=False, recursive=True)) if flatten is not None else []


def why_not_vectorised(model: Any) -> str:
    """What in a model TensorFlow is known not to vectorise over examples; empty where nothing is."""
    if getattr(model, "one_by_one", False):
        return "a SavedModel that parses its inputs"
    for layer in all_layers(model):
        if isinstance(layer, (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)) and layer.groups > 1:
            return f"the convolution {layer.name!r} in {layer.groups} groups"
    return ""
