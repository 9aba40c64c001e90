"""Batched `tf.data.Dataset`s, in the forms people have them, as streams of `ExampleBatch`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from beam_influence.influence_ops.model.explained_model import ExplainedModel
from beam_influence.influence_ops.reading.example_batch import ExampleBatch
from beam_influence.influence_ops.types import Tensors, TensorSpecs

PAIR = "(inputs, labels)"
WEIGHTED = "(inputs, labels, weights)"
NESTED = "((inputs, labels), weights)"
PROCESSED = "process_batch_for_loss_fn"
"""The element is whatever the model's `process_batch_for_loss_fn` takes; it gives (inputs, labels, weights or None)."""


def dataset_form(dataset: tf.data.Dataset, model: ExplainedModel) -> str:
    """What the elements are: `PAIR`, `WEIGHTED`, `NESTED` or `PROCESSED`.

    ((x, y), z) is told apart by the model's inputs: of one with two inputs it is ((a, b), labels), of one with a single
    input ((inputs, labels), weights).

    Raises:
      ValueError: none of these, not batched, or not what the model's inputs are.
    """
    spec: TensorSpecs = dataset.element_spec
    if any(not isinstance(leaf, tf.TensorSpec) for leaf in tf.nest.flatten(spec)):
        raise ValueError(f"the dataset's elements are {spec}; they must be dense: pad ragged ones with padded_batch")
    if model.process_batch_for_loss_fn is not None:
        form, first = PROCESSED, tf.nest.flatten(spec)[0]
        ranks = [leaf.shape.rank for leaf in tf.nest.flatten(spec)]
    else:
        form = _form(spec, model)
        inputs, labels, _ = _split(spec, form)
        _check_inputs(inputs, form, model)
        first = tf.nest.flatten(inputs)[0]
        ranks = [first.shape.rank, tf.nest.flatten(labels)[0].shape.rank]
        declared = _declared(model)
        wanted = len(declared[0].shape) if declared else None
        if wanted is not None and ranks[0] == wanted - 1:
            ranks.append(0)
    if 0 in ranks:
        raise ValueError(f"the dataset is not batched (an input has the shape {first.shape}); call dataset.batch(n) first")
    return form


def _form(spec: TensorSpecs, model: ExplainedModel) -> str:
    if not isinstance(spec, tuple) or len(spec) not in (2, 3):
        raise ValueError(f"the dataset's elements are {spec}; they must be {PAIR}, {WEIGHTED} or {NESTED}")
    if len(spec) == 3:
        return WEIGHTED
    first, second = spec
    if not isinstance(first, tuple):
        return PAIR
    count = len(_declared(model))
    if len(first) == 2 and isinstance(first[0], Mapping):
        return NESTED
    if count:
        return NESTED if len(first) == 2 and count == _leaves(first[0]) != _leaves(first) else PAIR
    # A subclassed model declares no inputs; it can be given one array or a dictionary.
    if len(first) != 2 or (tf.nest.is_nested(second) or not second.dtype.is_floating):
        raise ValueError(
            f"the dataset's elements are {spec}: whether that is ((a, b), labels) or {NESTED} can't be told, since the model declares no "
            "inputs; give the inputs as a dictionary, or elements (inputs, labels, weights)"
        )
    return NESTED


def _declared(model: ExplainedModel) -> Sequence[Any]:
    return getattr(model.model, "inputs", None) or []


def _leaves(structure: Tensors | TensorSpecs) -> int:
    return len(tf.nest.flatten(structure))


def _split(element: Tensors | TensorSpecs, form: str) -> tuple[Tensors, Tensors, Tensors | None]:
    """(inputs, labels, weights or None) of an element, or of its specification."""
    if form == NESTED:
        return *element[0], element[1]
    return element if form == WEIGHTED else (*element, None)


