"""The notebook calculator: the interface of the reference's FirstOrderInfluenceCalculator over `tf.data`.

It runs the same `influence_ops` as the Beam job, and reads and writes the job's formats. Data sets are batched
`tf.data.Dataset`s of (inputs, labels), (inputs, labels, weights) or ((inputs, labels), weights). An example's id is
its position in its data set. Sign and scale are the reference's: positive = helpful; divide by n for the predicted
change of the loss when the example is removed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import math
import os
import tempfile
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from influence_ops import result_files, tables
from influence_ops.array_folder import LocalFiles
from influence_ops.curvature import Curvature, FinishOptions, Preconditioner, curvature_by_name, fit, load_preconditioner
from influence_ops.curvature.arnoldi import Arnoldi
from influence_ops.curvature.conjugate_gradient import ConjugateGradient
from influence_ops.example_batch import ExampleBatch
from influence_ops.in_memory import run_facts
from influence_ops.model import InfluenceModel
from influence_ops.nearest_neighbors import LinearSearch, NearestNeighbors
from influence_ops.scores import Normalize, ScoreOptions, evaluate, relative_factor
from influence_ops.tf_datasets import dataset_form, example_batches, to_example_batch
from influence_ops.top_k import Order, TopK

_VECTORS = "influence_vectors"
_ARNOLDI_PASSES = 8


class ORDER(enum.Enum):
    """From which end a top-k is taken: DESCENDING is the largest first."""

    ASCENDING = "ascending"
    DESCENDING = "descending"


class CACHE(enum.Enum):
    """Where influence vectors stay between test batches: N × P numbers in memory or on disk, or computed each time."""

    MEMORY = "memory"
    DISK = "disk"
    NO_CACHE = "no_cache"


class IHVPCalculator(enum.Enum):
    """The curvatures by the reference's enumeration; a name of `CURVATURES`, or an object, does as well."""

    Exact = "exact"
    Cgd = "cgd"
    Lissa = "lissa"


