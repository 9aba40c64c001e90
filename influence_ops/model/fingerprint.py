"""One digest for a network, its watched weights, its loss and its regulariser: what a saved curvature is compared by."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from beam_influence.influence_ops.model.network import to_numpy


def model_fingerprint(model: Any, watched: Sequence[keras.Variable], settings: str) -> str:
    """SHA-256 over `settings`, the layers and all weights of `model`, those that are watched marked; the same in every precision."""
    digest = hashlib.sha256(settings.encode())
    digest.update(json.dumps(_layers(model), sort_keys=True).encode())
    marked = {id(variable) for variable in watched}
    for variable in model.variables:
        if "seed_generator" in variable.path:  # Dropout's state: not part of the inference model
            continue
        value = np.ascontiguousarray(to_numpy(variable.value))  # one fingerprint for every precision
        penalty = _regularizer_name(getattr(variable, "regularizer", None)) if id(variable) in marked else ""
        digest.update(f"{value.shape}|{id(variable) in marked}|{penalty}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def _regularizer_name(regularizer: Any) -> str:
    """The class or function and its settings, the same from run to run."""
    if regularizer is None:
        return ""
    if not isinstance(regularizer, keras.regularizers.Regularizer):
        return getattr(regularizer, "__qualname__", type(regularizer).__qualname__)
    try:
        settings = regularizer.get_config()
    except NotImplementedError:  # Keras's default
        settings = {}
    return f"{type(regularizer).__qualname__}({', '.join(f'{key}={value}' for key, value in sorted(settings.items()))})"


def _layers(model: Any) -> list[list[Any]]:
    """Each layer's kind and plain settings (activation, strides, …), without names and dtypes: one list for every precision."""
    found = []
    for layer in getattr(model, "layers", []):
        try:
            config = layer.get_config()
        except Exception:  # a layer without a configuration, or whose own fails (keras_hub's LlamaTransformerDecoder): its weights tell it
            config = {}
        plain = {key: value for key, value in config.items() if key not in ("name", "dtype") and isinstance(value, (bool, int, float, str))}
        found.append([type(layer).__name__, plain, _layers(layer)])
    return found
