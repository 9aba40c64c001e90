"""How many examples are evaluated at once where `--batch_size` leaves it open."""

from __future__ import annotations

import math

import keras
import tensorflow as tf

from beam_influence.influence_ops.model.explained_model import ExplainedModel
from beam_influence.influence_ops.model.gradients.layers import all_layers

_BYTES = 256 << 20
_FEWEST, _MOST = 8, 512  # more save nothing: the work on a batch is far more by then than what each costs
_MOST_UNKNOWN = 256  # of a network whose layers do not tell what they give
_PASSES = 2  # forward and back


def rows_at_once(model: ExplainedModel) -> int:
    """A power of two from 8 to 512: as many as 256 MiB hold of what the layers give, forward and back, and of the largest block of an
    example's gradient. It depends on the network alone, so that the same run on another machine has the same batches."""
    numbers, is_known = activations(model)
    largest = max((block.rows * block.columns for block in model.layout().blocks), default=0)
    of_example = tf.as_dtype(model.dtype).size * (_PASSES * numbers + largest)
    fits = max(_BYTES // max(of_example, 1), _FEWEST)
    return min(1 << (int(fits).bit_length() - 1), _MOST if is_known else _MOST_UNKNOWN)


def activations(model: ExplainedModel) -> tuple[int, bool]:
    """How many numbers the layers give for one example, as far as their shapes are known, and whether all of them are."""
    layers = all_layers(model.network.model)
    total, is_known = 0, bool(layers)  # a SavedModel has none
    for layer in layers:
        try:
            shapes = [tuple(tensor.shape) for tensor in keras.tree.flatten(layer.output)]
        except (AttributeError, ValueError):  # called several times, or not as a part of a functional model
            is_known = False
            continue
        is_known = is_known and all(None not in shape[1:] for shape in shapes)
        total += sum(math.prod(size or 1 for size in shape[1:]) for shape in shapes)
    return total, is_known
