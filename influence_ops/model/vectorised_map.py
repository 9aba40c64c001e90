"""A function of one example, for all examples of a batch: vectorised where TensorFlow can, else one after the other."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Literal

import tensorflow as tf

from beam_influence.influence_ops.model.wrong_products import WrongProductError, refuse_wrong_products
from beam_influence.influence_ops.types import Tensors

_LOG = logging.getLogger(__name__)


class VectorisedMap:
    """Remembers, for a network, which way works.

    Args:
      why_slow: why nothing can be vectorised, where that is known.
    """

    def __init__(self, why_slow: str = ""):
        self._way: Literal["vectorised", "in part", "one by one"] = "one by one" if why_slow else "vectorised"
        self._why_slow = why_slow

    def examples(self, function: Callable[[Tensors], Tensors], elements: Tensors) -> Tensors:
        """`function` of each example in `elements`, whose results may come of layers that need two of them at least."""
        # One example more: recurrent layers can't be vectorised over a batch of one.
        padded = tf.nest.map_structure(lambda tensor: tf.concat([tensor, tensor[:1]], axis=0), elements)
        return tf.nest.map_structure(lambda tensor: tensor[:-1], self.rows(function, padded))

    def rows(self, function: Callable[[Tensors], Tensors], elements: Tensors) -> Tensors:
        """`function` of each row of `elements`."""
        if any(leaf.dtype == tf.string for leaf in tf.nest.flatten(elements)):
            self._way = "one by one"  # operations on strings run in loops, whose pieces differ in shape
        if self._why_slow:
            _LOG.warning("%s can't be vectorised over examples; using a loop, which is much slower", self._why_slow)
            self._why_slow = ""
        if self._way == "vectorised":
            try:
                return _in_own_graph(lambda of: tf.vectorized_map(function, of, fallback_to_while_loop=False), elements)
            except WrongProductError:
                self._way = "one by one"
            except (ValueError, NotImplementedError, TypeError) as error:
                reason = str(error).splitlines()[0]
                _LOG.warning("an op of this model can't be vectorised over examples (%s); using a loop, which is much slower", reason)
                # Lists of tensors: a loop within (recurrent layers, one on another), whose derivative is wrong when vectorised in part.
                self._way = "one by one" if "variant" in reason else "in part"
        if self._way == "in part":
            try:
                return _in_own_graph(lambda of: tf.vectorized_map(function, of, fallback_to_while_loop=True), elements)
            except (ValueError, TypeError, WrongProductError):
                self._way = "one by one"
        first = function(tf.nest.map_structure(lambda leaf: leaf[0], elements))
        return tf.map_fn(function, elements, fn_output_signature=tf.nest.map_structure(tf.type_spec_from_value, first))


def _in_own_graph(function: Callable[[Tensors], Tensors], elements: Tensors) -> Tensors:
    """`function(elements)`, traced by itself: a failed attempt leaves operations behind, which would run with the others."""
    traced = tf.function(function, autograph=False).get_concrete_function(elements)
    refuse_wrong_products(traced.graph)
    return traced(elements)
