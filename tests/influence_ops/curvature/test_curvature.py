"""Every curvature: one test of the laws of its statistic, saving and loading; then each one's own behaviour."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import pathlib
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from beam_influence import CURVATURES, Curvature, FinishOptions, InfluenceModel, Preconditioner
from beam_influence.influence_ops.curvature import Statistic, curvature_by_name, load_preconditioner
from beam_influence.influence_ops.curvature.dense import DenseCurvature
from beam_influence.influence_ops.curvature.sampled import FittedOnSample
from beam_influence.influence_ops.model.curvature_terms import CurvatureTerms
from beam_influence.influence_ops.reading.example_batch import ExampleBatch
from tests.arrays import relative

layers = keras.layers

SUMS = 1e-10  # float64 sums in another order, through an inverse of condition below 1e3
# The iterative solvers stop at a relative residual of their tolerance: 1e-8 and 1e-3. A differing order of summation moves x by as much.
TOLERANCE = {"conjugate_gradient": 1e-6, "lissa": 1e-2}
PARTS = (5, 0, 1, 7, 3)


@functools.cache
def network() -> keras.Model:
    model = keras.Sequential(
        [keras.Input((4,), dtype="float64"), layers.Dense(3, activation="tanh", dtype="float64"), layers.Dense(3, dtype="float64")]
    )
    random = np.random.default_rng(0)
    model.set_weights([random.normal(0, 0.7, weight.shape) for weight in model.get_weights()])
    return model


@functools.cache
def head() -> InfluenceModel:
    """A linear head with a regulariser, P = 12."""
    return InfluenceModel(network(), loss_function="softmax_cross_entropy", weight_decay=0.02)


@functools.cache
def whole() -> InfluenceModel:
    """All weights, at no minimum: the exact Hessian is indefinite. P = 27."""
    return InfluenceModel(network(), weights="all", loss_function="softmax_cross_entropy")


@functools.cache
def data() -> ExampleBatch:
    random = np.random.default_rng(5)
    count = sum(PARTS)
    ids = np.array([f"f:{row}" for row in range(count)], dtype=object)
    return ExampleBatch(ids, random.standard_normal((count, 4)), random.integers(0, 3, count), random.uniform(0.5, 2, count))


def parts() -> list[ExampleBatch]:
    ends = np.cumsum(PARTS)
    return [data().select(np.arange(end - size, end)) for size, end in zip(PARTS, ends, strict=True)]


def summed(curvature: Curvature, model: InfluenceModel, batches: list[ExampleBatch]) -> Statistic:
    statistic = curvature.create(model)
    for batch in batches:
        if len(batch):
            statistic = curvature.add(model, statistic, batch)
    return curvature.complete(statistic)


def fitted(curvature: Curvature | str, model: InfluenceModel, **options) -> Preconditioner:
    curvature = curvature_by_name(curvature) if isinstance(curvature, str) else curvature
    return finished(curvature, model, summed(curvature, model, [data()]), FinishOptions(**options)).bind(model)



def rows(model: InfluenceModel, count: int = 4) -> np.ndarray:
    return np.random.default_rng(9).standard_normal((count, model.size))


def finished(curvature: Curvature, model: InfluenceModel, statistic: Statistic, options: FinishOptions) -> Preconditioner:
    """The operator from the first pass's statistic; passes after it are over all the data."""
    while True:
        statistic = {name: curvature.finish_part(name, part) for name, part in statistic.items()}
        if curvature.passes <= 1:
            return curvature.finish(model, statistic, options)
        curvature = curvature.resume(curvature.advance(model, statistic))
        statistic = summed(curvature, model, [data()])


ONE_SEGMENT = {"segment_rates": "0.1", "segment_steps": "50"}
KINDS = [*CURVATURES, "exact_on_a_sample", "small_sample"]


