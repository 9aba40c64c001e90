"""Recurrent layers as a straight line of steps: loops can't be vectorised over examples, and this can."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras

from beam_influence.influence_ops.model.gradients.layers import all_layers

_LONGEST = 256  # steps: the graph grows with them


@contextlib.contextmanager
def unrolled(model: Any) -> Iterator[None]:
    """A context in which the recurrent layers of `model` whose number of steps is known, and small enough, have no loop."""
    with contextlib.ExitStack() as stack:
        for layer in all_layers(model):
            if isinstance(layer, keras.layers.RNN) and not layer.unroll:
                stack.enter_context(_without_loop(layer))
        yield


@contextlib.contextmanager
def _without_loop(layer: Any) -> Iterator[None]:
    attributes, original = layer.__dict__, layer.inner_loop

    def inner_loop(sequences: Any, *arguments: Any, **options: Any) -> Any:
        attributes["unroll"] = sequences.shape[1] is not None and sequences.shape[1] <= _LONGEST
        try:
            return original(sequences, *arguments, **options)
        finally:
            attributes["unroll"] = False

    own: Callable[..., Any] | None = attributes.get("inner_loop")
    attributes["inner_loop"] = inner_loop
    try:
        yield
    finally:
        del attributes["inner_loop"]
        if own is not None:
            attributes["inner_loop"] = own
