"""The loss of each example, as Keras computes it on a batch of that example alone (docs/quantities.md).

What Keras does to a batch, `compute_loss` with ranks lined up, masks, weights and reductions, is done here to each example by
itself, for all examples of a batch at once. `guard` compares the two on the user's own examples.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from beam_influence.influence_ops.model.heads import Heads, Outputs
from beam_influence.influence_ops.model.losses import TrainingLoss
from beam_influence.influence_ops.model.output_curvature import Likelihood, drawn_errors, root_of_weights, root_times
from beam_influence.influence_ops.model.position_losses import (
    elementwise_likelihood,
    is_softmax_cross_entropy,
    keras_losses,
    mixes_examples,
    user_losses,
)
from beam_influence.influence_ops.model.positions import example_losses, position_weights
from beam_influence.influence_ops.types import Loss, Tensors

Targets = dict[str, Any]
"""What a loss compares outputs with: `labels`, a tensor [B, ...] or a structure of such; where there are any, `weights` [B, ...]."""


class _Term(NamedTuple):
    """One loss of one output: its labels, outputs before and after their activation, mask and Keras's weight."""

    loss: Loss
    labels: Tensors
    values: Tensors
    predictions: Tensors
    activation: str
    mask: tf.Tensor | None
    weight: float


@dataclasses.dataclass(frozen=True)
class ExampleLoss:
    """(targets, outputs of a batch) -> the loss of each example: [B].

    Attributes:
      training: the loss.
      heads: which activations were taken off the outputs.
      names: the model's output names, by which labels find their outputs.
    """

    training: TrainingLoss
    heads: Heads
    names: tuple[str, ...] = ()

    def __call__(self, targets: Targets, outputs: Outputs) -> tf.Tensor:
        if any(map(mixes_examples, keras.tree.flatten(self.training.losses))):
            return self._one_by_one(targets, outputs)
        return self._all_at_once(targets, outputs)

    def _one_by_one(self, targets: Targets, outputs: Outputs) -> tf.Tensor:
        """Each example as a batch of one: for a loss that may look at the whole of a batch, as any of the user's own may."""

        def one(example: Tensors) -> tf.Tensor:
            alone = tf.nest.map_structure(lambda leaf: leaf[None], example)
            masks = iter(alone["masks"])
            given = Outputs(alone["values"], tuple(None if mask is None else next(masks) for mask in outputs.masks))
            return self._all_at_once(alone["targets"], given)[0]

        masks = [mask for mask in outputs.masks if mask is not None]
        return tf.vectorized_map(one, {"targets": targets, "values": outputs.values, "masks": masks})

    @property
    def likelihood(self) -> Likelihood | None:
        """The distribution of labels that the loss is the negative log-likelihood of, position by position, where it is a known one."""
        if self._is_one_term and is_softmax_cross_entropy(self.training.losses, self.heads.activations[0]):
            return "categorical"
        elementwise = self._elementwise
        return None if elementwise is None else elementwise[0]

    @property
    def _is_one_term(self) -> bool:
        return len(self.heads.activations) == 1 and self.training.weights is None and self.training.user_function is None

    @property
    def _elementwise(self) -> tuple[Likelihood, bool] | None:
        return elementwise_likelihood(self.training.losses, self.heads.activations[0]) if self._is_one_term else None

    def position_weights(self, targets: Targets, outputs: Outputs) -> tf.Tensor:
        """What each position's loss is multiplied by in the example's: [B, ...]; of a loss with a likelihood."""
        (term,) = self._terms(targets["labels"], outputs)
        losses, mask = keras_losses(*term[:5])
        return position_weights(losses, _both_masks(term.mask, mask), targets.get("weights"), _reduction(term.loss))

    def fisher_directions(self, targets: Targets, outputs: Outputs, numbers: tf.Tensor, drawn: bool) -> tf.Tensor:
        """Directions u along the outputs whose u uᵀ is ∂²ℓ/∂z² on average; of a loss with a likelihood.

        Args:
          numbers: `drawn`: one in [0, 1) for each label, which draws it; else a sign for each output.
        """
        likelihood, (values,) = self.likelihood, tf.nest.flatten(outputs.values)
        assert likelihood is not None
        weights = self.position_weights(targets, outputs)
        if self._elementwise is not None and self._elementwise[1]:  # each position's loss is the mean over its elements
            weights *= tf.cast(tf.size(weights) / tf.maximum(tf.size(values), 1), weights.dtype)
        root = root_of_weights(weights, values)
        return root * (drawn_errors if drawn else root_times)(likelihood, values, numbers)

    def _all_at_once(self, targets: Targets, outputs: Outputs) -> tf.Tensor:
        """[B]: Keras's own losses treat each example by itself."""
        labels, weights, function = targets["labels"], targets.get("weights"), self.training.user_function
        if function is not None:
            labels = _single_label(labels) if not tf.nest.is_nested(outputs.values) else labels
            losses, mask = user_losses(function, labels, self.heads.predictions(outputs.values), weights)
            single = outputs.masks[0] if len(outputs.masks) == 1 else None
            return example_losses(_with_batch_axis(losses), _both_masks(single, mask), None if self.training.takes_weights else weights)
        total: Any = None
        for term in self._terms(labels, outputs):
            losses, mask = keras_losses(*term[:5])
            reduced = example_losses(_with_batch_axis(losses), _both_masks(term.mask, mask), weights, _reduction(term.loss)) * term.weight
            total = reduced if total is None else total + reduced
        return total

    def _terms(self, labels: Tensors, outputs: Outputs) -> list[_Term]:
        losses, weights = self.training.losses, self.training.weights
        predictions = self.heads.predictions(outputs.values)
        if not tf.nest.is_nested(outputs.values):
            labels = _single_label(labels)
            if tf.nest.is_nested(labels):
                raise ValueError(f"the model has one output, and there are {len(labels)} labels; name one, or a loss of your own for them")
            found = keras.tree.flatten(losses)
            by_loss = [1.0] * len(found) if weights is None else [float(weight) for weight in keras.tree.flatten(weights)]
            (activation,), (mask,) = self.heads.activations, outputs.masks
            return [
                _Term(loss, labels, outputs.values, predictions, activation, mask, weight)
                for loss, weight in zip(found, by_loss, strict=True)
                if loss is not None
            ]
        names = sorted(outputs.values) if isinstance(outputs.values, dict) else list(self.names or range(len(outputs.masks)))
        losses_of = _by_output(losses, names, "losses", every=True)
        weights_of = _by_output(1.0 if weights is None else weights, names, "loss weights", every=True)
        wanted = [name for name in names if losses_of.get(name) is not None]
        labels_of = _by_output(labels, wanted if len(wanted) == 1 else names, "labels", every=False)
        missing = [name for name in wanted if name not in labels_of]
        if missing:
            known = ", ".join(map(str, labels_of)) or "unnamed"
            raise ValueError(f"the output {missing[0]!r} has a loss and no label; the labels are {known}")
        by_output = zip(
            names, tf.nest.flatten(outputs.values), tf.nest.flatten(predictions), self.heads.activations, outputs.masks, strict=True
        )
        return [
            _Term(losses_of[name], labels_of[name], value, prediction, activation, mask, float(weights_of.get(name, 1.0)))
            for name, value, prediction, activation, mask in by_output
            if name in wanted
        ]