class FirstOrderInfluenceCalculator:
    """Influence of training examples, for data sets at hand.

    Args:
      model: the model; see `InfluenceModel`.
      dataset: the batched training set that the curvature is made from; or a curvature that was saved by a Beam
        job or by `save_curvature` (its folder), or a fitted `Preconditioner`, in its place.
      ihvp_calculator: a name of `CURVATURES` ('exact', 'gauss_newton', 'cgd', …), a member of `IHVPCalculator`, a
        `Curvature` or a `Preconditioner`.
      n_samples_for_hessian: how many training examples the curvature uses, chosen by `seed`; None: all of them.
      shuffle_buffer_size: accepted for the reference's sake; our sample is uniform over the whole data set.
      normalize: relative influence: True or 'theta' (θ-RelatIF, the reference's), 'loss' (ℓ-RelatIF), or False.
      damping: λ, or 'auto'. The default 0 is the reference's: a pseudo-inverse, in float64 and with its true rank.
      weight_decay: w of a regulariser 0.5·w·‖θ‖² that training used but the model does not carry; None: the model's.
      passes: with 'cgd' or 'lissa', the most iterations, each a pass over the data of the curvature; None: the
        curvature's own cap. A warning carries the residual when it is reached. With 'arnoldi': how many, 8 by default.
      rank, rcond: of 'exact', 'gauss_newton' and 'arnoldi'; see `FinishOptions`.
      seed: which examples `n_samples_for_hessian` chooses.

    Raises:
      ValueError: the data set is not batched or does not fit the model, or an option is wrong.
    """

    def __init__(
        self,
        model: InfluenceModel,
        dataset: tf.data.Dataset | str | os.PathLike | Preconditioner,
        ihvp_calculator: str | IHVPCalculator | Curvature | Preconditioner = "exact",
        n_samples_for_hessian: int | None = None,
        shuffle_buffer_size: int = 10000,
        normalize: bool | Normalize = False,
        *,
        damping: float | str = 0.0,
        weight_decay: float | None = None,
        passes: int | None = None,
        rank: int | None = None,
        rcond: float | None = None,
        seed: int = 0,
    ):
        if weight_decay is not None:
            model = model.with_weight_decay(weight_decay)
        self.model = model
        self.normalize: Normalize = {False: "none", True: "theta"}.get(normalize, normalize)  # type: ignore[call-overload, assignment]
        self._options = ScoreOptions(self.normalize)
        self.dataset_form: str | None = None
        if isinstance(ihvp_calculator, IHVPCalculator):
            ihvp_calculator = ihvp_calculator.value
        saved = ihvp_calculator if isinstance(ihvp_calculator, Preconditioner) else dataset
        if isinstance(saved, Preconditioner):
            self.preconditioner = saved.bind(model)
        elif isinstance(saved, (str, os.PathLike)):
            self.preconditioner = load_preconditioner(os.fspath(saved)).bind(model)
        else:
            assert not isinstance(ihvp_calculator, Preconditioner)
            self.dataset_form = dataset_form(saved, model)
            if isinstance(ihvp_calculator, str):
                curvature = curvature_by_name(ihvp_calculator, n_samples_for_hessian, seed)
            else:
                curvature = ihvp_calculator
            if curvature.systems == "gauss_newton":
                raise ValueError(
                    f"{curvature.name} solves test points by passes over the data, which the Beam job and compute_in_memory(passes=) "
                    "make; here use 'ekfac', its preconditioner, or 'gauss_newton'"
                )
            if isinstance(curvature, Arnoldi) and n_samples_for_hessian is None:
                curvature.options = dataclasses.replace(curvature.options, rank=rank or curvature.options.rank)
                curvature = curvature.over_all(_ARNOLDI_PASSES if passes is None else passes)
            elif passes is not None:
                if not isinstance(curvature, ConjugateGradient) or passes < 1:
                    raise ValueError(f"passes={passes} must be at least 1, and goes with 'cgd', 'lissa', or 'arnoldi' over all data")
                curvature.max_iterations = passes
            options = FinishOptions(damping, rcond=rcond, rank=rank)
            self.preconditioner = self._fit(saved, curvature, options, n_samples_for_hessian is None)

    def _fit(self, dataset: tf.data.Dataset, curvature: Curvature, options: FinishOptions, all_examples: bool) -> Preconditioner:
        def stream() -> Iterator[ExampleBatch]:
            return (batch for _, batch, _ in self._evaluated(dataset))

        if isinstance(curvature, ConjugateGradient) and all_examples:
            return curvature.over(self.model, stream, options)
        return fit(self.model, curvature, stream, options).bind(self.model)

    def save_curvature(self, folder: str) -> None:
        """Saves the curvature for another calculator, or for a Beam job's `--curvature_path`."""
        self.preconditioner.save(folder)

    # Self-influence and vectors of training examples.

    def compute_influence_values(self, train_set: tf.data.Dataset, device: str | None = None) -> tf.data.Dataset:
        """(training batch, self-influence (B, 1)) for each batch."""

        def rows() -> Iterator[tuple[Any, np.ndarray]]:
            for element, _, gradients, vectors in self._vectors_of(train_set, device):
                yield element, self._self_influence(gradients, vectors)[:, None]

        return self._dataset(rows, train_set, tf.TensorSpec([None, 1], tf.float64))

    def compute_influence_vector(
        self, train_set: tf.data.Dataset, save_influence_vector_ds_path: str | None = None, device: str | None = None
    ) -> tf.data.Dataset:
        """(training batch, influence vectors (B, P)) for each batch.

        With a path: the vectors are read from there when a finished run is there (a calculator's or a Beam job's
        output with `influence_vectors`), else computed and saved there as Parquet.
        """
        path = save_influence_vector_ds_path
        if path is not None:
            if not os.path.exists(os.path.join(path, result_files.MANIFEST)):
                self._save_vectors(train_set, path, device)
            self._check_vectors(path)

        def rows() -> Iterator[tuple[Any, np.ndarray]]:
            if path is not None:
                for element, _, vectors in self._loaded_vectors(train_set, path):
                    yield element, vectors
                return
            for element, _, gradients, vectors in self._vectors_of(train_set, device):
                yield element, vectors * self._factor(gradients, vectors)[:, None]

        return self._dataset(rows, train_set, tf.TensorSpec([None, self.model.size], tf.float64))

    def compute_top_k_from_training_dataset(
        self, train_set: tf.data.Dataset, k: int, order: ORDER = ORDER.DESCENDING
    ) -> tuple[Any, tf.Tensor]:
        """(the k training examples' inputs with the largest or smallest self-influence, their values (k,)), best first."""
        top = TopK(1, k, _order(order))
        for _, batch, gradients, vectors in self._vectors_of(train_set, None):
            top.add(self._self_influence(gradients, vectors)[None], np.asarray(batch.positions))
        samples = self._inputs_at(train_set, top.ids.astype(np.int64))
        return tf.nest.map_structure(lambda array: tf.constant(array[0]), samples), tf.constant(top.values[0])

    # Groups.

    def compute_influence_vector_group(self, group: tf.data.Dataset) -> tf.Tensor:
        """The group's vector (1, P): n × the estimated change of the weights when it is removed."""
        gradient = self._gradient_sum(group)
        vector = self.preconditioner.apply(gradient)
        return tf.constant(vector * self._factor(gradient, vector)[:, None])

    def estimate_influence_values_group(self, group_train: tf.data.Dataset, group_to_evaluate: tf.data.Dataset | None = None) -> tf.Tensor:
        """(1, 1): the group's influence on the summed loss of the other group, or of itself. Sizes may differ."""
        vector = np.asarray(self.compute_influence_vector_group(group_train))
        evaluated = self._gradient_sum(group_train if group_to_evaluate is None else group_to_evaluate)
        return tf.constant(evaluated @ vector.T)

    # Test points.

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
          save_influence_vector_path: save the vectors as Parquet; refused when a finished run is there.
          save_influence_value_path: save every value as the Parquet table `scores`, likewise.
          device: where TensorFlow computes, such as '/GPU:0'.
        """
        vectors = self._vectors_dataset(
            train_set, influence_vector_in_cache, load_influence_vector_path, save_influence_vector_path, device
        )
        if save_influence_value_path is not None:
            self._save_values(dataset_to_evaluate, vectors, save_influence_value_path, device)
        form = dataset_form(dataset_to_evaluate, self.model)

        def gradients_of(*flat: tf.Tensor) -> np.ndarray:
            element = tf.nest.pack_sequence_as(dataset_to_evaluate.element_spec, flat)
            batch = to_example_batch(element, form, self.model, 0)
            return self._finite(batch, device)[1]

        def per_test_batch(*element: Any) -> tuple[Any, tf.data.Dataset]:
            gradients = tf.numpy_function(gradients_of, tf.nest.flatten(element), tf.float64)
            gradients.set_shape([None, self.model.size])
            inner = vectors.map(lambda train, vector: (train, tf.matmul(gradients, vector, transpose_b=True)))
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

        With fewer than k training examples the lists are shorter.

        Args:
          dataset_to_evaluate, train_set, influence_vector_in_cache, device: as of `estimate_influence_values_in_batches`.
          k, order: how many, and from which end.
          nearest_neighbors: the search; None: `LinearSearch`, exact.
          load_influence_vector_ds_path, save_influence_vector_ds_path: as of the other method.
          save_top_k_ds_path: save the result as the Parquet table `top_k`.
          d_type: dtype of the values.
          with_ids: adds two elements: the training examples' positions (B_t, k) and their labels (B_t, k, …).
        """
        vectors = self._vectors_dataset(
            train_set, influence_vector_in_cache, load_influence_vector_ds_path, save_influence_vector_ds_path, device
        )
        search = nearest_neighbors or LinearSearch()
        search.build(_Blocks(vectors), k, _order(order))

        def values_and_positions() -> Iterator[tuple[Any, ExampleBatch, np.ndarray, np.ndarray]]:
            for element, batch, gradients in self._evaluated(dataset_to_evaluate, device):
                yield element, batch, *search.query(gradients)

        if save_top_k_ds_path is not None:
            self._save_top_k(values_and_positions(), save_top_k_ds_path)

        def rows() -> Iterator[tuple]:
            for element, _, values, positions in values_and_positions():
                samples = self._inputs_at(train_set, positions)
                row = (element, values.astype(d_type.as_numpy_dtype), samples)
                yield (*row, positions, self._labels_at(train_set, positions)) if with_ids else row

        inputs, labels = self._parts(train_set, train_set.element_spec)
        many = tf.nest.map_structure(lambda spec: tf.TensorSpec([None, None, *spec.shape[1:]], spec.dtype), (inputs, labels))
        signature = (tf.TensorSpec([None, None], d_type), many[0])
        if with_ids:
            signature = (*signature, tf.TensorSpec([None, None], tf.int64), many[1])
        return self._dataset(rows, dataset_to_evaluate, *signature)

    @staticmethod
    def assert_compatible_datasets(dataset_a: tf.data.Dataset, dataset_b: tf.data.Dataset) -> int:
        """The number of batches of both.

        Raises:
          ValueError: they differ.
        """
        sizes = [_batches_in(dataset) for dataset in (dataset_a, dataset_b)]
        if sizes[0] != sizes[1]:
            raise ValueError(f"the datasets have {sizes[0]} and {sizes[1]} batches; they must have the same number")
        return sizes[0]

    # What the methods share.

    def _evaluated(self, dataset: tf.data.Dataset, device: str | None = None) -> Iterator[tuple[Any, ExampleBatch, np.ndarray]]:
        """(element, batch, gradients [B, P]) for each element."""
        for element, batch in example_batches(dataset, self.model):
            yield element, *self._finite(batch, device)

    def _finite(self, batch: ExampleBatch, device: str | None) -> tuple[ExampleBatch, np.ndarray]:
        with tf.device(device) if device else contextlib.nullcontext():
            try:
                kept, _, gradients, rejected = evaluate(self.model, batch)
            except (tf.errors.InvalidArgumentError, TypeError, ValueError) as error:
                raise ValueError(f"the model can't evaluate the dataset: {error}") from error
        if rejected:
            raise ValueError(f"{rejected[0].message}; filter the dataset, or use the Beam job, which sets such examples aside")
        return kept, np.asarray(gradients, dtype=np.float64)

    def _vectors_of(self, dataset: tf.data.Dataset, device: str | None) -> Iterator[tuple[Any, ExampleBatch, np.ndarray, np.ndarray]]:
        """(element, batch, gradients, plain influence vectors) for each element."""
        for element, batch, gradients in self._evaluated(dataset, device):
            yield element, batch, gradients, self.preconditioner.apply(gradients)

    def _factor(self, gradients: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        return relative_factor(self.normalize, len(vectors), vectors, np.einsum("bp,bp->b", gradients, vectors))

    def _self_influence(self, gradients: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        return np.einsum("bp,bp->b", gradients, vectors) * self._factor(gradients, vectors)

    def _gradient_sum(self, group: tf.data.Dataset) -> np.ndarray:
        total = np.zeros((1, self.model.size))
        for _, _, gradients in self._evaluated(group):
            total += gradients.sum(axis=0)
        return total

    def _dataset(self, rows: Callable[[], Iterator[tuple]], dataset: tf.data.Dataset, *signature: Any) -> tf.data.Dataset:
        dataset_form(dataset, self.model)
        return tf.data.Dataset.from_generator(rows, output_signature=(dataset.element_spec, *signature))

    def _parts(self, dataset: tf.data.Dataset, element: Any) -> tuple[Any, Any]:
        """(inputs, labels) of an element, or of its specification."""
        pair = element[0] if dataset_form(dataset, self.model).startswith("((") else element
        return pair[0], pair[1]

    def _inputs_at(self, dataset: tf.data.Dataset, positions: np.ndarray) -> Any:
        return _rows_at(dataset, positions, lambda element: self._parts(dataset, element)[0])

    def _labels_at(self, dataset: tf.data.Dataset, positions: np.ndarray) -> Any:
        return _rows_at(dataset, positions, lambda element: self._parts(dataset, element)[1])

    # Files.

    def _vectors_dataset(
        self, train_set: tf.data.Dataset, cache: CACHE, load_path: str | None, save_path: str | None, device: str | None
    ) -> tf.data.Dataset:
        if save_path is not None:
            _refuse_finished(save_path)
            self._save_vectors(train_set, save_path, device)
        if load_path is None and save_path is None and cache is CACHE.DISK:
            folder = tempfile.TemporaryDirectory(prefix="influence-vectors-")
            self._save_vectors(train_set, folder.name, device)
            dataset = self.compute_influence_vector(train_set, folder.name)
            weakref.finalize(dataset, folder.cleanup)  # lives as long as the dataset does
            return dataset
        if load_path is not None:
            result_files.read_manifest(load_path)
        dataset = self.compute_influence_vector(train_set, load_path or save_path, device)
        return dataset.cache() if cache is CACHE.MEMORY else dataset

    @property
    def _facts(self) -> dict[str, Any]:
        return run_facts(self.preconditioner.meta, self._options)[1]

    @property
    def _n(self) -> int:
        return run_facts(self.preconditioner.meta, self._options)[0]

    def _save_vectors(self, train_set: tf.data.Dataset, path: str, device: str | None) -> None:
        with self._table(path, _VECTORS) as write:
            for _, batch, gradients, vectors in self._vectors_of(train_set, device):
                write(tables.vectors_table(batch.ids, vectors * self._factor(gradients, vectors)[:, None]))
            if getattr(self.preconditioner, "stream", None) is None:  # a job that uses the vectors wants their curvature
                self.preconditioner.save(os.path.join(path, "curvature"))

    def _save_values(self, test: tf.data.Dataset, vectors: tf.data.Dataset, path: str, device: str | None) -> None:
        _refuse_finished(path)
        with self._table(path, "scores") as write:
            for _, batch, gradients in self._evaluated(test, device):
                for positions, block in _Blocks(vectors):
                    write(tables.scores_table(batch.ids, positions.astype(str), gradients @ block.T, self._n))

    def _save_top_k(self, results: Iterator[tuple[Any, ExampleBatch, np.ndarray, np.ndarray]], path: str) -> None:
        _refuse_finished(path)
        with self._table(path, "top_k") as write:
            for _, batch, values, positions in results:
                top = TopK(*values.shape) if values.shape[1] else TopK(len(values), 1)
                top.values, top.ids = values, positions.astype(str).astype(object)
                write(tables.top_k_table(batch.ids, top, self._n))

    @contextlib.contextmanager
    def _table(self, path: str, table: str) -> Iterator[Callable]:
        """Writes one table of a finished run: its file, then the manifest."""
        file = result_files.ParquetFile(path, table, "part-00000", self._facts, LocalFiles())
        try:
            yield file.write
            written = file.close()
        except BaseException:
            file.abandon()
            raise
        result_files.write_manifest(path, [written], {"curvature": dict(self.preconditioner.meta)})

    def _check_vectors(self, path: str) -> list[str]:
        """The files of saved vectors, refused when they were made otherwise than ours would be."""
        paths = result_files.table_files(path, _VECTORS)
        facts, wanted = result_files.read_facts(paths[0]), self._facts
        differing = [key for key in ("model_fingerprint", "normalize", "curvature") if facts.get(key) != wanted[key]]
        if not math.isclose(facts.get("damping", math.nan), wanted["damping"], rel_tol=1e-9):  # 'auto' has another batch size's rounding
            differing.append("damping")
        if differing:
            shown = ", ".join(f"{key} {facts.get(key)!r}, not {wanted[key]!r}" for key in differing)
            raise ValueError(f"the influence vectors in {path!r} were made with {shown}; compute them again")
        return paths

    def _loaded_vectors(self, train_set: tf.data.Dataset, path: str) -> Iterator[tuple[Any, ExampleBatch, np.ndarray]]:
        """(element, batch, saved vectors) for each element; a Beam job's rows are in the order of files and indices.

        A dataset has no ids to join by, so the first example of each batch is computed again: other examples, or the same
        in another order, are refused.
        """
        paths = self._check_vectors(path)
        tables_read = (rows for file in paths for rows in result_files.iterate_table(file))
        blocks = (np.asarray(rows.column("vector").flatten()).reshape(rows.num_rows, -1) for rows in tables_read)
        waiting = np.zeros((0, self.model.size))
        for element, batch in example_batches(train_set, self.model):
            while len(waiting) < len(batch):
                more = next(blocks, None)
                if more is None:
                    raise ValueError(f"{path!r} holds fewer influence vectors than the dataset has examples; they are of another dataset")
                waiting = np.concatenate([waiting, more])
            gradient = self._finite(batch.select(np.array([0])), None)[1]
            vector = self.preconditioner.apply(gradient)
            wanted = (vector * self._factor(gradient, vector)[:, None])[0]
            # Loose: an iterative solve or a float32 model differs in later digits, another example in the first.
            if np.linalg.norm(waiting[0] - wanted) > 1e-2 * np.linalg.norm(wanted):
                raise ValueError(f"the influence vectors in {path!r} are of other examples, or in another order, than the dataset's")
            yield element, batch, waiting[: len(batch)]
            waiting = waiting[len(batch) :]
        if len(waiting) or next(blocks, None) is not None:
            raise ValueError(f"{path!r} holds more influence vectors than the dataset has examples; they are of another dataset")


@dataclasses.dataclass
class _Blocks:
    """A dataset of (training batch, vectors) as blocks that can be iterated again and again."""

    vectors: tf.data.Dataset

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        start = 0
        for _, block in self.vectors:
            array = block.numpy()
            yield np.arange(start, start + len(array)), array
            start += len(array)


def _order(order: ORDER) -> Order:
    return "ascending" if order is ORDER.ASCENDING else "descending"


def _refuse_finished(path: str) -> None:
    if os.path.exists(os.path.join(path, result_files.MANIFEST)):
        raise ValueError(f"{path!r} holds a finished run already; give another path, or delete it")


def _rows_at(dataset: tf.data.Dataset, positions: np.ndarray, part: Callable[[Any], Any]) -> Any:
    """The rows of the dataset at `positions` [T, k]: arrays [T, k, …]. One pass; only these rows are kept."""
    wanted = np.unique(positions)
    kept: list[list[np.ndarray]] = []
    structure: Any = None
    start = 0
    for element in dataset:
        value = part(element)
        leaves = tf.nest.flatten(value)
        count = len(leaves[0])
        here = wanted[(wanted >= start) & (wanted < start + count)] - start
        if structure is None:
            structure, kept = value, [[] for _ in leaves]
        for known, leaf in zip(kept, leaves, strict=True):
            known.append(np.asarray(leaf)[here])
        start += count
    at = np.searchsorted(wanted, positions)
    return tf.nest.pack_sequence_as(structure, [np.concatenate(known)[at] for known in kept])


def _batches_in(dataset: tf.data.Dataset) -> int:
    known = int(dataset.cardinality())
    return known if known >= 0 else sum(1 for _ in dataset)