def make(kind: str) -> Curvature:
    """The table's entries, and samples smaller than the data: which examples are kept then matters."""
    if kind == "exact_on_a_sample":
        return FittedOnSample(CURVATURES["exact"](), 6)
    if kind == "small_sample":
        return curvature_by_name("conjugate_gradient", 6)
    return curvature_by_name(kind, settings=ONE_SEGMENT if kind.startswith("source") else None)


@pytest.mark.parametrize("kind", KINDS)
def test_laws_of_the_statistic(kind):
    """Whatever the order, the split and the tree of merges, empty ones among them, the operator is the same."""
    model, curvature = head(), make(kind)
    tolerance = TOLERANCE.get("conjugate_gradient" if kind == "small_sample" else kind, SUMS)
    options = FinishOptions(0.05)

    def solved(statistic: Statistic) -> np.ndarray:
        return finished(curvature, model, statistic, options).bind(model).apply(rows(model))

    def each() -> list[Statistic]:
        return [summed(curvature, model, [part]) for part in parts()]

    wanted = solved(summed(curvature, model, [data()]))
    sequential = summed(curvature, model, parts())
    left = functools.reduce(curvature.merge, each())
    a, b, c, d, e = each()
    tree = curvature.merge(curvature.merge(a, b), curvature.merge(curvature.merge(c, d), e))
    permuted = functools.reduce(curvature.merge, [each()[index] for index in (3, 1, 4, 0, 2)])
    with_empty = curvature.merge(curvature.merge(curvature.create(model), summed(curvature, model, [data()])), curvature.create(model))
    backwards = summed(curvature, model, [data().select(np.arange(sum(PARTS))[::-1])])
    packed = {
        name: curvature.unpack_part(name, curvature.pack_part(name, part)) for name, part in summed(curvature, model, parts()).items()
    }
    travelled = pickle.loads(pickle.dumps(left))
    for statistic in (sequential, left, tree, permuted, with_empty, backwards, packed, travelled):
        assert relative(solved(statistic), wanted) < tolerance


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_first_of_a_merge_is_changed(kind):
    model, curvature = head(), make(kind)
    first, second = summed(curvature, model, parts()[:1]), summed(curvature, model, parts()[3:4])
    before = {name: curvature.pack_part(name, part) for name, part in copy.deepcopy(second).items()}
    merged = curvature.merge(first, second)
    curvature.merge(merged, summed(curvature, model, parts()[4:]))
    for name, packed in before.items():
        after = curvature.pack_part(name, second[name])
        assert all((after[key] == array).all() for key, array in packed.items())


@pytest.mark.parametrize("kind", KINDS)
def test_no_examples(kind):
    curvature = make(kind)
    if curvature.passes == 0:
        assert curvature.finish(head(), curvature.create(head()), FinishOptions()).examples == 0
        return
    with pytest.raises(ValueError, match="no training example is left"):
        finished(curvature, head(), curvature.create(head()), FinishOptions())