def _with_batch_axis(losses: tf.Tensor) -> tf.Tensor:
    """Losses as [B, ...]: a loss that gives a single number for a batch of one gives [1]."""
    return losses[None] if losses.shape.rank == 0 else losses


def _single_label(labels: Tensors) -> Tensors:
    """The label itself, where a structure holds just one."""
    flat = tf.nest.flatten(labels)
    return flat[0] if len(flat) == 1 else labels


def _reduction(loss: Loss) -> str:
    return (getattr(loss, "reduction", "sum_over_batch_size") or "none") if isinstance(loss, keras.losses.Loss) else "sum_over_batch_size"


def _both_masks(a: tf.Tensor | None, b: tf.Tensor | None) -> tf.Tensor | None:
    """True where both masks are; a missing one masks nothing."""
    return b if a is None else a if b is None else a & b


def _by_output(given: Any, names: list[Any], what: str, every: bool) -> dict[Any, Any]:
    """A list, dictionary or single value for several outputs, by output; a single one stands for all (`every`) or the only one."""
    if isinstance(given, dict):
        strange = sorted(set(map(str, given)) - set(map(str, names)))
        if strange and every:
            raise ValueError(f"the {what} name {strange[0]!r}; the model's outputs are {', '.join(map(str, names))}")
        return given
    if isinstance(given, (list, tuple)):
        if len(given) != len(names):
            raise ValueError(f"there are {len(given)} {what} for the model's {len(names)} outputs, {', '.join(map(str, names))}")
        return dict(zip(names, given, strict=True))
    if every or len(names) == 1:
        return dict.fromkeys(names, given)
    raise ValueError(f"there is one label for the model's {len(names)} outputs; name a label for each of {', '.join(map(str, names))}")
