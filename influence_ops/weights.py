"""Which weights are watched: all, the last layer, a range of layers, or names that match."""

from __future__ import annotations

import re
from typing import Any

import keras


def watched_variables(
    model: keras.Model,
    weights: str | None,
    start_layer: int | str | None,
    last_layer: int | str | None,
) -> list[Any]:
    """The trainable variables θ that influence is computed for, in the model's order.

    Args:
      model: a built Keras model.
      weights: `all`, `last` (the last layer with weights), or a regular expression searched in each
        variable's path, such as `dense_1/`. None: by `start_layer` and `last_layer`.
      start_layer: the first layer watched, by name or by index among the model's layers that have
        trainable weights (-1 is the last of them).
      last_layer: the last layer watched, inclusive; None: only `start_layer` when that is the last
        one, else everything to the end of the model.

    Raises:
      ValueError: nothing matches; the message lists what there is.
    """
    every = list(model.trainable_variables)
    if not every:
        raise ValueError("the model has no trainable weights; nothing can be watched")
    if weights == "all":
        return every
    if weights is not None and weights != "last":
        try:
            chosen = [variable for variable in every if re.search(weights, variable.path)]
        except re.error as error:
            raise ValueError(f"weights={weights!r} is not a regular expression: {error}") from error
        if not chosen:
            raise ValueError(
                f"weights={weights!r} matches none of the model's weights: "
                f"{', '.join(variable.path for variable in every)}"
            )
        return chosen
    layers = [layer for layer in model.layers if layer.trainable_variables]
    if weights == "last":
        return list(layers[_layer_index(layers, -1)].trainable_variables)
    # The reference's start_layer=None is the last layer before the head.
    first = _layer_index(layers, start_layer) if start_layer is not None else max(len(layers) - 2, 0)
    if last_layer is not None:
        stop = _layer_index(layers, last_layer) + 1
    else:
        stop = first + 1 if start_layer is None else len(layers)
    if stop <= first:
        raise ValueError(f"last_layer={last_layer!r} comes before start_layer={start_layer!r}")
    chosen = []
    for layer in layers[first:stop]:
        for variable in layer.trainable_variables:
            if all(variable is not known for known in chosen):
                chosen.append(variable)
    return chosen


def _layer_index(layers: list[Any], which: int | str) -> int:
    names = [layer.name for layer in layers]
    if isinstance(which, str) and not re.fullmatch(r"-?\d+", which):
        if which in names:
            return names.index(which)
    elif -len(layers) <= int(which) < len(layers):
        return int(which) % len(layers)
    raise ValueError(
        f"no layer {which!r}; the layers with trainable weights are "
        f"{', '.join(f'{index}: {name}' for index, name in enumerate(names))}"
    )
