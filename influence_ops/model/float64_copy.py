"""A float64 copy of a Keras model, by Keras's own serialisation: configuration, variables, and what else a layer keeps.

A layer's state is more than its weights: an adapted `Normalization` has a mean, a `StringLookup` a table. Keras's saved form
has all of it, so the copy is made as a saved model would be loaded, with each layer's dtype policy widened on the way. Nothing
here is trusted: `float64_copy` compares what can be compared without data, and `guard` the rest on the user's own examples.
"""

from __future__ import annotations

import inspect
import os
import tempfile
from typing import Any

import keras
import numpy as np
import tensorflow as tf

_NARROW = ("float32", "float16", "bfloat16", "mixed_float16", "mixed_bfloat16")


class NoCopy(ValueError):
    """The model can't be rebuilt in float64; the message says why."""


def float64_copy(model: keras.Model) -> keras.Model:
    """A copy of a Sequential or functional model in which floats are float64; the original is not changed.

    The objects of the user's own that the configuration only names (layers, functions, regularisers) are taken from the model,
    which is in memory already: nothing is looked up by a name in a file.

    Raises:
      NoCopy: a layer can't be serialised, keeps computing in another dtype, or the copy differs from the model.
    """
    try:
        config: Any = keras.saving.serialize_keras_object(model)
        config.pop("compile_config", None)  # a user's metrics and losses need not be known to Keras
        known = _user_objects(model._flatten_layers())
        copy: Any = keras.saving.deserialize_keras_object(_in_float64(config), custom_objects=known, safe_mode=False)
        if not same_layers(model, copy):
            raise NoCopy("its layers are put together in another way when it is made from its configuration")
        for own, made in zip(model.variables, copy.variables, strict=False):
            if own.shape == made.shape:
                made.assign(own.value)  # those of no layer too: the states of random numbers
        copy_states(model, copy)
    except NoCopy:
        raise
    except Exception as error:
        raise NoCopy(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}") from error
    _compare(model, copy)
    for own, made in zip(model.variables, copy.variables, strict=True):
        made._path = own.path  # which depends on where a layer was built first
    return copy


def _in_float64(config: Any) -> Any:
    """The configuration with every narrower dtype and dtype policy as float64."""
    if isinstance(config, dict):
        return {key: _float64_dtype(value) if key == "dtype" else _in_float64(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return type(config)(_in_float64(value) for value in config)
    return config


def _float64_dtype(dtype: Any) -> Any:
    """A dtype, or the configuration of a dtype policy, as float64 where it is a narrower floating one."""
    if isinstance(dtype, str):
        return "float64" if dtype in _NARROW else dtype
    if isinstance(dtype, dict) and isinstance(dtype.get("config"), dict) and dtype["config"].get("name") in _NARROW:
        return {**dtype, "config": {**dtype["config"], "name": "float64"}}
    return _in_float64(dtype)


def _user_objects(layers: list[keras.layers.Layer]) -> dict[str, Any]:
    """What the configuration names and Keras may not know: the layers' classes, and their functions and regularisers."""
    found: dict[str, Any] = {}
    for layer in layers:
        found[type(layer).__name__] = type(layer)
        for value in vars(layer).values():
            kinds = (keras.regularizers.Regularizer, keras.constraints.Constraint, keras.initializers.Initializer)
            if isinstance(value, kinds):
                found[type(value).__name__] = type(value)
            if inspect.isfunction(value):
                found[value.__name__] = value
    return {name: value for name, value in found.items() if not value.__module__.startswith("keras.")}


def copy_states(model: keras.Model, other: keras.Model) -> None:
    """Gives `other`, a model of the same layers, what each layer of `model` keeps, and has it work out what follows from that.

    Raises:
      ValueError: it is made of other layers.
    """
    if not same_layers(model, other):
        raise ValueError(f"{other.name!r} is made of other layers than {model.name!r}")
    for layer, made in zip(model._flatten_layers(), other._flatten_layers(), strict=True):
        copy_state(layer, made)


def same_layers(model: keras.Model, other: keras.Model) -> bool:
    """Whether the models have layers of the same kinds in the same order."""
    return [type(layer) for layer in model._flatten_layers()] == [type(layer) for layer in other._flatten_layers()]


def copy_state(layer: Any, made: Any) -> None:
    """Variables, and what a layer keeps beside them, by the layer's own methods for a saved model."""
    store: dict[str, Any] = {}
    layer.save_own_variables(store)
    if store:
        made.load_own_variables(store)
    if hasattr(layer, "save_assets"):
        with tempfile.TemporaryDirectory() as folder:
            layer.save_assets(folder)
            if os.listdir(folder):
                made.load_assets(folder)


def _compare(model: Any, copy: Any) -> None:
    if len(model.variables) != len(copy.variables) or len(model.trainable_variables) != len(copy.trainable_variables):
        raise NoCopy(
            f"it has {len(model.trainable_variables)} trainable weights of {len(model.variables)} variables, and "
            f"{len(copy.trainable_variables)} of {len(copy.variables)} when it is made from its configuration (a layer inside another "
            "layer, such as a tied embedding, becomes two)"
        )
    for own, made in zip(model.variables, copy.variables, strict=True):
        if own.shape != made.shape or not np.array_equal(np.asarray(own.value), np.asarray(tf.cast(made.value, own.dtype)), equal_nan=True):
            raise NoCopy(f"the weight {own.path!r} is not copied")
        if tf.as_dtype(made.dtype).is_floating and made.dtype != "float64":
            raise NoCopy(f"the weight {own.path!r} stays {made.dtype} (a layer that makes its own layers does not pass its dtype on)")
    for layer in copy._flatten_layers():
        container = isinstance(layer, (keras.Model, keras.layers.InputLayer))
        if not container and layer.compute_dtype in _NARROW:
            raise NoCopy(f"the layer {layer.name!r} keeps computing in {layer.compute_dtype}")
