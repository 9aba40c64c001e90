"""What a run can start from and end with: a fitted curvature, saved vectors, no test points, a sample, several passes."""

from __future__ import annotations

import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam_influence.influence_ops.curvature import FinishOptions, Preconditioner, Statistic
from beam_influence.influence_ops.curvature.conjugate_gradient import NotConvergedWarning
from beam_influence.influence_ops.curvature.identity import Identity
from beam_influence.influence_ops.model.explained_model import ExplainedModel
from beam_influence.influence_ops.results.result_files import read_manifest
from beam_influence.pipelines.cli import main
from tests.arrays import relative
from tests.pipelines.conftest import FinishedRun
from tests.pipelines.digits_job import FN_API, TOLERANCE, DigitsJob, run_quietly


def table(output: pathlib.Path, name: str, *order: str) -> pa.Table:
    return pq.read_table(output / name).sort_by([(column, "ascending") for column in order])


def influence(output: pathlib.Path, name: str, *order: str) -> np.ndarray:
    return np.asarray(table(output, name, *order)["influence"])



def test_fit_then_run(job: DigitsJob, finished: FinishedRun, tmp_path: pathlib.Path) -> None:
    fitted, output = tmp_path / "fitted", tmp_path / "out"
    train = job.shards("train", 3, compressed=True).pattern
    assert main(["fit", "--model", str(job.model), "--train", train, "--output", str(fitted), *FN_API]) == 0
    manifest = read_manifest(str(fitted))
    assert set(manifest["tables"]) == {"rejected"} and set(manifest["counts"]) == {"curvature"}
    run_quietly(job.config(output, compressed=True, outputs="top_k", group_feature=None, curvature_path=str(fitted / "curvature")))
    ranked = ("test_id", "rank")
    assert table(output, "top_k", *ranked)["train_id"].equals(table(finished.output, "top_k", *ranked)["train_id"])
    assert relative(influence(output, "top_k", *ranked), influence(finished.output, "top_k", *ranked)) < TOLERANCE
    assert set(read_manifest(str(output))["counts"]) == {"embed", "score"}  # no pass over the data for the curvature


@pytest.mark.parametrize("normalize", ["none", "theta"])
def test_saved_vectors_stand_for_the_training_set(job: DigitsJob, tmp_path: pathlib.Path, normalize: str) -> None:
    first, again = tmp_path / "first", tmp_path / "again"
    options = {"group_feature": None, "normalize": normalize}
    run_quietly(job.config(first, outputs="top_k,scores,influence_vectors", **options))
    run_quietly(job.config(again, outputs="top_k,scores", train=None, influence_vectors_path=str(first), **options))
    pair = ("test_id", "train_id")
    for name, order in (("top_k", ("test_id", "rank")), ("scores", pair)):
        assert table(again, name, *order).select(pair).equals(table(first, name, *order).select(pair))
        assert relative(influence(again, name, *order), influence(first, name, *order)) < TOLERANCE
    with pytest.raises(ValueError, match="were made with --normalize"):
        wrong = {**options, "normalize": "loss"}
        run_quietly(job.config(tmp_path / "x", outputs="top_k", train=None, influence_vectors_path=str(first), **wrong))


def test_no_test_points_are_needed_for_self_influence(job: DigitsJob, finished: FinishedRun, tmp_path: pathlib.Path) -> None:
    tables = "self_influence,self_influence_top_k,influence_vectors,group_self_influence,group_vectors"
    wanted = table(finished.output, "self_influence", "train_id")
    for order in ("descending", "ascending"):
        output = tmp_path / order
        run_quietly(job.config(output, compressed=True, test=None, outputs=tables, order=order))
        assert relative(influence(output, "self_influence", "train_id"), np.asarray(wanted["influence"])) < TOLERANCE
        top = table(output, "self_influence_top_k", "rank")
        expected = wanted.sort_by([("influence", order), ("train_id", "ascending")])["train_id"].slice(0, 7)
        assert top["train_id"].to_pylist() == expected.to_pylist()
    # A group's vector is the sum of its members' vectors.
    vectors = pq.read_table(output / "influence_vectors").to_pandas().set_index("train_id").vector
    labels = dict(zip(finished.train_ids, job.splits["train"].labels, strict=True))
    members = np.stack([vector for train_id, vector in vectors.items() if labels[train_id] == 3])
    group = pq.read_table(output / "group_vectors").to_pandas().set_index("group").vector["digit 3"]
    assert relative(np.asarray(group), members.sum(axis=0)) < TOLERANCE


