"""The same question asked of the notebook calculator and of the Beam job: the same answer."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from beam_influence import CACHE, ORDER, FirstOrderInfluenceCalculator, InfluenceModel
from tests.arrays import joined, matrix_of, relative
from tests.pipelines.digits_job import TOLERANCE, DigitsJob, influence_model, read, run_quietly

FILES = 3
EVERYTHING = (
    "top_k,self_influence,self_influence_top_k,scores,influence_vectors,group_influence,group_self_influence,group_vectors"
)




class Asked:
    """One run of the job, its tables in the order of the datasets, and the same examples as datasets."""

    def __init__(self, job: DigitsJob, output: pathlib.Path, **options: Any):
        self.job = job
        self.output = output
        self.config = job.config(output, files=FILES, test_group_feature="digit", **options)
        run_quietly(self.config)
        shards = {"train": job.shards("train", FILES), "test": job.shards("test", 1)}
        # In the order of files and indices: a job's rows are joined to a dataset by it, and it is not the splits' own.
        self.rows = {split: np.array([row for _, rows in found.rows for row in rows]) for split, found in shards.items()}
        self.ids = {split: [f"{name}:{i}" for name, rows in found.rows for i in range(len(rows))] for split, found in shards.items()}
        self.model: InfluenceModel = influence_model(str(job.model))
        self.train, self.test = self.dataset("train", 53), self.dataset("test", 6)

    def dataset(self, split: str, batch: int, digit: int | None = None) -> tf.data.Dataset:
        """The split, or its examples of one digit, in the order of files and indices."""
        images, labels = (array[self.rows[split]] for array in (self.job.splits[split].images, self.job.splits[split].labels))
        rows = np.arange(len(labels)) if digit is None else np.flatnonzero(labels == digit)
        return tf.data.Dataset.from_tensor_slices((images[rows], labels[rows])).batch(batch)

    def calculator(self, dataset: Any = None, **options: Any) -> FirstOrderInfluenceCalculator:
        """With the job's own options."""
        defaults = {"damping": self.config.finish_options().damping, "normalize": self.config.normalize}
        train = self.train if dataset is None else dataset
        return FirstOrderInfluenceCalculator(self.model, train, self.config.curvature, **{**defaults, **options})

    def by_train(self, table: str, column: str) -> np.ndarray:
        """A column of a table with one row for each training example."""
        rows = {row["train_id"]: row[column] for row in read(self.output, table).to_pylist()}
        return np.array([rows[train_id] for train_id in self.ids["train"]])

    def matrix(self) -> np.ndarray:
        """The scores [T, N]."""
        rows = {(row["test_id"], row["train_id"]): row["influence"] for row in read(self.output, "scores").to_pylist()}
        return np.array([[rows[t, i] for i in self.ids["train"]] for t in self.ids["test"]])

    def top_k(self) -> tuple[np.ndarray, np.ndarray]:
        """Values and positions of training examples: [T, k] each."""
        rows = {(row["test_id"], row["rank"]): row for row in read(self.output, "top_k").to_pylist()}
        table = [[rows[t, rank] for rank in range(1, self.config.top_k + 1)] for t in self.ids["test"]]
        position = {train_id: row for row, train_id in enumerate(self.ids["train"])}
        values = np.array([[row["influence"] for row in line] for line in table])
        return values, np.array([[position[row["train_id"]] for row in line] for line in table])

    def group(self, table: str, column: str, digit: int, **keys: Any) -> Any:
        """One value of a group table."""
        wanted = {"group": f"digit {digit}", **keys}
        (row,) = [row for row in read(self.output, table).to_pylist() if all(row[key] == value for key, value in wanted.items())]
        return row[column]


