"""Which position of an example's sequence each position of a layer's gradient is."""

from __future__ import annotations

from typing import Any, TypeAlias

import keras
import tensorflow as tf

from beam_influence.influence_ops.model.gradients.blocks import Block, Materialised
from beam_influence.influence_ops.model.gradients.discover import GradientPlan, as_one_block
from beam_influence.influence_ops.model.gradients.layers import all_layers
from beam_influence.influence_ops.model.gradients.recorded import Call
from beam_influence.influence_ops.types import Tensors

UNPLACED = -1
"""Stands for the position of what a layer did at none of the sequence's: on a pooled vector, or after a stride."""


PlacedBlocks: TypeAlias = tuple[tuple[Block, ...], tuple[tf.Tensor, ...], tf.Tensor]
"""Blocks, the places of each, and T."""


class NoPositions(Exception):
    """The model has no sequence that its watched layers follow position by position, or several. (No `ValueError`, at which a network is
    traced in another way.)"""


class PlacedPlan(GradientPlan):
    """A plan whose blocks have each position by itself, also where the gradient is their sum.

    The sequence is the axis after the batch of a model's input [B, T] or [B, T, F] that some watched layer's outputs [B, T, O] have too;
    where no input has it (text, which the model splits itself), that of the ids which it looks up.

    Args:
      plan: which rules hold.
      model: the network.
      inputs: the model's, in a graph.

    Attributes:
      length: T, once `blocks` was called.
      places: once `blocks` was called, for each block [S] int32: the position of the sequence, or `UNPLACED`; [0] for a block that is
        materialised.
    """

    def __init__(self, plan: GradientPlan, model: Any, inputs: Tensors):
        super().__init__(plan.layout, plan.covers, plan.rest)
        self._inputs = inputs
        self._by_step = {id(layer.layer) for layer in all_layers(model) if isinstance(layer, keras.layers.TimeDistributed)}
        self.length = 0
        self.places: list[tf.Tensor] = []

    def blocks(self, calls: list[Call], errors: list[tf.Tensor], rest: list[tf.Tensor]) -> tuple[Block, ...]:
        self.length = length = _sequence_length(self._inputs, calls, errors, self._by_step)
        self.places, found = [], []
        for known, summed in zip(self.covers, super().blocks(calls, errors, rest), strict=True):
            uses: list[Block] = []
            places: list[tf.Tensor] = []
            if known is not None and (known[1].at_positions is not None or not isinstance(summed, Materialised)):
                layer, rule = known
                its = [(call, error) for call, error in zip(calls, errors, strict=True) if call.layer is layer]
                of_steps = id(layer) in self._by_step and len(its) == length
                for step, (call, error) in enumerate(its):
                    uses.append((rule.at_positions or rule.block)(call.inputs, error))
                    positions = tf.shape(uses[-1][0])[1]
                    places.append(tf.fill([positions], step) if of_steps else _places(layer, error, positions, length))
            found.append(as_one_block(uses) if uses else summed)
            self.places.append(tf.concat(places, axis=0) if places else tf.zeros([0], tf.int32))
        return tuple(found)


def _places(layer: Any, error: tf.Tensor, positions: tf.Tensor, length: int) -> tf.Tensor:
    """[S] of one use of a layer, whose outputs' derivative is `error` [B, T, ...]."""
    if len(error.shape) < 3 or error.shape[1] != length or not _keeps_order(layer):
        return tf.fill([positions], UNPLACED)
    each, order = positions // length, tf.range(positions)
    # Of [B, T, O] several runs over the sequence; of [B, T, ..., O] several places at each of its positions.
    found = order % length if len(error.shape) == 3 else order // tf.maximum(each, 1)
    return tf.where(tf.equal(each * length, positions), found, UNPLACED)


def _keeps_order(layer: Any) -> bool:
    """Whether the second axis of the outputs is one of positions: an `EinsumDense` may make it."""
    if not isinstance(layer, keras.layers.EinsumDense):
        return True
    left, _, outs = layer.equation.replace(" ", "").partition("->")
    ins, _, kernel = left.partition(",")
    second = outs.replace("...", ".")[1]
    return second == "." or (second in ins and second not in kernel)


def _sequence_length(inputs: Tensors, calls: list[Call], errors: list[tf.Tensor], by_step: set[int]) -> int:
    """T.

    Raises:
      NoPositions: there is none, or there are several.
    """
    followed = {length for error in errors if len(error.shape) >= 3 and (length := error.shape[1]) is not None}
    followed |= {sum(call.layer is one.layer for one in calls) for call in calls if id(call.layer) in by_step}
    tensors = tf.nest.flatten(inputs)
    of_inputs = {length for tensor in tensors if len(tensor.shape) in (2, 3) and (length := tensor.shape[1]) is not None}
    found = {length for length in of_inputs & followed if length > 1}
    if not found and any(tensor.dtype == tf.string for tensor in tensors):
        lookups = [call.inputs.shape for call in calls if isinstance(call.layer, keras.layers.Embedding)]
        found = {int(shape[1]) for shape in lookups if len(shape) == 2 and shape[1] is not None}
    if len(found) == 1:
        return found.pop()
    if found:
        raise NoPositions(f"the model follows sequences of different lengths, {', '.join(map(str, sorted(found)))}; positions are of one")
    shapes = ", ".join(str([size or "any" for size in tensor.shape[1:]]) for tensor in tensors)
    raise NoPositions(
        f"no watched layer follows the model's inputs (shapes {shapes}) position by position; watch layers that do (--weights all), or "
        "leave --per_token out"
    )