@pytest.mark.parametrize("curvature", ["exact", "cgd", "lissa"])
def test_a_sample_is_the_same_on_beam_and_in_memory(job: DigitsJob, tmp_path: pathlib.Path, curvature: str) -> None:
    options = {"curvature": curvature, "n_samples": 60, "seed": 5, "damping": "0.5", "outputs": "scores", "group_feature": None}
    config = job.config(tmp_path / "out", files=7, **options)
    run_quietly(config)
    pair = ("test_id", "train_id")
    wanted = job.oracle(config, job.shards("train", 7).ids(), job.shards("test", 2).ids()).tables["scores"]
    wanted = wanted.sort_by([(column, "ascending") for column in pair])
    # Both solve to the same tolerance (lissa: 1e-3) over the same sample, in another order of its examples.
    assert relative(influence(tmp_path / "out", "scores", *pair), np.asarray(wanted["influence"])) < 1e-5
    assert read_manifest(str(tmp_path / "out"))["curvature"]["examples_used"] == 60


def test_a_solve_that_is_cut_short_warns_with_its_residual(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    options = {"curvature": "cgd", "n_samples": 60, "damping": "0.001", "outputs": "top_k", "group_feature": None}
    with pytest.warns(NotConvergedWarning, match="after at most 2 iterations at a relative residual of"):
        run_quietly(job.config(tmp_path / "out", max_iterations=2, tolerance=1e-4, **options))
    assert read_manifest(str(tmp_path / "out"))["curvature"]["tolerance"] == 1e-4


@pytest.mark.slow
def test_passes_reach_the_exact_answer(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    options = {"outputs": "scores", "group_feature": None, "damping": "0.05"}
    run_quietly(job.config(tmp_path / "exact", curvature="exact", **options))
    errors, pair = {}, ("test_id", "train_id")
    for passes in (0, 3, 30):  # 25 or 26 are enough, by the rounding of sums
        output = tmp_path / str(passes)
        run_quietly(job.config(output, curvature="conjugate_gradient", n_samples=100, passes=passes, tolerance=1e-7, **options))
        errors[passes] = relative(influence(output, "scores", *pair), influence(tmp_path / "exact", "scores", *pair))
    assert errors[0] > errors[3] > errors[30]
    assert errors[30] < 1e-5  # residuals of at most 1e-7 of the gradient, over damping 0.05
    solver = read_manifest(str(tmp_path / "30"))["solver"]
    assert solver["largest_residual"] <= 1e-7 and solver["unsolved"] == 0
    assert read_manifest(str(tmp_path / "3"))["solver"]["unsolved"] == 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test": None}, "--outputs top_k needs --test"),
        ({"train": None}, "--train is needed"),
        ({"influence_vectors_path": "v"}, "takes the place of --train"),
        ({"influence_vectors_path": "v", "train": None, "outputs": "self_influence", "group_feature": None}, "gives top_k and scores"),
        ({"outputs": "curvature", "curvature": "identity"}, "there is no curvature to fit"),
        ({"passes": 3}, "passes over the data solve test points, with --curvature gauss_newton_cg or conjugate_gradient"),
        ({"removal": "newton", "n_samples": 50}, "leave out --n_samples"),
        ({"removal": "newton", "outputs": "group_vectors"}, "is of single examples"),
        ({"tolerance": 0.1}, "--tolerance is of iterative solvers"),
        ({"tolerance": 2.0, "curvature": "cgd"}, "--tolerance 2.0 must be between 0 and 1"),
        ({"max_iterations": 0, "curvature": "lissa"}, "--max_iterations 0 must be at least 1"),
        ({"rank": 5, "curvature": "cgd"}, "--rank is of a matrix's eigenvalues"),
        ({"passes": -1}, "--passes -1 must be at least 0"),
        ({"n_samples": 0}, "n_samples=0 must be at least 1"),
    ],
)
def test_sources_that_do_not_go_together(job: DigitsJob, tmp_path: pathlib.Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        job.config(tmp_path / "out", **options)


class HalvedPreconditioner(Preconditioner):
    """I / 2."""

    kind = "tests.halved"

    def apply(self, gradients: np.ndarray) -> np.ndarray:
        return np.asarray(gradients, dtype=np.float64) / 2


class HalvedIdentity(Identity):
    """A user's own curvature: H = 2·I."""

    name = "halved_identity"
    operators = (HalvedPreconditioner,)

    def finish(self, model: ExplainedModel, statistic: Statistic, options: FinishOptions) -> Preconditioner:
        meta = {**super().finish(model, statistic, options).meta, "curvature": self.name}
        return HalvedPreconditioner({}, meta)


def test_a_curvature_of_the_users_own(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    options = {"outputs": "top_k", "group_feature": None}
    run_quietly(job.config(tmp_path / "plain", curvature="identity", **options))
    run_quietly(job.config(tmp_path / "own", curvature="tests.pipelines.test_sources:HalvedIdentity", **options))
    plain, own = (table(tmp_path / name, "top_k", "test_id", "rank") for name in ("plain", "own"))
    assert own["train_id"].equals(plain["train_id"])
    assert np.allclose(np.asarray(own["influence"]), np.asarray(plain["influence"]) / 2, rtol=1e-12)  # a division by two
    assert read_manifest(str(tmp_path / "own"))["curvature"]["curvature"] == "halved_identity"
