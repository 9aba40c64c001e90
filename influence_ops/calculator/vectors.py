"""Influence vectors of training examples: computed, kept in memory or on disk, loaded; and self-influence."""

from __future__ import annotations

import abc
import os
import tempfile
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from beam_influence.influence_ops.calculator.base import DatasetCalculator
from beam_influence.influence_ops.calculator.options import CACHE, ORDER, ranking
from beam_influence.influence_ops.calculator.samples import Digests, TopExamples, check_same_examples
from beam_influence.influence_ops.calculator.saved import VECTORS, SavedTable, VectorReader, digest_of, save_digests, vector_files
from beam_influence.influence_ops.calculator.tf_datasets import (
    dataset_form,
    example_batches,
    example_digests,
    sample_parts,
    to_example_batch,
)
from beam_influence.influence_ops.curvature import Preconditioner
from beam_influence.influence_ops.results import result_files, tables
from beam_influence.influence_ops.scoring.outputs.base import run_facts
from beam_influence.influence_ops.scoring.scores import ScoreOptions
from beam_influence.influence_ops.types import Tensors


class Sides(NamedTuple):
    """From gradients [B, P] to the rows [B, R] whose products are influence: of training examples, and of test points."""

    train: Callable[[np.ndarray], np.ndarray]
    test: Callable[[np.ndarray], np.ndarray]


