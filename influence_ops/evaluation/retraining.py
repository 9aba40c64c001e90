"""One retraining: the user's function on the examples that are kept, and the test points' losses after it.

The function is `train(examples, seed)`:
  examples: a `tf.data.Dataset` of single examples, (inputs, labels) or (inputs, labels, weights), in the order of the files;
    it can be iterated any number of times and knows its cardinality. `inputs` is an array, or a dictionary for several.
  seed: of everything random in training; TensorFlow's, NumPy's and Python's generators are seeded with it already.
  returns: a trained, built Keras model of the architecture whose scores are evaluated.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import inspect
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

import keras
import numpy as np
import pyarrow as pa
import tensorflow as tf

from beam_influence.influence_ops.import_path import load_object
from beam_influence.influence_ops.model.explained_model import ExplainedModel
from beam_influence.influence_ops.model.float64_copy import copy_states, same_layers
from beam_influence.influence_ops.model.network import feed
from beam_influence.influence_ops.reading.example_batch import ExampleBatch

# The generators that are seeded are the process's own: two trainings at once would draw from each other's.
_GENERATORS = threading.Lock()

TrainFunction = Callable[[tf.data.Dataset, int], keras.Model]
Stream = Callable[[], Iterable[ExampleBatch]]

LOSSES = pa.schema(
    [
        pa.field("test_id", pa.string(), nullable=False),
        pa.field("loss", pa.float64(), nullable=False),
        pa.field("prediction", pa.int64()),  # the class of the largest output; null where outputs are no classes
    ]
)


@dataclasses.dataclass(frozen=True)
class Retraining:
    """What to train on: `kept` are the bits of a mask over the N training examples (`numpy.packbits`)."""

    count: int
    kept: bytes
    seed: int

    @classmethod
    def of(cls, mask: np.ndarray, seed: int) -> Retraining:
        """The retraining on the examples of a mask [N]."""
        return cls(len(mask), np.packbits(mask).tobytes(), seed)

    @property
    def mask(self) -> np.ndarray:
        """[N] bool."""
        return np.unpackbits(np.frombuffer(self.kept, dtype=np.uint8), count=self.count).astype(bool)

    def digest(self, circumstances: str) -> str:
        """Names the result: the same examples, seed and circumstances have the same one."""
        digest = hashlib.sha256(f"{circumstances}|{self.count}|{self.seed}|".encode())
        digest.update(self.kept)
        return digest.hexdigest()[:32]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """After a retraining: test ids (T,), losses [T], and classes predicted [T] (−1: outputs are no classes)."""

    test_ids: np.ndarray
    losses: np.ndarray
    predictions: np.ndarray

    def table(self) -> pa.Table:
        """Rows of `LOSSES`."""
        predictions = pa.array(self.predictions, mask=self.predictions < 0)
        return pa.Table.from_arrays([pa.array(self.test_ids, pa.string()), pa.array(self.losses), predictions], schema=LOSSES)

    @classmethod
    def from_table(cls, table: pa.Table) -> Outcome:
        """What `table` gave."""
        ids = np.asarray(table.column("test_id").to_pylist(), dtype=object)
        predictions = table.column("prediction").fill_null(-1).to_numpy()
        return cls(ids, table.column("loss").to_numpy(), predictions)


def load_train_function(path: str) -> tuple[TrainFunction, str]:
    """The user's function and a digest of its module's source: with another source, retrainings are done again.

    Raises:
      ValueError: there is none, or it can't be called with (examples, seed).
    """
    function: Any = load_object(path)
    if not callable(function):
        raise ValueError(f"{path!r} is not a function; it must be train(examples, seed)")
    try:
        inspect.signature(function).bind(None, 0)
    except TypeError as error:
        raise ValueError(f"{path!r} can't be called with (examples, seed): {error}") from error
    source = getattr(importlib.import_module(path.partition(":")[0]), "__file__", None)
    content = b""
    if source:
        with open(source, "rb") as file:
            content = file.read()
    return cast(TrainFunction, function), hashlib.sha256(path.encode() + content).hexdigest()


def retrain(function: TrainFunction, retraining: Retraining, train: Stream, positions: Mapping[str, int]) -> keras.Model:
    """Calls the user's function on the examples that are kept, one call at a time in a process.

    Args:
      function: see the module.
      retraining: which examples, and the seed.
      train: gives the whole training set in batches, from the start at each call.
      positions: the place of each example's id in the mask; examples without one are left out.

    Raises:
      ValueError: the function returned no built Keras model, or one whose weights are not finite.
    """
    with _GENERATORS:
        keras.utils.set_random_seed(retraining.seed)
        model = function(kept_examples(train, retraining.mask, positions), retraining.seed)
    if not isinstance(model, keras.Model) or not model.built:
        raise ValueError(f"the train function returned {type(model).__name__}; it must return the trained, built Keras model")
    if not all(np.isfinite(array).all() for array in model.get_weights()):
        raise ValueError("training ended with weights that are not finite; lower its learning rate")
    return model


def kept_examples(train: Stream, mask: np.ndarray, positions: Mapping[str, int]) -> tf.data.Dataset:
    """The examples of the mask as a data set of single examples, read from `train` each time it is iterated."""

    def kept_batches() -> Iterator[ExampleBatch]:
        for batch in train():
            places = np.array([positions.get(name, -1) for name in batch.ids], dtype=np.int64)
            kept = (places >= 0) & mask[places]
            if kept.any():
                yield batch.select(kept)

    def elements() -> Iterator[tuple]:
        for batch in kept_batches():
            yield _element(batch)

    first = next(iter(kept_batches()), None)
    if first is None:
        raise ValueError("a retraining would have no training example at all; keep more of them")
    signature = tf.nest.map_structure(_spec, _element(first))
    batches = tf.data.Dataset.from_generator(elements, output_signature=signature)
    return batches.unbatch().apply(tf.data.experimental.assert_cardinality(int(mask.sum())))


def evaluate_test_points(model: ExplainedModel, trained: keras.Model, test: Iterable[ExampleBatch]) -> Outcome:
    """The losses of the test points, by the loss that was scored, under the trained model's weights.

    `model` is left with these weights.

    Raises:
      ValueError: the architecture is another one, or a loss is not finite.
    """
    own, new = model.model, trained.get_weights()
    if not hasattr(own, "set_weights"):
        raise ValueError("a SavedModel can't take retrained weights; evaluate the scores of the .keras file, or of module:function")
    shapes, wanted = [array.shape for array in new], [array.shape for array in own.get_weights()]
    if shapes != wanted:
        raise ValueError(f"the train function's model has weights of the shapes {shapes}; the scored model has {wanted}")
    own.set_weights(new)
    if same_layers(trained, own):  # what is no weight: the mean of a Normalization layer, a vocabulary
        copy_states(trained, own)
    ids, losses, predictions = [], [], []
    for batch in test:
        found = model.losses(batch)
        bad = np.flatnonzero(~np.isfinite(found))
        if len(bad):
            raise ValueError(f"after retraining the loss of the test point {batch.ids[bad[0]]} is {found[bad[0]]}")
        ids.append(batch.ids)
        losses.append(found)
        predictions.append(_predictions(model, batch))
    return Outcome(np.concatenate(ids), np.concatenate(losses), np.concatenate(predictions))


def _predictions(model: ExplainedModel, batch: ExampleBatch) -> np.ndarray:
    """Classes, where the loss is one of classes; −1 elsewhere."""
    outputs = model.model(feed(model.model, batch.inputs, model.dtype), training=False)
    of_classes = "crossentropy" in model.loss_name.lower().replace("_", "")
    if not of_classes or isinstance(outputs, (dict, list, tuple)) or len(outputs.shape) != 2:
        return np.full(len(batch), -1)
    scores = np.asarray(outputs)
    if scores.shape[1] > 1:
        return scores.argmax(axis=1)
    if isinstance(batch.labels, Mapping):
        return np.full(len(batch), -1)
    # One output, a logit or a probability: the class is the label with the smaller loss.
    of_0, of_1 = (model.losses(dataclasses.replace(batch, labels=np.full_like(batch.labels, label))) for label in (0, 1))
    return (of_1 < of_0).astype(np.int64)


def _element(batch: ExampleBatch) -> tuple:
    inputs = dict(batch.inputs) if isinstance(batch.inputs, Mapping) else batch.inputs
    labels = dict(batch.labels) if isinstance(batch.labels, Mapping) else batch.labels
    return (inputs, labels) if batch.weights is None else (inputs, labels, batch.weights)


def _spec(array: Any) -> tf.TensorSpec:
    return tf.TensorSpec([None, *array.shape[1:]], tf.convert_to_tensor(array[:1]).dtype)
