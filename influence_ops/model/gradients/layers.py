"""The layers that a model is made of."""

from __future__ import annotations

from typing import Any

import keras


def all_layers(model: Any) -> list[keras.layers.Layer]:
    """Every layer of a model, those within others too; none of a SavedModel."""
    flatten = getattr(model, "_flatten_layers", None)
    return list(flatten(include_self=False, recursive=True)) if flatten is not None else []
