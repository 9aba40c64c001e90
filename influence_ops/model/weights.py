"""Which weights are watched: all, the last layer, a range of layers, or names that match."""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from typing import Any, Final

import keras
import numpy as np


class LastWithWeights(enum.Enum):
    """The type of `LAST_WITH_WEIGHTS`, which is neither None nor an index: both of these mean a layer of their own."""

    LAST = "last"

    def __repr__(self) -> str:
        return "the last layer with weights"


LAST_WITH_WEIGHTS: Final = LastWithWeights.LAST
"""The default of `start_layer`."""

StartLayer = int | str | None | LastWithWeights


def watched_variables(
    model: keras.Model, weights: str | None, start_layer: StartLayer, last_layer: int | str | None
) -> list[keras.Variable]:
    """The trainable variables θ that influence is computed for, in the model's order.

    Args:
      model: a built Keras model.
      weights: `all`, `last` (the last layer with weights), or a regular expression searched in each
        variable's path, such as `dense_1/`. None: by `start_layer` and `last_layer`.
      start_layer: the first layer watched, by name or by index in `model.layers` (-1 is the last of them), as in
        Influenciae; None: the last layer with weights before the very last one, as there.
      last_layer: the last layer watched, inclusive, named likewise; None: `start_layer` alone.

    Raises:
      ValueError: nothing matches, or no layer chosen has trainable weights; the message lists what there is.
    """
    every = list(model.trainable_variables)
    if not every:
        raise ValueError("the model has no trainable weights; nothing can be watched")
    if weights is not None and (start_layer is not LAST_WITH_WEIGHTS or last_layer is not None):
        raise ValueError(
            f"weights={weights!r} and start_layer={start_layer!r}, last_layer={last_layer!r} both choose what is watched; give one of them"
        )
    if weights == "all":
        return every
    if weights is not None and weights != "last":
        return _matching(every, weights)
    layers = list(model.layers)
    if not any(layer.trainable_variables for layer in layers):
        raise ValueError("the model has no layers with trainable weights of their own; use weights='all'")
    first = _first_layer(layers, start_layer)
    stop = first + 1 if last_layer is None else _layer_index(layers, last_layer) + 1
    if stop <= first:
        raise ValueError(
            f"last_layer={last_layer!r} comes before start_layer={start_layer!r}: {layers[stop - 1].name!r} before {layers[first].name!r}"
        )
    chosen: list[keras.Variable] = []
    for layer in layers[first:stop]:
        chosen += [variable for variable in layer.trainable_variables if all(variable is not known for known in chosen)]
    if not chosen:
        named = f"layer {start_layer!r} ({layers[first].name})" if stop == first + 1 else f"layers {start_layer!r} to {last_layer!r}"
        raise ValueError(f"{named} has no trainable weights; {_with_weights(layers)}")
    return chosen


def _matching(every: list[keras.Variable], weights: str) -> list[keras.Variable]:
    try:
        chosen = [variable for variable in every if re.search(weights, variable.path)]
    except re.error as error:
        raise ValueError(f"weights={weights!r} is not a regular expression: {error}") from error
    if not chosen:
        paths = ", ".join(variable.path for variable in every)
        raise ValueError(f"weights={weights!r} matches none of the model's weights: {paths}")
    return chosen


def _first_layer(layers: list[keras.layers.Layer], start_layer: StartLayer) -> int:
    if isinstance(start_layer, (int, str)):
        return _layer_index(layers, start_layer)
    candidates = layers if start_layer is LAST_WITH_WEIGHTS else layers[:-1]
    with_weights = [index for index, layer in enumerate(candidates) if layer.trainable_variables]
    if not with_weights:
        raise ValueError(f"start_layer=None is the last layer with weights before the very last; there is none; {_with_weights(layers)}")
    return with_weights[-1]


def _layer_index(layers: list[keras.layers.Layer], which: int | str) -> int:
    names = [layer.name for layer in layers]
    if isinstance(which, str) and which in names:
        return names.index(which)
    if not isinstance(which, str) or re.fullmatch(r"-?\d+", which):
        if -len(layers) <= int(which) < len(layers):
            return int(which) % len(layers)
    raise ValueError(f"no layer {which!r} among the model's {len(layers)}; {_with_weights(layers)}")


def _with_weights(layers: list[keras.layers.Layer]) -> str:
    listed = [f"{index}: {layer.name}" for index, layer in enumerate(layers) if layer.trainable_variables]
    return f"the layers with trainable weights are {', '.join(listed)}"


def refuse_merged_lora(model: keras.Model, watched: Sequence[keras.Variable]) -> None:
    """Refuses LoRA matrices that are 0, both of a pair: their gradients are 0, whatever was trained.

    Raises:
      ValueError: such a pair is watched.
    """
    paths = {variable.path for variable in watched}
    layers: Any = getattr(model, "_flatten_layers", None)  # a SavedModel has none
    for layer in layers() if layers else ():
        pair = [getattr(layer, f"lora_{kind}_{side}", None) for kind in ("kernel", "embeddings") for side in "ab"]
        found = [one for one in pair if one is not None]
        if found and any(one.path in paths for one in found) and not any(np.any(np.asarray(one.value)) for one in found):
            raise ValueError(
                f"the LoRA matrices of the layer {layer.name!r} are 0: Keras merges them into the kernel as it saves a model, so their "
                "gradients are lost; give --model module:function, which makes the model and sets the matrices"
            )
