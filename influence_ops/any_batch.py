"""Functions of tensors, compiled once for any number of examples."""

from __future__ import annotations

import inspect
import threading
import weakref
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

import tensorflow as tf

from beam_influence.influence_ops.types import Tensors

P = ParamSpec("P")
R = TypeVar("R")


def any_batch(tensor: tf.Tensor) -> tf.TensorSpec:
    """What a tensor is but for the number of its examples."""
    return tf.TensorSpec([None, *tensor.shape[1:]], tensor.dtype)


class CompiledForAnyBatch(Generic[R]):
    """A function of tensors whose first axis is the batch's, traced once for each dtype, and shape of what follows that axis.

    A traced function is a cycle, which keeps what it captured until garbage is collected. Large tensors that last for many batches (an
    operator, solutions) are given as `constants`, so that they go with whoever holds them.

    Args:
      function: of tensors, or tuples of them, constants first where there are any; it may not ask how many examples there are but by
        `tf.shape`. A method's object, which keeps this, is not kept by it.
    """

    def __init__(self, function: Callable[..., R]):
        self._function = weakly(function) if inspect.ismethod(function) else function
        self._traced: dict[tuple[tuple[tf.DType, tuple[int | None, ...]], ...], Callable[..., R]] = {}
        self._tracing = threading.Lock()

    def __call__(self, *of_batch: Any, constants: Tensors = None) -> R:
        """The function's value; `constants`: tensors, or a structure of them, of the same shapes in every call; None: it takes none."""
        fixed = () if constants is None else (constants,)
        shapes = [(leaf.dtype, tuple(leaf.shape)) for leaf in tf.nest.flatten(fixed)]
        key = (*shapes, *((leaf.dtype, tuple(leaf.shape[1:])) for leaf in tf.nest.flatten(of_batch)))
        if key not in self._traced:
            with self._tracing:
                if key not in self._traced:
                    specs = (*tf.nest.map_structure(tf.TensorSpec.from_tensor, fixed), *tf.nest.map_structure(any_batch, of_batch))
                    # The concrete function: a tf.function that is called with a wrong shape never releases its lock.
                    self._traced[key] = tf.function(self._function, input_signature=specs, autograph=False).get_concrete_function()
        return self._traced[key](*fixed, *of_batch)


def weakly(method: Callable[P, R]) -> Callable[P, R]:
    """The method, by a function that does not keep its object."""
    of_object = weakref.WeakMethod(method)

    def call(*arguments: P.args, **named: P.kwargs) -> R:
        found = of_object()
        assert found is not None  # it is called by its own object alone
        return found(*arguments, **named)

    return call
