"""What the last layer of a network sees of an example: the features in which neighbours are looked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator

import keras
import numpy as np

from beam_influence.influence_ops.model.explained_model import ExplainedModel
from beam_influence.influence_ops.model.network import feed
from beam_influence.influence_ops.reading.example_batch import ExampleBatch

Featured = Callable[[Iterable[ExampleBatch]], Iterator[ExampleBatch]]


def features_of(model: ExplainedModel) -> Featured | None:
    """What gives batches with the last layer's inputs in place of their own; None where there is no such tensor."""
    network = model.model
    if not isinstance(network, (keras.Sequential, keras.Model)) or not getattr(network, "inputs", None):
        return None
    last = next((layer for layer in reversed(network.layers) if layer.weights), None)
    if last is None or not isinstance(getattr(last, "input", None), keras.KerasTensor):
        return None
    before = keras.Model(network.inputs, last.input)

    def featured(batches: Iterable[ExampleBatch]) -> Iterator[ExampleBatch]:
        for batch in batches:
            yield dataclasses.replace(batch, inputs=np.asarray(before(feed(network, batch.inputs, model.dtype), training=False)))

    return featured
