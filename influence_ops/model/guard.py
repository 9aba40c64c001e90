"""The user's model is the truth: everything that is computed, compared with it on the user's own first examples.

    outputs     of the network that is computed on, and of the user's model
    losses      ours, all at once, and what Keras computes for the user's model on a batch of each example alone
    gradient    the sum of our blocks, and a tape's gradient of Keras's loss by the user's weights
    batches     a batch of B, and B batches of one
    again       the same batch twice
    unrolled    the outputs of recurrent layers as a loop, and as the line of steps that second derivatives are taken of

Nothing that fails one of these can become a number: the difference is refused, with what differs first and the mend.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING

import keras
import numpy as np
import tensorflow as tf

from beam_influence.influence_ops.model.differences import difference, largest_difference, relative_difference
from beam_influence.influence_ops.model.gradients.blocks import Block, BlockLayout, Factored, Gradients, Layout, materialise
from beam_influence.influence_ops.model.gradients.unrolled import has_loops, unrolled
from beam_influence.influence_ops.model.keras_truth import KerasTruth, tensors
from beam_influence.influence_ops.model.losses import takes_logits
from beam_influence.influence_ops.model.network import feed, to_numpy
from beam_influence.influence_ops.model.position_losses import is_softmax_cross_entropy
from beam_influence.influence_ops.reading.example_batch import ExampleBatch

if TYPE_CHECKING:
    from beam_influence.influence_ops.model.explained_model import ExplainedModel
    from beam_influence.influence_ops.model.influence_model import InfluenceModel

EXAMPLES = 6
_ENOUGH_OUTPUTS = 16  # outputs that are logits are not all between 0 and 1 by chance
_LARGE_SIZE = 1 << 22  # weights above which fewer examples will do
_TOLERANCES = {"float32": 1e-3, "float16": 0.05, "bfloat16": 0.2}  # Keras computes its losses in float32
_SAME = 1e-7  # of two sums in float64
# Of one example in a later batch: wider, since it ends a run that is under way, and a GPU may round a batch of one in another way.
_TOLERANCES_LATER = {"float64": 1e-5, "float32": 1e-2, "float16": 0.1, "bfloat16": 0.4}


class Disagreement(ValueError):
    """What is computed is not the user's model and loss."""


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How far what is computed is from the user's model: the largest difference of each kind, relative to the largest value.

    Attributes:
      examples: on how many examples it was measured.
      outputs, losses, gradient: see the module; `outputs` is 0 where the user's model itself is computed on.
      batches, again: likewise, of losses and gradients.
    """

    examples: int
    outputs: float
    losses: float
    gradient: float
    batches: float
    again: float


def check_agreement(model: InfluenceModel, batch: ExampleBatch) -> Agreement:
    """Compares `model` with the user's own on the first examples of `batch` whose loss is finite.

    Raises:
      Disagreement: something differs; the message says what, by how much, and the mend.
    """
    _refuse_weights_that_cancel(model, batch)
    _refuse_probabilities(model, batch)
    # Spread over the batch: neighbours in a file are alike.
    batch = batch.select(np.unique(np.linspace(0, len(batch) - 1, EXAMPLES if model.size < _LARGE_SIZE else 2).astype(np.int64)))
    try:
        losses, blocks, layout = model.plain_losses_and_blocks(batch)
    except Exception:
        truth = None
        with contextlib.suppress(Exception):  # what can't be evaluated at all is told as it is
            truth = KerasTruth(model, batch)
        if truth is not None:
            _refuse_weights_in_loss(truth)  # beside a copy of the model, such a loss may fail before it is compared
        raise
    finite_losses = np.isfinite(losses)
    finite = finite_losses & Gradients(layout, blocks).finite()
    if not finite.all():  # such examples are rejected one by one, with their reason
        _refuse_finite_in_keras(model, batch.select(np.flatnonzero(~finite_losses)))
        batch = batch.select(np.flatnonzero(finite))
        if not len(batch):
            return Agreement(0, 0.0, 0.0, 0.0, 0.0, 0.0)
        losses, blocks, layout = model.plain_losses_and_blocks(batch)
    tolerance = _TOLERANCES[model.network.rounds_as]
    same = _SAME if model.dtype == "float64" else tolerance
    again = difference(*_summed_blocks(model.plain_losses_and_blocks(batch)), *_summed_blocks((losses, blocks, layout)))
    if again > same:
        raise Disagreement(
            f"the same batch gives another loss or gradient the second time (off by {again:.1g} of the largest value): a layer draws "
            "random numbers or keeps state when the model is used for prediction; make it deterministic with training=False"
        )
    batches = difference(*_summed_blocks((losses, blocks, layout)), *_one_by_one(model, batch))
    if batches > same:
        raise _mixes_examples(len(batch), batches)
    _check_unrolled(model, batch, same)
    truth = KerasTruth(model, batch)
    _refuse_weights_in_loss(truth)
    outputs = _check_outputs(model, batch, tolerance) if model.network.is_copy else 0.0
    off_losses = _check_losses(model, batch, losses, truth, tolerance)
    off_gradient = _check_gradient(model, layout, blocks, truth, tolerance)
    return Agreement(len(batch), outputs, off_losses, off_gradient, batches, again)


def check_later_batch(model: ExplainedModel, batch: ExampleBatch, losses: np.ndarray, gradients: Gradients) -> None:
    """Compares the example with the largest loss in `batch` with itself as a batch of one: in batches number 1, 2, 4, 8, …

    Args:
      batch: B examples whose losses and gradients are finite.
      losses, gradients: theirs, [B] each.

    Raises:
      Disagreement: they differ.
    """
    if len(batch) < 2:
        return
    model.batches_evaluated += 1
    if model.batches_evaluated & (model.batches_evaluated - 1):
        return
    row = np.array([np.argmax(np.abs(losses))])
    alone, gradients_alone = model.losses_and_gradients(batch.select(row))
    same = _TOLERANCES_LATER["float64" if model.dtype == "float64" else model.network.rounds_as]
    scale = worst = 0.0
    for layout, block, own in zip(gradients.layout.blocks, gradients.select(row).blocks, gradients_alone.blocks, strict=True):
        wanted = _summed_block(layout, own)
        scale, worst = max(scale, float(np.abs(wanted).max())), max(worst, float(np.abs(_summed_block(layout, block) - wanted).max()))
    # Next to values smaller than `same`, a difference is rounding.
    off = max(abs(float(losses[row[0]] - alone[0])) / (abs(float(alone[0])) + same), worst / (scale + same))
    if not off <= same:
        raise _mixes_examples(len(batch), off)


def _mixes_examples(count: int, off: float) -> Disagreement:
    return Disagreement(
        f"a batch of {count} examples gives other losses or gradients than each example alone (off by {off:.1g} of the "
        "largest value): a layer or the loss mixes the examples of a batch, so that no example has a loss of its own"
    )


def _one_by_one(model: InfluenceModel, batch: ExampleBatch) -> tuple[np.ndarray, list[np.ndarray]]:
    """The losses of batches of one, and the sum of their gradients."""
    losses, totals = _summed_blocks(model.plain_losses_and_blocks(batch.select(np.array([0]))))
    for row in range(1, len(batch)):
        loss, sums = _summed_blocks(model.plain_losses_and_blocks(batch.select(np.array([row]))))
        losses = np.concatenate([losses, loss])
        totals = [total + part for total, part in zip(totals, sums, strict=True)]
    return losses, totals


def _refuse_finite_in_keras(model: InfluenceModel, batch: ExampleBatch) -> None:
    """Examples whose loss is not finite here must not be so for Keras."""
    found = np.full(len(batch), np.nan)
    with contextlib.suppress(Exception):  # a label that is no class
        found = KerasTruth(model, batch).losses()
    for row in np.flatnonzero(np.isfinite(found))[:1]:
        name = batch.ids[row]
        raise Disagreement(f"the loss {model.loss_name!r} of example {name} is not finite here, and Keras computes {found[row]:.6g}")


def _refuse_weights_in_loss(truth: KerasTruth) -> None:
    if truth.reads_weight is not None:
        raise Disagreement(
            f"the loss itself reads the weight {truth.reads_weight!r}: that term is no part of any one example; leave it out of the loss, "
            "and say it by kernel_regularizer=, or by weight_decay"
        )


def _refuse_weights_that_cancel(model: InfluenceModel, batch: ExampleBatch) -> None:
    leaves = keras.tree.flatten(model.training_loss.losses)
    cancel = any(getattr(leaf, "reduction", "") == "mean_with_sample_weight" for leaf in leaves)
    if not cancel or batch.weights is None or batch.weights.ndim > 1:
        return
    raise Disagreement(
        "the loss has reduction='mean_with_sample_weight', which divides by the sum of a batch's weights: what an example's own weight "
        "does depends on the others; name the loss with reduction='sum_over_batch_size', or leave the weights out"
    )


def _refuse_probabilities(model: InfluenceModel, batch: ExampleBatch) -> None:
    """A loss that takes logits, of a model that gives probabilities without showing the logits behind them (a SavedModel's)."""
    model.layout(batch.inputs)
    if model.loss.heads.activations != ("linear",) or not takes_logits(model.training_loss.losses):
        return
    found = to_numpy(model.packed_outputs(batch.select(np.arange(min(len(batch), 2 * _ENOUGH_OUTPUTS)))))
    within = found.size > 0 and bool((found >= 0).all()) and bool((found <= 1).all())
    of_classes = within and found.shape[-1] > 1 and found.ndim > 1 and np.allclose(found.sum(axis=-1), 1, atol=1e-3)
    by_range = model.loss.heads.opaque and not is_softmax_cross_entropy(model.training_loss.losses, "linear")
    if of_classes or (within and by_range and found.size >= _ENOUGH_OUTPUTS):
        raise Disagreement(
            f"the loss {model.loss_name!r} takes logits, and the model's outputs are probabilities already "
            f"({'they sum to 1' if of_classes else 'all are between 0 and 1'}): it would apply the activation a second time; name the "
            f"loss of probabilities, --loss {'sparse_categorical_crossentropy' if of_classes else 'binary_crossentropy'}"
        )


def _check_outputs(model: InfluenceModel, batch: ExampleBatch, tolerance: float) -> float:
    own = model.network.original(tensors(batch.inputs), training=False)
    copied = model.model(feed(model.model, batch.inputs, model.dtype), training=False)
    off = largest_difference(tf.nest.flatten(own), tf.nest.flatten(copied))
    if not off <= tolerance:
        raise Disagreement(
            f"the float64 copy of the model is not the model: its outputs are off by {off:.1g} of the largest"
            f"{_first_differing_layer(model, batch, tolerance)}; use precision 'native', which computes on the model itself"
        )
    return off


def _check_unrolled(model: InfluenceModel, batch: ExampleBatch, tolerance: float) -> None:
    if not has_loops(model.model):
        return
    inputs = feed(model.model, batch.inputs, model.dtype)
    looped = model.model(inputs, training=False)
    with unrolled(model.model):
        in_line = model.model(inputs, training=False)
    off = largest_difference(tf.nest.flatten(in_line), tf.nest.flatten(looped))
    if not off <= tolerance:
        raise Disagreement(
            f"a recurrent layer gives other outputs step by step than in its loop (off by {off:.1g} of the largest), and its derivatives "
            "are taken step by step; leave such a layer out of the model, or write it with keras.layers.RNN and a cell"
        )


def _first_differing_layer(model: InfluenceModel, batch: ExampleBatch, tolerance: float) -> str:
    """Which layer differs first, where the model is made of layers whose outputs can be had."""
    original, copy = model.network.original, model.model
    inputs = tensors(batch.inputs), feed(copy, batch.inputs, model.dtype)
    for own, made in zip(original.layers, copy.layers, strict=False):
        try:
            found = [
                tf.nest.flatten(keras.Model(network.inputs, layer.output)(given, training=False))
                for network, layer, given in zip((original, copy), (own, made), inputs, strict=True)
            ]
            if not largest_difference(*found) <= tolerance:
                return f", first in the layer {own.name!r} ({type(own).__name__})"
        except Exception:  # called several times, or not on the way to the outputs
            continue
    return ""


def _check_losses(model: InfluenceModel, batch: ExampleBatch, losses: np.ndarray, truth: KerasTruth, tolerance: float) -> float:
    wanted = truth.losses()
    off = relative_difference(losses, wanted)
    if not off <= tolerance:
        worst = int(np.argmax(np.abs(losses - wanted)))
        raise Disagreement(
            f"the loss {model.loss_name!r} of example {batch.ids[worst]} is {losses[worst]:.6g} here, and Keras computes "
            f"{wanted[worst]:.6g} for it; name the loss of an example with --loss (loss_function=): a Keras loss, or a function of your own"
        )
    mixed = truth.mixes_examples(tolerance)
    if mixed is not None:
        raise Disagreement(
            f"the loss {model.loss_name!r} is {mixed}: it mixes the examples of a batch, so that no example has a loss of its own; "
            "name one that is a mean over examples"
        )
    return off


def _check_gradient(model: InfluenceModel, layout: Layout, blocks: tuple[Block, ...], truth: KerasTruth, tolerance: float) -> float:
    wanted = truth.gradient()
    flat = np.zeros((1, model.size))
    for block_layout, block in zip(layout.blocks, blocks, strict=True):
        block_layout.write(_summed_block(block_layout, block)[None], flat)
    scale = max(float(np.abs(wanted).max()), truth.smallest_gradient)
    off = float(np.abs(flat[0] - wanted).max()) / scale if scale else 0.0
    if not off <= tolerance:
        at = int(np.argmax(np.abs(flat[0] - wanted)))
        ends = np.cumsum([int(np.prod(variable.shape)) for variable in model.variables])
        name = model.weight_names[int(np.searchsorted(ends, at, side="right"))]
        raise Disagreement(
            f"the summed gradients of {len(truth.batch)} examples are not the gradient of Keras's loss: by {name!r} one is "
            f"{flat[0, at]:.6g} here and {wanted[at]:.6g} there; a layer may stop or change gradients (tf.custom_gradient); "
            "precision 'native' computes on the model itself"
        )
    return off


def _summed_block(layout: BlockLayout, block: Block) -> np.ndarray:
    """The sum of a block's gradients: [I, O] float64."""
    if isinstance(block, Factored):
        return to_numpy(tf.einsum("bsi,bso->io", block.inputs, block.errors))
    return to_numpy(tf.reduce_sum(materialise(layout, block), axis=0))


def _summed_blocks(found: tuple[np.ndarray, tuple[Block, ...], Layout]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Losses as they are, and the sum of each block over the examples."""
    losses, blocks, layout = found
    return losses, [_summed_block(block_layout, block) for block_layout, block in zip(layout.blocks, blocks, strict=True)]
