"""Functions of tensors, compiled once for any number of examples."""

from __future__ import annotations

import inspect
import threading
import weakref
from collections.abc import Callable
from typing import Generic, ParamSpec, TypeVar

import tensorflow as tf

P = ParamSpec("P")
R = TypeVar("R")


def any_batch(tensor: tf.Tensor) -> tf.TensorSpec:
    """What a tensor is but for the number of its examples."""
    return tf.TensorSpec([None, *tensor.shape[1:]], tensor.dtype)


class CompiledForAnyBatch(Generic[P, R]):
    """A function of tensors whose first axis is the batch's, traced once for each dtype, and shape of what follows that axis.

    Args:
      function: of tensors, or tuples of them; it may not ask how many examples there are but by `tf.shape`. A method's object, which
        keeps this, is not kept by it: what it holds on the device is let go of with it.
    """

    def __init__(self, function: Callable[P, R]):
        self._function = weakly(function) if inspect.ismethod(function) else function
        self._traced: dict[tuple[tuple[tf.DType, tuple[int | None, ...]], ...], Callable[P, R]] = {}
        self._tracing = threading.Lock()

    def __call__(self, *arguments: P.args, **named: P.kwargs) -> R:
        """The function's value."""
        key = tuple((leaf.dtype, tuple(leaf.shape[1:])) for leaf in tf.nest.flatten(arguments))
        if key not in self._traced:
            with self._tracing:
                if key not in self._traced:
                    signature = tf.nest.map_structure(any_batch, arguments)
                    # The concrete function: a tf.function that is called with a wrong shape never releases its lock.
                    self._traced[key] = tf.function(self._function, input_signature=signature, autograph=False).get_concrete_function()
        return self._traced[key](*arguments, **named)


def weakly(method: Callable[P, R]) -> Callable[P, R]:
    """The method, by a function that does not keep its object."""
    of_object = weakref.WeakMethod(method)

    def call(*arguments: P.args, **named: P.kwargs) -> R:
        found = of_object()
        assert found is not None  # it is called by its own object alone
        return found(*arguments, **named)

    return call
