"""Recurrent layers as a straight line of steps: loops can't be vectorised over examples, and this can."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from beam_influence.influence_ops.model.gradients.layers import all_layers

_LONGEST = 256  # steps: the graph grows with them


def has_loops(model: Any) -> bool:
    """Whether `unrolled` changes how `model` is computed."""
    return any(isinstance(layer, keras.layers.RNN) and not layer.unroll for layer in all_layers(model))


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

    def inner_loop(sequences: Any, initial_state: Any, mask: Any, training: bool = False) -> Any:
        if sequences.shape[1] is None or sequences.shape[1] > _LONGEST:
            return original(sequences, initial_state, mask, training)
        backwards = layer.go_backwards
        if backwards and mask is not None:  # Keras's own steps in a line, backwards, are masked as if they went forward
            sequences, mask = tf.reverse(sequences, [1]), tf.reverse(keras.tree.flatten(mask)[0], [1])
            attributes["go_backwards"] = False
        attributes["unroll"] = True
        try:
            return original(sequences, initial_state, mask, training)
        finally:
            attributes.update(unroll=False, go_backwards=backwards)

    own: Callable[..., Any] | None = attributes.get("inner_loop")
    attributes["inner_loop"] = inner_loop
    try:
        yield
    finally:
        del attributes["inner_loop"]
        if own is not None:
            attributes["inner_loop"] = own