class VectorCalculator(DatasetCalculator, abc.ABC):
    """The methods over training examples alone, and their vectors kept. A subclass sets what follows.

    Attributes:
      preconditioner: the operator; its `meta` describes it.
      width: R, numbers in an influence vector.
      options: what is normalised.
    """

    preconditioner: Preconditioner
    width: int
    options: ScoreOptions

    @abc.abstractmethod
    def _vectors(self, gradients: np.ndarray) -> np.ndarray:
        """Influence vectors [B, R] of training examples."""

    def _evaluation(self, gradients: np.ndarray) -> np.ndarray:
        """What they are multiplied with: [B, R] of test points."""
        return gradients

    def _sides(self, vectors_wanted: bool) -> Sides:
        """Both; `vectors_wanted` where the training side must be the influence vectors themselves."""
        return Sides(self._vectors, self._evaluation)

    def _saved_curvature(self) -> Preconditioner | None:
        """What is saved beside vectors, since a job that uses them wants it."""
        return None

    @property
    def _facts(self) -> dict[str, Any]:
        return run_facts(self.preconditioner.meta, self.options)[1]

    @property
    def _example_count(self) -> int:
        return run_facts(self.preconditioner.meta, self.options)[0]

    def compute_influence_values(self, train_set: tf.data.Dataset, device: str | None = None) -> tf.data.Dataset:
        """(training batch, self-influence (B, 1)) for each batch."""

        def rows() -> Iterator[tuple[Tensors, np.ndarray]]:
            for element, _, gradients in self._evaluated(train_set, device):
                yield element, self._self_influence(gradients)[:, None]

        return self._dataset(rows, train_set, [None, 1], self.dtype)

    def compute_influence_vector(
        self, train_set: tf.data.Dataset, save_influence_vector_ds_path: str | None = None, device: str | None = None
    ) -> tf.data.Dataset:
        """(training batch, influence vectors (B, R)) for each batch.

        With a path: the vectors are read from there when a finished run is there (a calculator's or a Beam job's
        output with `influence_vectors`), else computed and saved there as Parquet.
        """
        self._sides(vectors_wanted=True)  # refuses an operator that has none
        path = save_influence_vector_ds_path
        if path is not None and not os.path.exists(os.path.join(path, result_files.MANIFEST)):
            self._save_vectors(train_set, path, device)
        return self._vector_rows(train_set, path, device, self._vectors, self.dtype)

    def compute_top_k_from_training_dataset(
        self, train_set: tf.data.Dataset, k: int, order: ORDER = ORDER.DESCENDING
    ) -> tuple[Tensors, tf.Tensor]:
        """(the k training examples' inputs with the largest or smallest self-influence, their values (k,)), best first."""
        form = dataset_form(train_set, self.model)
        top = TopExamples(1, k, ranking(order), sample_parts(train_set.element_spec, form))
        for element, batch, gradients in self._evaluated(train_set):
            top.add(self._self_influence(gradients)[None], np.asarray(batch.positions), sample_parts(element, form))
        return tf.nest.map_structure(lambda array: tf.constant(array[0]), top.parts()[0]), self._result(top.top.values[0])

    # What the methods share.

    def _self_influence(self, gradients: np.ndarray) -> np.ndarray:
        return np.einsum("br,br->b", self._evaluation(gradients), self._vectors(gradients))

    def _dataset(
        self, rows: Callable[[], Iterator[tuple]], dataset: tf.data.Dataset, shape: list[int | None], dtype: tf.DType
    ) -> tf.data.Dataset:
        dataset_form(dataset, self.model)

        def cast() -> Iterator[tuple]:
            return ((element, array.astype(dtype.as_numpy_dtype)) for element, array in rows())

        return tf.data.Dataset.from_generator(cast, output_signature=(dataset.element_spec, tf.TensorSpec(shape, dtype)))

    def _digests_of(self, dataset: tf.data.Dataset) -> Digests:
        form = dataset_form(dataset, self.model)
        return lambda element: example_digests(to_example_batch(element, form, self.model, 0))

    def _digests(self, dataset: tf.data.Dataset) -> np.ndarray:
        """Of all examples, in the order of one pass: [N] uint64."""
        found = [example_digests(batch) for _, batch in example_batches(dataset, self.model)]
        return np.concatenate([np.zeros(0, np.uint64), *found])

    def _table(self, path: str, table: str, **made_of: Any) -> SavedTable:
        return SavedTable(path, table, self._facts, made_of, self.preconditioner.meta)

    def _vectors_dataset(
        self, train_set: tf.data.Dataset, cache: CACHE, load_path: str | None, save_path: str | None, device: str | None
    ) -> tuple[tf.data.Dataset, Callable[[np.ndarray], np.ndarray]]:
        """(training batch, rows of the training side) for each batch, and the test side that they are multiplied with."""
        sides = self._sides(vectors_wanted=load_path is not None or save_path is not None)
        if save_path is not None:
            self._save_vectors(train_set, save_path, device)
        if load_path is None and save_path is None and cache is CACHE.DISK:
            folder = tempfile.TemporaryDirectory(prefix="influence-vectors-")
            sides = self._sides(vectors_wanted=True)
            self._save_vectors(train_set, folder.name, device)
            dataset = self._vector_rows(train_set, folder.name, device, sides.train, tf.float64)
            weakref.finalize(dataset, folder.cleanup)  # lives as long as the dataset does
            return dataset, sides.test
        if load_path is not None:
            result_files.read_manifest(load_path)
        dataset = self._vector_rows(train_set, load_path or save_path, device, sides.train, tf.float64)
        return dataset.cache() if cache is CACHE.MEMORY else dataset, sides.test

    def _vector_rows(
        self, train_set: tf.data.Dataset, path: str | None, device: str | None, rows_of: Callable[[np.ndarray], np.ndarray], dtype: tf.DType
    ) -> tf.data.Dataset:
        """(training batch, its rows) for each batch, computed, or the vectors at `path`."""
        if path is not None:
            vector_files(path, self._facts)  # refused here, not when the first element is asked for

        def rows() -> Iterator[tuple[Tensors, np.ndarray]]:
            if path is not None:
                yield from self._loaded_vectors(train_set, path)
                return
            for element, _, gradients in self._evaluated(train_set, device):
                yield element, rows_of(gradients)

        return self._dataset(rows, train_set, [None, self.width], dtype)

    def _save_vectors(self, train_set: tf.data.Dataset, path: str, device: str | None) -> None:
        """Saves the vectors, or leaves the same ones there as they are."""
        digests = self._digests(train_set)
        table = self._table(path, VECTORS, train=digest_of(digests))
        if table.is_there():
            return
        given = [np.zeros(0, np.uint64)]
        with table.writing() as write:
            for _, batch, gradients in self._evaluated(train_set, device):
                write(tables.vectors_table(batch.ids, self._vectors(gradients)))
                given.append(example_digests(batch))
            check_same_examples(np.concatenate(given), digests, path)
            save_digests(path, digests)
            curvature = self._saved_curvature()
            if curvature is not None:
                curvature.save(os.path.join(path, "curvature"))

    def _loaded_vectors(self, train_set: tf.data.Dataset, path: str) -> Iterator[tuple[Tensors, np.ndarray]]:
        """(element, saved vectors) for each element.

        A dataset has no ids to join by. Vectors that a calculator saved are checked example by example; a Beam job's by the first
        example of each batch, which is computed again.
        """
        reader = VectorReader(path, vector_files(path, self._facts), self.width)
        for element, batch in example_batches(train_set, self.model):
            vectors = reader.take(example_digests(batch))
            wanted = self._vectors(self._evaluate(batch.select(np.array([0])), None)[1])[0]
            # Loose: an iterative solve or a float32 model differs in later digits, another example in the first.
            if np.linalg.norm(vectors[0] - wanted) > 1e-2 * np.linalg.norm(wanted):
                raise reader.mismatch()
            yield element, vectors
        reader.end()
