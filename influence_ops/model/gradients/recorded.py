"""What a network's layers saw in one forward pass: their inputs, and their outputs before the activation."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import tensorflow as tf


class Call(NamedTuple):
    """One use of a layer.

    Attributes:
      layer: the layer.
      inputs: x.
      outputs: z, before the activation where the layer has one; watched by the tape.
    """

    layer: Any
    inputs: tf.Tensor
    outputs: tf.Tensor


@contextlib.contextmanager
def recorded(layers: list[keras.layers.Layer], tape: tf.GradientTape) -> Iterator[list[Call]]:
    """A context in which each call of `layers` is recorded and its output watched by `tape`; leaves no trace in them."""
    calls: list[Call] = []
    with contextlib.ExitStack() as stack:
        for layer in layers:
            stack.enter_context(_recorded(layer, tape, calls))
        yield calls


@contextlib.contextmanager
def _recorded(layer: Any, tape: tf.GradientTape, calls: list[Call]) -> Iterator[None]:
    # Set past Keras's own attribute tracking, which would take a function for a part of the layer.
    attributes = layer.__dict__
    original: Callable[..., Any] = layer.call
    activation = attributes.get("activation")
    pending: list[tf.Tensor] = []

    def keep(outputs: tf.Tensor) -> tf.Tensor:
        tape.watch(outputs)
        calls.append(Call(layer, pending[-1], outputs))
        return outputs

    @tf.autograph.experimental.do_not_convert
    def activate(outputs: Any) -> Any:
        return activation(keep(outputs))  # pyright: ignore[reportOptionalCall]  # only set where there is one

    @tf.autograph.experimental.do_not_convert
    def call(inputs: Any, *args: Any, **kwargs: Any) -> Any:
        pending.append(inputs)
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
