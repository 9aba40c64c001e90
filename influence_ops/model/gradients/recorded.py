"""What a network's layers saw in one forward pass: their inputs, and their outputs before the activation."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from beam_influence.influence_ops.model.gradients.layer_rules import Reversed
from beam_influence.influence_ops.model.gradients.recurrent_rules import known_cell, recording_loop


class Call(NamedTuple):
    """One use of a layer.

    Attributes:
      layer: the layer.
      inputs: x; of a recurrent layer `Steps`, of an embedding that is used in reverse `Reversed`.
      outputs: z, before the activation where the layer has one, or a recurrent layer's ε; watched by the tape.
    """

    layer: Any
    inputs: Any
    outputs: tf.Tensor


@contextlib.contextmanager
def recorded(layers: list[keras.layers.Layer], tape: tf.GradientTape) -> Iterator[list[Call]]:
    """A context in which each call of `layers` is recorded and its output watched by `tape`; leaves no trace in them."""
    calls: list[Call] = []
    with contextlib.ExitStack() as stack:
        for layer in layers:
            stack.enter_context((_recorded_loop if known_cell(layer) else _recorded)(layer, tape, calls))
        yield calls


@contextlib.contextmanager
def _recorded_loop(layer: Any, tape: tf.GradientTape, calls: list[Call]) -> Iterator[None]:
    attributes = layer.__dict__
    attributes["inner_loop"] = recording_loop(layer, lambda steps, errors: calls.append(Call(layer, steps, errors)), tape.watch)
    try:
        yield
    finally:
        del attributes["inner_loop"]


@contextlib.contextmanager
def _recorded(layer: Any, tape: tf.GradientTape, calls: list[Call]) -> Iterator[None]:
    # Set past Keras's own attribute tracking, which would take a function for a part of the layer.
    attributes = layer.__dict__
    original: Callable[..., Any] = layer.call
    activation = attributes.get("activation")
    pending: list[Any] = []

    def keep(outputs: tf.Tensor) -> tf.Tensor:
        tape.watch(outputs)
        calls.append(Call(layer, pending[-1], outputs))
        return outputs

    @tf.autograph.experimental.do_not_convert
    def activate(outputs: Any) -> Any:
        return activation(keep(outputs))  # pyright: ignore[reportOptionalCall]  # only set where there is one

    @tf.autograph.experimental.do_not_convert
    def call(inputs: Any, *args: Any, **kwargs: Any) -> Any:
        pending.append(Reversed(inputs) if kwargs.get("reverse") else inputs)
        outputs = original(inputs, *args, **kwargs)
        return outputs if activation is not None else keep(outputs)

    own_call = attributes.get("call")
    attributes["call"] = call
    if activation is not None:
        attributes["activation"] = activate
    try:
        yield
    finally:
        del attributes["call"]
        if own_call is not None:
            attributes["call"] = own_call
        if activation is not None:
            attributes["activation"] = activation