def assert_same(asked: Asked, calculator: FirstOrderInfluenceCalculator, vectors_path: str | None = None) -> None:
    """Every quantity that both give."""
    train, test, order = asked.train, asked.test, ORDER(asked.config.order)
    assert relative(joined(calculator.compute_influence_values(train))[:, 0], asked.by_train("self_influence", "influence")) < TOLERANCE
    vectors = joined(calculator.compute_influence_vector(train, vectors_path))
    assert relative(vectors, asked.by_train("influence_vectors", "vector")) < TOLERANCE
    _, best = calculator.compute_top_k_from_training_dataset(train, asked.config.top_k, order)
    ranked = read(asked.output, "self_influence_top_k").sort_by("rank")["influence"]
    assert relative(best, ranked) < TOLERANCE
    nested = calculator.estimate_influence_values_in_batches(test, train, load_influence_vector_path=vectors_path)
    assert relative(matrix_of(nested), asked.matrix()) < TOLERANCE
    top = calculator.top_k(
        test, train, asked.config.top_k, order=order, d_type=tf.float64, with_ids=True, load_influence_vector_ds_path=vectors_path
    )
    values, positions = asked.top_k()
    assert relative(joined(top), values) < TOLERANCE
    assert np.array_equal(np.concatenate([np.asarray(element[3]) for element in top]), positions)
    for digit, other in ((3, 8), (5, 5)):
        group, group_of_tests = asked.dataset("train", 7, digit), asked.dataset("test", 2, other)
        vector = calculator.compute_influence_vector_group(group)
        assert relative(vector[0], asked.group("group_vectors", "vector", digit)) < TOLERANCE
        itself = calculator.estimate_influence_values_group(group)
        assert relative(itself[0, 0], asked.group("group_self_influence", "influence", digit)) < TOLERANCE
        on_tests = calculator.estimate_influence_values_group(group, group_of_tests)
        wanted = asked.group("group_influence", "influence", digit, test_id=None, test_group=f"digit {other}")
        assert relative(on_tests[0, 0], wanted) < TOLERANCE
        on_all = calculator.estimate_influence_values_group(group, test)
        assert relative(on_all[0, 0], asked.group("group_influence", "influence", digit, test_id=None, test_group=None)) < TOLERANCE


@pytest.fixture(scope="module")
def plain(job: DigitsJob, tmp_path_factory: pytest.TempPathFactory) -> Asked:
    return Asked(job, tmp_path_factory.mktemp("plain") / "out", outputs=EVERYTHING)


@pytest.fixture(scope="module")
def theta(job: DigitsJob, tmp_path_factory: pytest.TempPathFactory) -> Asked:
    """θ-RelatIF, the reference's `normalize=True`, from the other end, with another curvature and fixed damping."""
    options = {"normalize": "theta", "curvature": "exact", "damping": "0.01", "order": "ascending"}
    return Asked(job, tmp_path_factory.mktemp("theta") / "out", outputs=EVERYTHING, **options)


def test_every_quantity(plain: Asked) -> None:
    assert_same(plain, plain.calculator())


def test_every_quantity_normalized(theta: Asked) -> None:
    calculator = theta.calculator(normalize=True)
    assert calculator.normalize == "theta"
    assert_same(theta, calculator)


def test_curvature_and_vectors_of_the_job_open_in_the_class(plain: Asked) -> None:
    calculator = plain.calculator(str(plain.output / "curvature"))
    assert_same(plain, calculator, str(plain.output))
    # A calculator that fitted its own curvature takes the job's vectors too, on disk or in memory.
    for cache in (CACHE.MEMORY, CACHE.NO_CACHE):
        top = plain.calculator().top_k(
            plain.test, plain.train, 7, influence_vector_in_cache=cache, load_influence_vector_ds_path=str(plain.output), d_type=tf.float64
        )
        assert relative(joined(top), plain.top_k()[0]) < TOLERANCE


def test_vectors_of_the_job_are_refused_where_they_do_not_fit(plain: Asked, theta: Asked) -> None:
    with pytest.raises(ValueError, match="were made with normalize 'theta', not 'none'"):
        plain.calculator().compute_influence_vector(plain.train, str(theta.output))
    with pytest.raises(ValueError, match="were made with damping"):
        plain.calculator(damping=0.5).compute_influence_vector(plain.train, str(plain.output))


def test_a_curvature_of_the_class_opens_in_the_job(job: DigitsJob, plain: Asked, tmp_path: pathlib.Path) -> None:
    calculator = plain.calculator(damping=0.02)
    saved = str(tmp_path / "saved")
    calculator.save_curvature(saved)
    asked = Asked(job, tmp_path / "out", outputs=EVERYTHING, curvature_path=saved)
    assert_same(asked, calculator)
    assert_same(asked, calculator, str(asked.output))


def test_vectors_of_the_class_open_in_the_job(job: DigitsJob, plain: Asked, tmp_path: pathlib.Path) -> None:
    calculator = plain.calculator()
    joined(calculator.compute_influence_vector(plain.train, str(tmp_path / "vectors")))
    options = {"train": None, "group_feature": None, "influence_vectors_path": str(tmp_path / "vectors"), "outputs": "top_k"}
    run_quietly(job.config(tmp_path / "out", files=FILES, **options))
    found = read(tmp_path / "out", "top_k").sort_by([("test_id", "ascending"), ("rank", "ascending")])
    values, positions = plain.top_k()
    order = np.argsort(plain.ids["test"])
    assert [int(train_id) for train_id in found["train_id"].to_pylist()] == positions[order].ravel().tolist()
    assert relative(np.asarray(found["influence"]), values[order].ravel()) < TOLERANCE