@contextmanager
def no_pickle() -> Iterator[None]:
    """Unpickling anything fails inside the block."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("load", "loads", "Unpickler"):
            patch.setattr(pickle, name, lambda *_, **__: pytest.fail("something was unpickled"))
        yield


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded(kind, tmp_path):
    model = head()
    preconditioner = fitted(make(kind), model, damping=0.05)
    folder = str(tmp_path / "curvature")
    preconditioner.save(folder)
    with no_pickle():
        loaded = load_preconditioner(folder)
    assert type(loaded) is type(preconditioner)
    assert loaded.meta == preconditioner.meta
    assert loaded.meta["fingerprint"] == model.fingerprint()
    assert loaded.bind(model).apply(rows(model)).tolist() == preconditioner.apply(rows(model)).tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_another_model_is_refused(kind):
    preconditioner = fitted(make(kind), head(), damping=0.05)
    with pytest.raises(ValueError, match="is for 12 watched weights, the model has 27; watch the same weights"):
        preconditioner.bind(whole())
    with pytest.raises(ValueError, match="made for another model .its weights, loss or regulariser differ.; fit it again"):
        preconditioner.bind(head().with_weight_decay(0.03))
    preconditioner.bind(InfluenceModel(network(), loss_function="softmax_cross_entropy", weight_decay=0.02))


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_folder_is_refused(kind, tmp_path):
    fitted(make(kind), head(), damping=0.05).save(str(tmp_path))
    files = sorted(tmp_path.iterdir())
    assert {file.suffix for file in files} <= {".npy", ".json"}
    for file in files:
        content = file.read_bytes()
        for damaged in (content[:-1], b"", content[: len(content) // 2] + b"\x00" + content[len(content) // 2 + 1 :]):
            file.write_bytes(damaged)
            with pytest.raises(ValueError, match="damaged|SHA-256"):
                load_preconditioner(str(tmp_path))
        file.unlink()
        with pytest.raises(ValueError, match="not a complete saved folder|is missing"):
            load_preconditioner(str(tmp_path))
        file.write_bytes(content)
    load_preconditioner(str(tmp_path))


def test_an_array_that_would_need_pickle_is_refused(tmp_path):
    fitted("exact", head(), damping=0.05).save(str(tmp_path))
    _replace_array(tmp_path, "eigenvalues", np.array([{"a": 1}], dtype=object))
    with no_pickle(), pytest.raises(ValueError, match="allow_pickle"):
        load_preconditioner(str(tmp_path))


def _replace_array(folder: pathlib.Path, name: str, array: np.ndarray) -> None:
    """Another array under a digest that fits."""
    np.save(folder / f"{name}.npy", array, allow_pickle=True)
    meta = json.loads((folder / "meta.json").read_text())
    meta["arrays"][name]["sha256"] = hashlib.sha256((folder / f"{name}.npy").read_bytes()).hexdigest()
    (folder / "meta.json").write_text(json.dumps(meta))


def hessian(model: InfluenceModel) -> np.ndarray:
    """The mean of the losses' Hessians plus the regulariser's."""
    return model.hessian_sum(data()) / len(data()) + model.weight_decay * np.eye(model.size)


def test_identity_gives_the_gradients_product():
    model = head()
    gradients = np.asarray(model.losses_and_gradients(data())[1])
    assert (gradients @ fitted("identity", model).apply(gradients).T).tolist() == (gradients @ gradients.T).tolist()


@pytest.mark.parametrize("kind", ["exact", "gauss_newton", "conjugate_gradient", "lissa"])
def test_solves_with_the_damped_hessian(kind):
    """On a linear head all of them are the same matrix."""
    model = head()
    wanted = np.linalg.solve(hessian(model) + 0.05 * np.eye(model.size), rows(model).T).T
    preconditioner = fitted(kind, model, damping=0.05)
    assert relative(preconditioner.apply(rows(model)), wanted) < TOLERANCE.get(kind, SUMS)
    assert preconditioner.meta["damping"] == 0.05
    assert preconditioner.meta["damping_rule"] == "fixed"
    assert preconditioner.examples == len(data())


def test_exact_and_gauss_newton_differ_below_the_head():
    model = whole()
    exact, gauss_newton = (fitted(kind, model, damping=5.0).apply(rows(model)) for kind in ("exact", "gauss_newton"))
    assert relative(exact, gauss_newton) > 1e-3
    assert fitted("gauss_newton", model, damping=0.0).meta["smallest_eigenvalue"] > -1e-12  # 0, up to rounding


@pytest.mark.parametrize("kind", ["exact", "gauss_newton"])
def test_automatic_damping_is_a_tenth_of_the_mean_eigenvalue(kind):
    model = head()
    preconditioner = fitted(kind, model)
    wanted = 0.1 * np.trace(hessian(model)) / model.size
    assert preconditioner.meta["damping"] == pytest.approx(wanted, rel=SUMS)
    assert preconditioner.meta["damping_rule"] == "auto"


def test_rank_and_eigenvalues_are_reported():
    model = head().with_weight_decay(0)
    preconditioner = fitted("exact", model, damping=0.0)
    eigenvalues = np.linalg.eigvalsh(hessian(model))
    # Adding one number to all classes changes nothing: D = 4 directions are flat.
    assert preconditioner.meta["rank"] == model.size - 4
    assert relative(preconditioner.arrays["eigenvalues"], eigenvalues) < SUMS
    assert preconditioner.meta["smallest_eigenvalue"] == pytest.approx(eigenvalues[0], abs=1e-12)
    assert preconditioner.meta["largest_eigenvalue"] == pytest.approx(eigenvalues[-1], rel=SUMS)
    # A pseudo-inverse: what is dropped is dropped, the rest is solved.
    wanted = np.linalg.pinv(hessian(model), rcond=1e-12, hermitian=True)
    assert relative(preconditioner.apply(rows(model)), rows(model) @ wanted) < 1e-9  # condition about 1e4
    cut = fitted("exact", model, damping=0.0, rcond=0.1)
    assert cut.meta["rank"] == int((eigenvalues > 0.1 * eigenvalues[-1]).sum()) < preconditioner.meta["rank"]
    assert fitted("exact", head(), damping=0.0).meta["rank"] == model.size


def test_an_indefinite_hessian_needs_more_damping():
    model = whole()
    smallest = float(np.linalg.eigvalsh(hessian(model))[0])
    assert smallest < -1e-3
    message = rf"eigenvalues down to {smallest:.3g}, below .damping = -0.0001.*use --damping ([\d.]+) or more, or --curvature gauss_newton"
    with pytest.raises(ValueError, match=message) as refused:
        fitted("exact", model, damping=1e-4)
    least = float(re.search(message, str(refused.value))[1])  # type: ignore[index]
    assert -smallest < least < -1.002 * smallest
    fitted("exact", model, damping=least)
    fitted("gauss_newton", model, damping=1e-4)


@pytest.mark.parametrize("kind", ["exact", "gauss_newton", "conjugate_gradient"])
def test_the_regulariser_is_added_once(kind):
    """Not once for each example or batch; inside every loss, it is still added once to their mean."""
    model = head()
    for regularizer in ("curvature", "loss"):
        same = InfluenceModel(network(), loss_function="softmax_cross_entropy", weight_decay=0.02, regularizer=regularizer)
        wanted = np.linalg.solve(hessian(model) + 0.01 * np.eye(model.size), rows(model).T).T
        assert relative(fitted(kind, same, damping=0.01).apply(rows(model)), wanted) < TOLERANCE.get(kind, SUMS)


def test_leaving_one_out_weighs_the_data_alone():
    model, n = head(), len(data())
    matrix = model.hessian_sum(data()) / (n - 1) + model.weight_decay * np.eye(model.size)
    preconditioner = fitted("gauss_newton", model, damping=0.0, leave_one_out=True)
    assert relative(preconditioner.apply(rows(model)), np.linalg.solve(matrix, rows(model).T).T) < SUMS
    curvature = CURVATURES["exact"]()
    one = summed(curvature, model, [data().select(np.arange(1))])
    with pytest.raises(ValueError, match="at least 2 training examples"):
        curvature.finish(model, one, FinishOptions(0.1, leave_one_out=True))
    for kind in ("conjugate_gradient", "lissa"):
        with pytest.raises(ValueError, match=f"needs the whole matrix; use curvature gauss_newton or exact, not {kind}"):
            fitted(kind, model, damping=0.1, leave_one_out=True)


@pytest.mark.parametrize(
    "options", [{"damping": -1.0}, {"damping": float("nan")}, {"damping": "automatic"}, {"rcond": 1.0}, {"rcond": -0.1}]
)
def test_wrong_options_are_refused(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name}={options[name]!r} must be"):
        FinishOptions(**options)


def test_names():
    assert type(curvature_by_name("cgd")) is CURVATURES["conjugate_gradient"]
    assert all(type(make(name)).name == name for name in CURVATURES)
    with pytest.raises(ValueError, match="no curvature is called 'nonsense'; use one of identity, exact"):
        curvature_by_name("nonsense")
    with pytest.raises(ValueError, match="is not a class derived from"):
        curvature_by_name("tests.influence_ops.curvature.test_curvature:network")
    with pytest.raises(ValueError, match="n_samples=0 must be at least 1"):
        curvature_by_name("exact", 0)


def test_a_matrix_that_would_not_fit_is_refused():
    wide = keras.Sequential([keras.Input((4096,)), layers.Dense(5)])
    model = InfluenceModel(wide, loss_function="squared_error", precision="native")
    with pytest.raises(ValueError, match="builds a 20,485 × 20,485 matrix, more than the 16,384 weights it can hold; watch fewer weights"):
        CURVATURES["exact"]().create(model)


@pytest.mark.parametrize("kind", ["exact", "gauss_newton"])
def test_terms_are_summed_when_they_are_many_and_at_the_end(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 16 examples in parts, sums of 7 or more at once: the same matrix, whoever holds the rest."""
    model = head()
    monkeypatch.setattr("beam_influence.influence_ops.curvature.dense._WORTH_A_SUM", 7)
    sums, real = [], CurvatureTerms.sum_rows
    monkeypatch.setattr(CurvatureTerms, "sum_rows", lambda terms, rows: sums.append(len(terms)) or real(terms, rows))
    curvature = curvature_by_name(kind)
    statistics = [curvature.create(model), curvature.create(model)]
    for number, part in enumerate(part for part in parts() if len(part)):
        statistics[number % 2] = curvature.add(model, statistics[number % 2], part)
    merged = curvature.merge(*statistics)
    found = curvature.finish(model, merged, FinishOptions(damping=0.05)).bind(model)
    assert sum(sums) == sum(PARTS) and len(sums) < len([size for size in PARTS if size])
    wanted = np.linalg.solve(hessian(model) + 0.05 * np.eye(model.size), rows(model).T).T
    assert relative(found.apply(rows(model)), wanted) < SUMS


