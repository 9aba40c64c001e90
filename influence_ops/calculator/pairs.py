"""The calculators whose influence is an inner product: of a training example's vector with what stands for a test point."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from beam_influence.influence_ops.calculator.options import CACHE, ORDER, ranking
from beam_influence.influence_ops.calculator.samples import TopExamples, VectorBlocks, check_same_examples, find_again
from beam_influence.influence_ops.calculator.saved import digest_of
from beam_influence.influence_ops.calculator.tf_datasets import dataset_form, example_digests, sample_parts, to_example_batch
from beam_influence.influence_ops.calculator.vectors import VectorCalculator
from beam_influence.influence_ops.reading.example_batch import ExampleBatch
from beam_influence.influence_ops.results import tables
from beam_influence.influence_ops.scoring.nearest_neighbors import LinearSearch, NearestNeighbors
from beam_influence.influence_ops.scoring.top_k import TopK
from beam_influence.influence_ops.types import Tensors


class TopKOfBatch(NamedTuple):
    """The top-k of a test batch: values and positions [T, k], and the training examples' (inputs, labels), [T, k, …] each."""

    element: Tensors
    batch: ExampleBatch
    values: np.ndarray
    positions: np.ndarray
    parts: tuple[Tensors, Tensors]


class InfluenceCalculator(VectorCalculator):
    """The methods over test points."""

    def estimate_influence_values_in_batches(
        self,
        dataset_to_evaluate: tf.data.Dataset,
        train_set: tf.data.Dataset,
        influence_vector_in_cache: CACHE = CACHE.MEMORY,
        load_influence_vector_path: str | None = None,
        save_influence_vector_path: str | None = None,
        save_influence_value_path: str | None = None,
        device: str | None = None,
    ) -> tf.data.Dataset:
        """(test batch, dataset of (training batch, influence (B_test, B_train))) for each test batch.

        Args:
          dataset_to_evaluate, train_set: test points and training examples.
          influence_vector_in_cache: see `CACHE`.
          load_influence_vector_path: take the vectors of a finished run, a calculator's or a Beam job's.
          save_influence_vector_path: save the vectors as Parquet. The same ones there already are kept; another finished run is refused.
          save_influence_value_path: save every value as the Parquet table `scores`, likewise.
          device: where TensorFlow computes, such as '/GPU:0'.
        """
        paths = (load_influence_vector_path, save_influence_vector_path)
        vectors, of_test = self._vectors_dataset(train_set, influence_vector_in_cache, *paths, device)
        if save_influence_value_path is not None:
            self._save_values(dataset_to_evaluate, train_set, vectors, of_test, save_influence_value_path, device)
        form = dataset_form(dataset_to_evaluate, self.model)

        def rows_of(*flat: tf.Tensor) -> np.ndarray:
            element = tf.nest.pack_sequence_as(dataset_to_evaluate.element_spec, flat)
            return of_test(self._evaluate(to_example_batch(element, form, self.model, 0), device)[1])

        def per_test_batch(*element: Tensors) -> tuple[Tensors, tf.data.Dataset]:
            tests = tf.numpy_function(rows_of, tf.nest.flatten(element), tf.float64)
            tests.set_shape([None, self.width])
            inner = vectors.map(lambda train, vector: (train, tf.cast(tf.matmul(tests, vector, transpose_b=True), self.dtype)))
            return element, inner

        return dataset_to_evaluate.map(per_test_batch)

    def top_k(
        self,
        dataset_to_evaluate: tf.data.Dataset,
        train_set: tf.data.Dataset,
        k: int = 5,
        nearest_neighbors: NearestNeighbors | None = None,
        influence_vector_in_cache: CACHE = CACHE.MEMORY,
        load_influence_vector_ds_path: str | None = None,
        save_influence_vector_ds_path: str | None = None,
        save_top_k_ds_path: str | None = None,
        order: ORDER = ORDER.DESCENDING,
        d_type: tf.DType = tf.float32,
        device: str | None = None,
        *,
        with_ids: bool = False,
    ) -> tf.data.Dataset:
        """(test batch, influence (B_t, k), training inputs (B_t, k, …)) for each test batch, best first.

        With fewer than k training examples the lists are shorter. The inputs are those of the pass that the values are of.

        Args:
          dataset_to_evaluate, train_set, influence_vector_in_cache, device: as of `estimate_influence_values_in_batches`.
          k, order: how many, and from which end.
          nearest_neighbors: the search; None: `LinearSearch`, exact.
          load_influence_vector_ds_path, save_influence_vector_ds_path: as of the other method.
          save_top_k_ds_path: save the result as the Parquet table `top_k`; likewise.
          d_type: dtype of the values.
          with_ids: adds two elements: the training examples' positions (B_t, k) in that pass, and their labels (B_t, k, …).
        """
        paths = (load_influence_vector_ds_path, save_influence_vector_ds_path)
        vectors, of_test = self._vectors_dataset(train_set, influence_vector_in_cache, *paths, device)
        linear = nearest_neighbors is None or type(nearest_neighbors) is LinearSearch
        blocks = VectorBlocks(vectors, self._digests_of(train_set), recorded=not linear or save_top_k_ds_path is not None)
        if linear:
            found = self._linear(train_set, blocks, of_test, k, order)
        else:
            assert nearest_neighbors is not None
            nearest_neighbors.build(blocks, k, ranking(order))
            again = vectors.map(lambda train, vector: train) if influence_vector_in_cache is CACHE.MEMORY else train_set
            found = self._searched(train_set, again, blocks, of_test, nearest_neighbors)

        def tests() -> Iterator[TopKOfBatch]:
            return (found(*evaluated) for evaluated in self._evaluated(dataset_to_evaluate, device))

        if save_top_k_ds_path is not None:
            self._save_top_k(tests, dataset_to_evaluate, train_set, blocks, k, order, save_top_k_ds_path)

        def rows() -> Iterator[tuple]:
            for row in tests():
                inputs, labels = row.parts
                given = (row.element, row.values.astype(d_type.as_numpy_dtype), inputs)
                yield (*given, row.positions, labels) if with_ids else given

        parts = sample_parts(train_set.element_spec, dataset_form(train_set, self.model))
        many = tf.nest.map_structure(lambda spec: tf.TensorSpec([None, None, *spec.shape[1:]], spec.dtype), parts)
        signature = (dataset_to_evaluate.element_spec, tf.TensorSpec([None, None], d_type), many[0])
        if with_ids:
            signature = (*signature, tf.TensorSpec([None, None], tf.int64), many[1])
        return tf.data.Dataset.from_generator(rows, output_signature=signature)

    def _linear(
        self, train_set: tf.data.Dataset, blocks: VectorBlocks, of_test: Callable[[np.ndarray], np.ndarray], k: int, order: ORDER
    ) -> Callable[[Tensors, ExampleBatch, np.ndarray], TopKOfBatch]:
        """From a test batch to its top-k by the exact search, which keeps its candidates as the blocks go by."""
        form = dataset_form(train_set, self.model)
        specs = sample_parts(train_set.element_spec, form)

        def find(element: Tensors, batch: ExampleBatch, gradients: np.ndarray) -> TopKOfBatch:
            top = TopExamples(len(batch), k, ranking(order), specs)
            tests = of_test(gradients)
            for positions, vectors in blocks:
                top.add(tests @ vectors.T, positions, sample_parts(blocks.element, form))
            return TopKOfBatch(element, batch, top.top.values, top.positions, top.parts())

        return find

    def _searched(
        self,
        train_set: tf.data.Dataset,
        again: tf.data.Dataset,
        blocks: VectorBlocks,
        of_test: Callable[[np.ndarray], np.ndarray],
        search: NearestNeighbors,
    ) -> Callable[[Tensors, ExampleBatch, np.ndarray], TopKOfBatch]:
        """The same by a search that gives positions in the pass it took the vectors from; their examples are found in `again`."""
        form = dataset_form(train_set, self.model)
        specs = sample_parts(train_set.element_spec, form)

        def find(element: Tensors, batch: ExampleBatch, gradients: np.ndarray) -> TopKOfBatch:
            values, positions = search.query(of_test(gradients))
            wanted = blocks.digests()[positions]
            parts = find_again(again, wanted, blocks.digests_of, lambda train: sample_parts(train, form), specs)
            return TopKOfBatch(element, batch, values, positions, parts)

        return find

    # Files.

    def _save_values(
        self,
        test: tf.data.Dataset,
        train_set: tf.data.Dataset,
        vectors: tf.data.Dataset,
        of_test: Callable[[np.ndarray], np.ndarray],
        path: str,
        device: str | None,
    ) -> None:
        """Saves every value. Ids are positions, so both data sets must give the same examples in the same order at each pass."""
        digests, of_tests = self._digests(train_set), self._digests(test)
        table = self._table(path, "scores", train=digest_of(digests), test=digest_of(of_tests))
        if table.is_there():
            return
        blocks, given = VectorBlocks(vectors, self._digests_of(train_set), recorded=True), [np.zeros(0, np.uint64)]
        with table.writing() as write:
            for _, batch, gradients in self._evaluated(test, device):
                tests = of_test(gradients)
                for positions, block in blocks:
                    write(tables.scores_table(batch.ids, positions.astype(str), tests @ block.T, self._example_count))
                check_same_examples(blocks.digests(), digests, path)
                given.append(example_digests(batch))
            check_same_examples(np.concatenate(given), of_tests, path)

    def _save_top_k(
        self,
        tests: Callable[[], Iterator[TopKOfBatch]],
        test: tf.data.Dataset,
        train_set: tf.data.Dataset,
        blocks: VectorBlocks,
        k: int,
        order: ORDER,
        path: str,
    ) -> None:
        """Saves the top-k; as `_save_values`."""
        digests, of_tests = self._digests(train_set), self._digests(test)
        table = self._table(path, "top_k", train=digest_of(digests), test=digest_of(of_tests), k=k, order=order.value)
        if table.is_there():
            return
        given = [np.zeros(0, np.uint64)]
        with table.writing() as write:
            for found in tests():
                top = TopK(len(found.batch), k, ranking(order))
                top.replace(found.values, found.positions.astype(str).astype(object))
                write(tables.top_k_table(found.batch.ids, top, self._example_count))
                check_same_examples(blocks.digests(), digests, path)
                given.append(example_digests(found.batch))
            check_same_examples(np.concatenate(given), of_tests, path)
