"""What layers add to the loss of training: `add_loss` and activity regularisers."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import tensorflow as tf

from beam_influence.influence_ops.model.gradients.discover import made_up_examples
from beam_influence.influence_ops.model.heads import additional_losses
from beam_influence.influence_ops.types import Tensors

Kind = Literal["mean", "sum"]
_EQUAL = 1e-4


class AdditionalLosses:
    """The losses that a model's layers add as they are called; a weight's own regulariser is none of them.

    Keras divides an activity regulariser by the size of the batch, and leaves `add_loss` as it is. The loss of an example has what
    is added for it alone.

    Attributes:
      kinds: for each term, whether a batch's value is the mean of its examples' or their sum.
    """

    def __init__(self, model: Any):
        self._model = model
        self.kinds: tuple[Kind, ...] = ()

    def find(self, inputs: Tensors) -> None:
        """Finds the terms on made-up examples like `inputs`.

        Raises:
          ValueError: a term mixes the examples of a batch, so that none of them has a share of it.
        """
        examples = made_up_examples(inputs)
        count = len(tf.nest.flatten(examples)[0])
        self._model(examples, training=False)
        together = np.array([float(term) for term in additional_losses(self._model)])
        alone = np.zeros((count, len(together)))
        for row in range(count):
            self._model(tf.nest.map_structure(lambda leaf: leaf[row : row + 1], examples), training=False)  # noqa: B023
            alone[row] = [float(term) for term in additional_losses(self._model)]
        self.kinds = tuple(_kind(number, *values) for number, values in enumerate(zip(together, alone.T, strict=True)))

    def total(self, count: Any) -> tf.Tensor:
        """The sum over the examples of the batch that the model was called on last, `count` of them."""
        found = []
        for kind, term in zip(self.kinds, additional_losses(self._model), strict=True):
            found.append(term if kind == "sum" else term * tf.cast(count, term.dtype))
        return tf.add_n(found)

    def alone(self, example: Tensors) -> tf.Tensor:
        """What is added for one example, a batch of one."""
        self._model(example, training=False)
        return tf.add_n(additional_losses(self._model))


def _kind(number: int, together: float, alone: np.ndarray) -> Kind:
    scale = _EQUAL * float(np.abs(alone).sum()) or _EQUAL
    if abs(together - alone.mean()) * len(alone) <= scale:
        return "mean"
    if abs(together - alone.sum()) <= scale:
        return "sum"
    raise ValueError(
        f"the loss number {number} that the model's layers add (add_loss) is {together:.6g} for a batch whose examples have "
        f"{', '.join(f'{value:.6g}' for value in alone)}: neither their mean nor their sum, so no example has a share of it; "
        "add a mean over examples"
    )