def test_blocks_of_the_matrix_are_put_together(monkeypatch):
    """P = 12 in blocks of 5, 5 and 2."""
    wanted = fitted("exact", head(), damping=0.05).apply(rows(head()))
    monkeypatch.setattr("beam_influence.influence_ops.curvature.dense.BLOCK", 5)
    curvature = CURVATURES["exact"]()
    assert len(curvature.create(head())) == 1 + 6
    assert relative(fitted(curvature, head(), damping=0.05).apply(rows(head())), wanted) < SUMS


@pytest.mark.parametrize("by_terms", [True, False])
@pytest.mark.parametrize("kind", ["exact", "gauss_newton"])
def test_later_rows_of_a_batch_that_is_too_large_are_added_in_halves(kind: str, by_terms: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first rows are added by then, so the batch can't be left out."""
    monkeypatch.setattr("beam_influence.influence_ops.curvature.dense.BLOCK", 5)
    wanted = summed(curvature_by_name(kind), head(), [data()])
    curvature = curvature_by_name(kind)
    assert isinstance(curvature, DenseCurvature)
    if not by_terms:
        monkeypatch.setattr(InfluenceModel, "curvature_terms", lambda *_: None)
    holder, name = (CurvatureTerms, "sum_rows") if by_terms else (DenseCurvature, "batch_rows")
    real, failed = getattr(holder, name), []

    def limited(*arguments: Any) -> np.ndarray:
        rows, examples = arguments[-1], arguments[-2]
        if rows.start == 5 and len(examples) > 3:
            failed.append(len(examples))
            raise tf.errors.ResourceExhaustedError(None, None, "OOM")
        return real(*arguments)

    monkeypatch.setattr(holder, name, limited)
    found = summed(curvature, head(), [data()])
    assert failed == [16, 8, 4]
    assert wanted.keys() == found.keys()
    assert all(relative(found[name], part) < SUMS for name, part in wanted.items())