def _check_inputs(inputs: Tensors | TensorSpecs, form: str, model: ExplainedModel) -> None:
    names = [tensor.name for tensor in _declared(model)]
    if isinstance(inputs, Mapping):
        missing = [name for name in names if name not in inputs]
        if missing:
            raise ValueError(f"the dataset's inputs are {sorted(inputs)}; the model's input {missing[0]!r} is not among them")
    elif names and _leaves(inputs) != len(names):
        raise ValueError(
            f"the dataset was taken as {form}, with {_leaves(inputs)} inputs; the model has {len(names)}: {', '.join(names)}. Give them "
            "as ((a, b), labels) or ({'a': …, 'b': …}, labels)"
        )
    elif not names and tf.nest.is_nested(inputs):
        raise ValueError("the model declares no inputs, so a tuple of them has no names; give them as a dictionary")


def sample_parts(element: Tensors | TensorSpecs, form: str) -> tuple[Tensors, Tensors]:
    """(inputs, labels) of an element, or of its specification, as the dataset has them."""
    if form != PROCESSED:
        return _split(element, form)[:2]
    parts = element if isinstance(element, tuple) else (element,)
    return parts[0], parts[1:]


def to_example_batch(element: Tensors, form: str, model: ExplainedModel, start: int) -> ExampleBatch:
    """One element as a batch; ids are positions in the dataset, beginning with `start`."""
    process = model.process_batch_for_loss_fn
    if form == PROCESSED and process is not None:
        inputs, labels, weights = process(tf.nest.map_structure(tf.convert_to_tensor, element))
        _check_inputs(inputs, form, model)
    else:
        inputs, labels, weights = _split(element, form)
    names = [tensor.name for tensor in _declared(model)]
    if isinstance(inputs, (tuple, list)):
        inputs = dict(zip(names, tf.nest.flatten(inputs), strict=True))
    elif isinstance(inputs, Mapping) and names:
        inputs = {name: inputs[name] for name in names}
    count = len(tf.nest.flatten(labels)[0])
    positions = np.arange(start, start + count)
    return ExampleBatch(
        positions.astype(str).astype(object),
        tf.nest.map_structure(np.asarray, inputs),
        tf.nest.map_structure(np.asarray, labels),
        None if weights is None else _weights(weights, count),
        positions=positions,
    )


def _weights(weights: Tensors, count: int) -> np.ndarray:
    """[B], or [B, ...] where each position has its own."""
    if tf.nest.is_nested(weights):
        raise ValueError("the dataset has weights for each output; give one array of them, or write the outputs' weights into the loss")
    array = np.asarray(weights, dtype=np.float64)
    if len(array) != count:
        raise ValueError(f"the dataset has weights of the shape {array.shape} for {count} examples; they must be [B] or [B, ...]")
    return array.reshape(count) if array.size == count else array


def example_batches(dataset: tf.data.Dataset, model: ExplainedModel) -> Iterator[tuple[Tensors, ExampleBatch]]:
    """Each element of the dataset, and the same as a batch.

    Raises:
      ValueError: the elements have no usable form; see `dataset_form`.
    """
    form = dataset_form(dataset, model)
    start = 0
    for element in dataset:
        batch = to_example_batch(element, form, model, start)
        start += len(batch)
        yield element, batch


def count_points(dataset: tf.data.Dataset) -> int:
    """How many examples a batched dataset has; read through, since a last batch may be smaller.

    Raises:
      ValueError: it is not batched.
    """
    first = tf.nest.flatten(dataset.element_spec)[0]
    if first.shape.rank == 0:
        raise ValueError("the dataset is not batched: its elements are single numbers; call dataset.batch(n) first")
    return sum(int(tf.shape(tf.nest.flatten(element)[0])[0]) for element in dataset)


def example_digests(batch: ExampleBatch) -> np.ndarray:
    """What tells the batch's examples apart wherever they stand: hashes of their inputs, labels and weights, [B] uint64."""
    arrays = [np.asarray(leaf) for leaf in tf.nest.flatten((batch.inputs, batch.labels, () if batch.weights is None else batch.weights))]
    found = np.empty(len(batch), dtype=np.uint64)
    for row in range(len(batch)):
        digest = hashlib.blake2b(digest_size=8)
        for array in arrays:
            value = np.asarray(array[row])
            digest.update(repr(value.tolist()).encode() if value.dtype == object else value.tobytes())
        found[row] = int.from_bytes(digest.digest(), "big")
    return found
