"""What every calculator does with a data set: evaluate it batch by batch, and give results in the dtype asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import tensorflow as tf

from beam_influence.influence_ops.calculator.samples import RESHUFFLED
from beam_influence.influence_ops.calculator.tf_datasets import count_points, example_batches, example_digests
from beam_influence.influence_ops.model.evaluate import evaluate
from beam_influence.influence_ops.model.explained_model import ExplainedModel
from beam_influence.influence_ops.reading.example_batch import ExampleBatch
from beam_influence.influence_ops.types import Tensors


class DatasetCalculator:
    """Gradients of the examples of data sets.

    Args:
      model: the model.
      dtype: of the results; everything is computed in float64, or the model's own precision, whatever it is.

    Raises:
      ValueError: the model is none of ours, its precision is of the job alone, or the dtype is no floating one.
    """

    def __init__(self, model: ExplainedModel, dtype: tf.DType | str = tf.float64):
        if not isinstance(model, ExplainedModel):
            raise ValueError(f"model must be an InfluenceModel, not {type(model).__name__}; write InfluenceModel(model)")
        if model.query_dtype != model.dtype:
            raise ValueError(f"precision={model.query_dtype!r} is of compute_in_memory and the job; make the model with precision='native'")
        self.model = model
        self.dtype = tf.as_dtype(dtype)
        if not self.dtype.is_floating:
            raise ValueError(f"dtype={dtype!r} must be a floating type, such as tf.float32")

    @staticmethod
    def assert_compatible_datasets(dataset_a: tf.data.Dataset, dataset_b: tf.data.Dataset) -> int:
        """The number of examples of both, whatever their batches; both are read through.

        Raises:
          ValueError: they differ, or one is not batched.
        """
        sizes = [count_points(dataset) for dataset in (dataset_a, dataset_b)]
        if sizes[0] != sizes[1]:
            raise ValueError(f"the datasets have {sizes[0]} and {sizes[1]} examples; they must have the same number")
        return sizes[0]

    def _passes(self, dataset: tf.data.Dataset) -> Callable[[], Iterator[ExampleBatch]]:
        """The data set's batches from the start at each call: in any order, but always the same examples, each of them finite."""
        sums: list[int] = []

        def stream() -> Iterator[ExampleBatch]:
            total = 0
            for _, batch in example_batches(dataset, self.model):
                yield batch if sums else self._evaluate(batch, None)[0]
                total += sum(example_digests(batch).tolist())
            if sums and total != sums[0]:
                raise ValueError(f"the examples must be the same ones at each pass: {RESHUFFLED}")
            sums.append(total)

        return stream

    def _evaluated(self, dataset: tf.data.Dataset, device: str | None = None) -> Iterator[tuple[Tensors, ExampleBatch, np.ndarray]]:
        """(element, batch, gradients [B, P]) for each element."""
        for element, batch in example_batches(dataset, self.model):
            yield element, *self._evaluate(batch, device)

    def _evaluate(self, batch: ExampleBatch, device: str | None) -> tuple[ExampleBatch, np.ndarray]:
        with tf.device(device) if device else contextlib.nullcontext():
            try:
                kept, _, gradients, rejected = evaluate(self.model, batch)
            except (tf.errors.InvalidArgumentError, TypeError, ValueError) as error:
                raise ValueError(f"the model can't evaluate the dataset: {error}") from error
        if rejected:
            raise ValueError(f"{rejected[0].message}; filter the dataset, or use the Beam job, which sets such examples aside")
        return kept, np.asarray(gradients, dtype=np.float64)

    def _gradient_sum(self, batches: Iterable[np.ndarray]) -> tuple[np.ndarray, int]:
        """Σ ∇ℓ(z_i) [1, P] over gradients [B, P], and how many there are."""
        total, count = np.zeros((1, self.model.size)), 0
        for gradients in batches:
            total += gradients.sum(axis=0)
            count += len(gradients)
        return total, count

    def _group_gradient(self, group: tf.data.Dataset) -> np.ndarray:
        """Σ ∇ℓ(z_i) [1, P] over a data set."""
        return self._gradient_sum(gradients for _, _, gradients in self._evaluated(group))[0]

    def _result(self, array: np.ndarray) -> tf.Tensor:
        return tf.constant(array, dtype=self.dtype)
