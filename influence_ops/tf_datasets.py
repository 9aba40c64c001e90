"""Batched `tf.data.Dataset`s, in the forms people have them, as streams of `ExampleBatch`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from influence_ops.example_batch import ExampleBatch
from influence_ops.model import InfluenceModel


def dataset_form(dataset: tf.data.Dataset, model: InfluenceModel) -> str:
    """What the elements are: `(inputs, labels)`, `(inputs, labels, weights)` or `((inputs, labels), weights)`.

    Raises:
      ValueError: none of these, or not batched.
    """
    spec: Any = dataset.element_spec
    if isinstance(spec, tuple) and len(spec) == 2 and isinstance(spec[0], tuple) and len(spec[0]) == 2:
        form, labels = "((inputs, labels), weights)", spec[0][1]
    elif isinstance(spec, tuple) and len(spec) == 3:
        form, labels = "(inputs, labels, weights)", spec[1]
    elif isinstance(spec, tuple) and len(spec) == 2:
        form, labels = "(inputs, labels)", spec[1]
    else:
        raise ValueError(
            f"the dataset's elements are {spec}; they must be (inputs, labels), (inputs, labels, weights) or "
            "((inputs, labels), weights)"
        )
    inputs = spec[0][0] if form.startswith("((") else spec[0]
    declared = getattr(model.model, "inputs", None) or []
    leaf = tf.nest.flatten(inputs)[0]
    wanted = len(declared[0].shape) if declared else None
    rank = leaf.shape.rank
    label_rank = tf.nest.flatten(labels)[0].shape.rank
    if label_rank == 0 or rank == 0 or (wanted is not None and rank is not None and rank == wanted - 1):
        raise ValueError(f"the dataset is not batched (an input has the shape {leaf.shape}); call dataset.batch(n) first")
    return form


def to_example_batch(element: Any, form: str, model: InfluenceModel, start: int) -> ExampleBatch:
    """One element as a batch; ids are positions in the dataset, beginning with `start`."""
    weights = None
    if form == "((inputs, labels), weights)":
        (inputs, labels), weights = element
    elif form == "(inputs, labels, weights)":
        inputs, labels, weights = element
    else:
        inputs, labels = element
    if isinstance(inputs, (tuple, list)):
        names = [tensor.name for tensor in model.model.inputs]
        inputs = dict(zip(names, inputs, strict=True))
    arrays = {name: np.asarray(value) for name, value in inputs.items()} if isinstance(inputs, dict) else np.asarray(inputs)
    label_array = {name: np.asarray(value) for name, value in labels.items()} if isinstance(labels, dict) else np.asarray(labels)
    count = len(tf.nest.flatten(labels)[0])
    positions = np.arange(start, start + count)
    ids = positions.astype(str).astype(object)
    weight_array = None if weights is None else np.asarray(weights, dtype=np.float64).reshape(count)
    return ExampleBatch(ids, arrays, label_array, weight_array, positions=positions)  # type: ignore[arg-type]


def example_batches(dataset: tf.data.Dataset, model: InfluenceModel) -> Iterator[tuple[Any, ExampleBatch]]:
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
