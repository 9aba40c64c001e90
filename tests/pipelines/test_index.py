"""An index answers as the run that it stands for; it grows by what is new; what does not fit it is refused."""

from __future__ import annotations

import hashlib
import json
import pathlib
import shutil
from typing import Any

import keras
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam_influence.influence_ops.curvature import load_preconditioner
from beam_influence.influence_ops.reading.example_batch import ExampleBatch
from beam_influence.influence_ops.results.result_files import iterate_table, read_facts, read_manifest
from beam_influence.influence_ops.scoring.index import InfluenceIndex
from beam_influence.influence_ops.scoring.index_rows import IndexDtype, as_stored, index_table, stored_error, stored_vectors
from beam_influence.influence_ops.scoring.top_k import TopK
from beam_influence.pipelines.cli import main
from beam_influence.pipelines.config import InfluenceConfig
from beam_influence.pipelines.run_pipeline import RunFailedError
from tests.pipelines.digits_job import DigitsJob, files_below, influence_model, listed_files, run_quietly

# Of the largest score: float32 keeps 24 bits of each of two numbers, float16 11 bits of the stored one, int8 10 of the row's largest.
PRECISION = {"float32": 1e-6, "float16": 1e-3, "int8": 2e-3}
PROJECTED: dict[str, Any] = {"curvature": "random_projection", "projection_dim": 40, "seed": 2}


def indexed(job: DigitsJob, output: pathlib.Path, files: int = 3, **options: Any) -> InfluenceConfig:
    # A curvature that is there already takes no option of its fit.
    fitting = {} if {"update", "curvature_path"} & set(options) else PROJECTED
    config = job.config(output, files=files, **{"outputs": "index", "test": None, "group_feature": None, **fitting, **options})
    run_quietly(config)
    return config


def queried(job: DigitsJob, output: pathlib.Path, index: pathlib.Path, **options: Any) -> InfluenceConfig:
    config = job.config(output, **{"train": None, "index": str(index), "group_feature": None, "outputs": "top_k,scores", **options})
    run_quietly(config)
    return config


def scores(output: pathlib.Path) -> dict[tuple[str, str], float]:
    table = pq.read_table(output / "scores")
    pairs = zip(table["test_id"].to_pylist(), table["train_id"].to_pylist(), strict=True)
    return dict(zip(pairs, table["influence"].to_pylist(), strict=True))


def assert_close(found: dict[tuple[str, str], float], wanted: dict[tuple[str, str], float], precision: float) -> None:
    assert found.keys() == wanted.keys() and wanted
    largest = max(map(abs, wanted.values()))
    assert max(abs(found[pair] - wanted[pair]) for pair in wanted) <= precision * largest


def embeddings(output: pathlib.Path) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for path in sorted((output / "index").glob("*.parquet")):
        for rows in iterate_table(str(path)):
            found.update(zip(*stored_vectors(rows), strict=True))
    return found


@pytest.fixture(scope="module")
def index(job: DigitsJob, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A finished index of three files in float32; read only."""
    output = tmp_path_factory.mktemp("index") / "indexed"
    indexed(job, output)
    return output


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_it_answers_as_the_run(job: DigitsJob, index: pathlib.Path, tmp_path: pathlib.Path, dtype: str) -> None:
    if dtype != "float32":
        index = tmp_path / "index"
        indexed(job, index, index_dtype=dtype)
    numbers = {"float16": pa.list_(pa.float16(), 40), "float32": pa.list_(pa.float32(), 40), "int8": pa.binary(40)}
    assert pq.read_schema(next((index / "index").glob("*.parquet"))).field("embedding").type == numbers[dtype]
    run_quietly(job.config(tmp_path / "run", outputs="top_k,scores", group_feature=None, **PROJECTED))
    queried(job, tmp_path / "query", index, query_block_size=7)
    assert_close(scores(tmp_path / "query"), scores(tmp_path / "run"), PRECISION[dtype])
    run, query = (pq.read_table(tmp_path / name / "top_k").to_pandas() for name in ("run", "query"))
    assert list(query.columns) == list(run.columns) and len(query) == len(run)
    if dtype == "float32":  # ranks are decided by more bits than float16 keeps
        assert list(query.train_id) == list(run.train_id) and list(query.test_id) == list(run.test_id)
    of_query, of_run = (read_facts(str(next((tmp_path / name / "top_k").glob("*.parquet")))) for name in ("query", "run"))
    assert PRECISION[dtype] / 100 < of_query["index_error"] < 2 * PRECISION[dtype] and "index_error" not in of_run
    # n is known, so a score has its unit.
    assert np.allclose(query.loss_change * 300, query.influence)


def test_arnoldis_index_is_its_low_rank_part(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    options = {"curvature": "arnoldi", "rank": 12, "projection_dim": None}
    indexed(job, tmp_path / "index", **options)
    queried(job, tmp_path / "query", tmp_path / "index")
    run_quietly(job.config(tmp_path / "run", outputs="scores", group_feature=None, **{**options, "seed": 2}))
    operator = load_preconditioner(str(tmp_path / "index" / "curvature"))
    model, split = influence_model(str(job.model)), job.splits
    batches = [ExampleBatch(np.arange(len(s.labels)).astype(str), s.images, s.labels) for s in (split["test"], split["train"])]
    test, train = (np.asarray(model.losses_and_gradients(batch)[1], dtype=np.float64) for batch in batches)
    outside = [g - g @ operator.arrays["vectors"].T @ operator.arrays["vectors"] for g in (test, train)]
    residual = outside[0] @ outside[1].T / (operator.meta["rest"] + operator.meta["damping"])
    tests, trains = job.shards("test", 1).ids(), job.shards("train", 3).ids()
    wanted = scores(tmp_path / "run")
    low_rank = {(t, z): wanted[t, z] - residual[row, column] for row, t in enumerate(tests) for column, z in enumerate(trains)}
    assert_close(scores(tmp_path / "query"), low_rank, PRECISION["float32"])


def test_ekfacs_index_with_all_its_coordinates_is_the_run(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    options: dict[str, Any] = {"curvature": "ekfac", "projection_dim": None, "seed": 2}
    indexed(job, tmp_path / "index", rank=90, **options)
    queried(job, tmp_path / "query", tmp_path / "index")
    run_quietly(job.config(tmp_path / "run", outputs="scores", group_feature=None, **options))
    assert_close(scores(tmp_path / "query"), scores(tmp_path / "run"), PRECISION["float32"])


def test_in_one_process_it_is_the_same(job: DigitsJob, index: pathlib.Path, tmp_path: pathlib.Path) -> None:
    queried(job, tmp_path / "query", index, outputs="top_k", order="ascending")
    split = job.splits["test"]
    ids = np.array(job.shards("test", 1).ids(), dtype=object)
    batches = [ExampleBatch(ids[s], split.images[s], split.labels[s]) for s in (slice(0, 13), slice(13, 20))]
    found = InfluenceIndex.open(str(index)).top_k(influence_model(str(job.model)), batches, 7, "ascending")
    wanted = pq.read_table(tmp_path / "query" / "top_k")
    for column in ("test_id", "rank", "train_id"):
        assert found[column].to_pylist() == wanted[column].to_pylist()
    assert np.allclose(found["influence"], wanted["influence"], rtol=1e-9)
    assert InfluenceIndex.open(str(index)).top_k(influence_model(str(job.model)), []).num_rows == 0


@pytest.mark.parametrize("order", ["descending", "ascending"])
def test_faiss_finds_the_same(job: DigitsJob, index: pathlib.Path, tmp_path: pathlib.Path, order: str) -> None:
    pytest.importorskip("faiss")
    for search in ("linear", "faiss"):
        queried(job, tmp_path / search, index, outputs="top_k", search=search, order=order, query_block_size=7)
    linear, faiss = (pq.read_table(tmp_path / search / "top_k").to_pandas() for search in ("linear", "faiss"))
    assert list(faiss.test_id) == list(linear.test_id) and list(faiss["rank"]) == list(linear["rank"])
    # FAISS adds up in float32: values agree to that, and neighbours nearer than that may change places.
    assert np.allclose(faiss.influence, linear.influence, rtol=0, atol=1e-5 * linear.influence.abs().max())
    assert (faiss.train_id == linear.train_id).mean() > 0.95
    split = job.splits["test"]
    batch = ExampleBatch(np.array(job.shards("test", 1).ids(), dtype=object), split.images, split.labels)
    alone = InfluenceIndex.open(str(index)).top_k(influence_model(str(job.model)), [batch], 7, order, "faiss")  # type: ignore[arg-type]
    assert list(alone.to_pandas().train_id) == list(faiss.train_id)


def test_without_faiss_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"--search faiss needs FAISS; install it \(pip install faiss-cpu\)"):
        InfluenceConfig(model="m.keras", output="out", test="t", index="i", search="faiss")


def test_adding_is_indexing_all_at_once(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    """With one curvature. What is in it already is neither written nor embedded again, whether it is given again or not."""
    curvature = str(tmp_path / "whole" / "curvature")
    whole = indexed(job, tmp_path / "whole", files=7)
    folder = pathlib.Path(str(whole.train)).parent
    parts = [str(folder / f"part-0000{number}.tfrecord") for number in range(7)]
    grown = tmp_path / "grown"
    indexed(job, grown, train=",".join(parts[:3]), curvature_path=curvature)
    before = _contents(grown / "index")
    indexed(job, grown, train=parts[3], update=True)
    first_part = _contents(grown / "index")
    indexed(job, grown, train=",".join(parts), update=True)
    last = _contents(grown / "index")
    assert before.items() <= first_part.items() <= last.items() and (len(before), len(first_part), len(last)) == (3, 4, 7)
    one, other = embeddings(tmp_path / "whole"), embeddings(grown)
    assert one.keys() == other.keys() and len(one) == 300 and all(np.array_equal(one[name], other[name]) for name in one)
    manifest = read_manifest(str(grown))
    assert manifest["counts"]["index"] == {"shards": 7, "examples": 300, "rejected": 0}
    assert {file.path for file in listed_files(grown) if file.table == "index"} == {f"index/{name}" for name in last}
    assert sorted(file.source.name for file in listed_files(grown) if file.source is not None) == [pathlib.Path(p).name for p in parts]
    for name, output in (("whole", tmp_path / "q1"), ("grown", tmp_path / "q2")):
        queried(job, output, tmp_path / name)
    assert scores(tmp_path / "q1") == scores(tmp_path / "q2")


def _contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {path: (folder / path).read_bytes() for path in files_below(folder)}


def test_a_file_that_has_changed_is_refused(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(pathlib.Path(job.shards("train", 3).pattern).parent, data)
    train = str(data / "part-*.tfrecord")
    indexed(job, tmp_path / "index", train=train)
    manifest = (tmp_path / "index" / "manifest.json").read_bytes()
    first = data / "part-00000.tfrecord"
    whole = first.read_bytes()
    first.write_bytes((data / "part-00001.tfrecord").read_bytes())
    with pytest.raises(ValueError, match=r"has [\d,]+ bytes; when 'part-00000.tfrecord' was indexed it had"):
        indexed(job, tmp_path / "index", train=train, update=True)
    first.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # as long as before
    with pytest.raises(RunFailedError, match=r"is not what it was when 'part-00000.tfrecord' was indexed"):
        indexed(job, tmp_path / "index", train=train, update=True)
    assert (tmp_path / "index" / "manifest.json").read_bytes() == manifest  # the index is what it was
    queried(job, tmp_path / "query", tmp_path / "index")


@pytest.fixture
def data(job: DigitsJob, tmp_path: pathlib.Path) -> pathlib.Path:
    """Three files in two folders: a/part-00000, a/part-00001 and b/part-00000."""
    source = pathlib.Path(job.shards("train", 3).pattern).parent
    for number, name in enumerate(("a/part-00000", "a/part-00001", "b/part-00000")):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / f"part-0000{number}.tfrecord", tmp_path / "data" / f"{name}.tfrecord")
    return tmp_path / "data"


def names_in(index: pathlib.Path) -> list[str]:
    """The files of an index, by name; each example's id begins with one of them."""
    names = [file.source.name for file in listed_files(index) if file.source is not None]
    assert {example.rpartition(":")[0] for example in embeddings(index)} == set(names)
    return sorted(names)


def test_a_wider_pattern_from_another_folder(
    job: DigitsJob, data: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names stay relative to the first call's folder: what is known is known, and what is new is new, under names of their own."""
    index = tmp_path / "index"
    monkeypatch.chdir(data)
    indexed(job, index, train="a/*.tfrecord")
    before = _contents(index / "index")
    monkeypatch.chdir(data / "b")
    indexed(job, index, train="../*/*.tfrecord", update=True)
    assert names_in(index) == ["../b/part-00000.tfrecord", "part-00000.tfrecord", "part-00001.tfrecord"]
    assert before.items() <= _contents(index / "index").items() and len(embeddings(index)) == 300
    monkeypatch.chdir(tmp_path)
    indexed(job, index, train="data/b/*.tfrecord", update=True)  # narrower
    assert len(names_in(index)) == 3 and read_manifest(str(index))["counts"]["index"]["examples"] == 300
    (data / "b" / "part-00000.tfrecord").write_bytes((data / "a" / "part-00000.tfrecord").read_bytes())
    with pytest.raises((ValueError, RunFailedError), match=r"'\.\./b/part-00000\.tfrecord' was indexed"):
        indexed(job, index, train="data/b/*.tfrecord", update=True)


def test_a_folder_that_was_moved(job: DigitsJob, data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    index = tmp_path / "index"
    indexed(job, index, train=str(data / "*" / "part-00000.tfrecord"))
    moved = data.rename(tmp_path / "elsewhere")
    indexed(job, index, train=str(moved / "a" / "*.tfrecord"), update=True)
    assert names_in(index) == ["a/part-00000.tfrecord", "a/part-00001.tfrecord", "b/part-00000.tfrecord"]
    assert len(embeddings(index)) == 300
    changed = moved / "a" / "part-00001.tfrecord"
    changed.write_bytes(changed.read_bytes()[:-1] + b"x")
    with pytest.raises(RunFailedError, match="is not what it was when 'a/part-00001.tfrecord' was indexed"):
        indexed(job, index, train=str(moved / "*" / "*.tfrecord"), update=True)


def test_the_same_content_under_another_name(
    job: DigitsJob, data: pathlib.Path, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    index = tmp_path / "index"
    indexed(job, index, train=str(data / "a" / "*.tfrecord"))
    (data / "a" / "part-00001.tfrecord").rename(data / "a" / "renamed.tfrecord")
    for _ in range(2):
        indexed(job, index, train=str(data / "*" / "*.tfrecord"), update=True)
        assert names_in(index) == ["../b/part-00000.tfrecord", "part-00000.tfrecord", "part-00001.tfrecord"]
        assert "renamed.tfrecord is left out: it has the content of part-00001.tfrecord, which is in the index" in caplog.text
    (data / "b" / "new.tfrecord").write_bytes((data / "b" / "part-00000.tfrecord").read_bytes()[:-200] + b"")
    indexed(job, index, train=str(data / "*" / "*.tfrecord"), update=True, max_rejected=1)
    assert len(set(files_below(index / "index"))) == 4 and len(names_in(index)) == 4  # no file took another's place


def test_another_model_is_refused(job: DigitsJob, index: pathlib.Path, tmp_path: pathlib.Path) -> None:
    other: Any = keras.models.load_model(job.model)
    other.set_weights([weight + 0.01 for weight in other.get_weights()])
    other.save(tmp_path / "other.keras")
    model = str(tmp_path / "other.keras")
    with pytest.raises(ValueError, match="was made for another model"):
        queried(job, tmp_path / "query", index, model=model)
    copy = tmp_path / "index"
    shutil.copytree(index, copy)
    with pytest.raises(ValueError, match="was made for another model"):
        indexed(job, copy, model=model, update=True)
    with pytest.raises(ValueError, match="was made for another model"):
        InfluenceIndex.open(str(index)).top_k(influence_model(model), [])


def test_what_a_killed_update_left_is_not_in_the_index(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    indexed(job, tmp_path / "index")
    leftover = tmp_path / "index" / "index" / "shard-00003.parquet"
    leftover.write_bytes(b"half a file")
    queried(job, tmp_path / "query", tmp_path / "index")  # readers trust the manifest
    indexed(job, tmp_path / "index", update=True)
    assert not leftover.exists()


def test_rejected_examples_of_every_update_are_kept(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    split = job.splits["train"]
    data = tmp_path / "data"
    data.mkdir()
    from tests.pipelines.digits_job import floats, framed

    for number in range(2):
        rows = [split.example(row) for row in range(number * 20, number * 20 + 20)]
        rows[3] = split.example(3, {"image": floats([float("nan")] * 64)})
        (data / f"part-{number}.tfrecord").write_bytes(framed(rows))
    indexed(job, tmp_path / "index", train=str(data / "part-0.tfrecord"), max_rejected=1, damping="0.01")
    indexed(job, tmp_path / "index", train=str(data / "part-*.tfrecord"), update=True, max_rejected=1)
    rejected = pq.read_table(tmp_path / "index" / "rejected").to_pandas()
    assert sorted(rejected.file) == ["part-0.tfrecord", "part-1.tfrecord"] and set(rejected["index"]) == {3}
    assert read_manifest(str(tmp_path / "index"))["counts"]["index"] == {"shards": 2, "examples": 38, "rejected": 2}
    assert len(embeddings(tmp_path / "index")) == 38


def test_stored_rows_of_any_size_and_kind() -> None:
    """Coordinates e^±4 apart, rows of 1e-30 to 1e20: inner products are the embeddings', within what the error says; parts of a file
    are read as whole."""
    rng = np.random.default_rng(0)
    for dim in (1, 5, 64, 100):
        embedded = rng.standard_normal((6, dim)) * np.exp(2 * rng.standard_normal(dim)) * np.array([1e-30, 1e-9, 1, 1e6, 1e20, 0])[:, None]
        queries = rng.standard_normal((4, dim))
        wanted, sizes = queries @ embedded.T, np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(embedded, axis=1)
        dtypes: tuple[IndexDtype, ...] = ("float32", "float16", "int8")
        for dtype, bound in zip(dtypes, (1e-7, 4e-4, 1.05 / 1022 * dim**0.5), strict=True):  # half a step of n, in every coordinate
            table = index_table(np.array(list("abcdef"), dtype=object), embedded, dtype)
            error = stored_error(embedded, table)
            ids, found = stored_vectors(table.slice(2, 4).to_batches()[0])
            assert list(ids) == list("cdef") and 0 < error < bound
            scores = as_stored(queries, table.schema) @ np.concatenate([stored_vectors(table.slice(0, 2).to_batches()[0])[1], found]).T
            assert (np.abs(scores - wanted) <= 1.001 * error * sizes).all()
    for dtype in ("float16", "int8"):
        with pytest.raises(ValueError, match="too large for float32; raise --damping"):
            index_table(np.array(["a"], dtype=object), np.array([[1e300]]), dtype)


def test_int8_finds_the_ten_best_in_at_most_160_bytes() -> None:
    """Of 50,000 Gaussian rows of 124 numbers, the hardest to tell apart: recall@10 of the float32 scan (the documents have 10 million)."""
    rng = np.random.default_rng(0)
    queries, found, wanted = rng.standard_normal((100, 124)), TopK(100, 10), TopK(100, 10)
    for start in range(0, 50_000, 10_000):
        rows, ids = rng.standard_normal((10_000, 124)), np.arange(start, start + 10_000)
        table = index_table(ids.astype(str).astype(object), rows, "int8")
        assert (table.nbytes - table["train_id"].nbytes) / len(rows) <= 160
        found.add(as_stored(queries, table.schema) @ stored_vectors(table.to_batches()[0])[1].T, ids)
        wanted.add(queries @ rows.astype(np.float32).T, ids)
    recall = np.mean([len(set(f) & set(w)) for f, w in zip(found.ids, wanted.ids, strict=True)]) / 10
    assert recall >= 0.99  # seen: 0.996


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"curvature": "gauss_newton", "outputs": "index"}, "--curvature gauss_newton gives no embedding of r numbers for an index"),
        ({"update": True, "test": "t"}, "--update adds to an index; use it with the command index"),
        ({"curvature": "arnoldi", "outputs": "index", "test": "t"}, "--test is of the command query"),
        ({"curvature": "arnoldi", "outputs": "index", "update": True, "overwrite": True}, "leave --curvature_path and --overwrite out"),
        ({"curvature": "arnoldi", "outputs": "index", "normalize": "theta"}, "an index holds plain influence, first order"),
        ({"index": "i", "test": "t"}, "--index takes the place of --train"),
        ({"index": "out", "test": "t", "train": None}, "--output 'out' would replace the index that is read"),
        ({"index": "i", "test": "t", "train": None, "outputs": "self_influence"}, "--index gives top_k and scores, first order; for self"),
        ({"index": "i", "test": "t", "train": None, "normalize": "loss"}, "an index holds plain influence; leave --normalize out"),
        ({"test": "t", "search": "faiss"}, "--search faiss finds the top_k in an index"),
        ({"index": "i", "train": None}, "--outputs top_k needs --test"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        InfluenceConfig(**{"model": "m.keras", "output": "out", "train": "train-*", **options})
    assert message in str(caught.value)


def test_a_folder_without_an_index_is_refused(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="holds no manifest.json"):
        indexed(job, tmp_path / "nothing", update=True)
    with pytest.raises(ValueError, match="holds no manifest.json"):
        queried(job, tmp_path / "query", tmp_path / "nothing")
    with pytest.raises(ValueError, match="already holds a finished run"):
        indexed(job, tmp_path / "index")
        indexed(job, tmp_path / "index")
    with pytest.raises(ValueError, match="--index_dtype float16: the index in .* was made with float32; use the same"):
        indexed(job, tmp_path / "index", update=True, index_dtype="float16")
    with pytest.raises(ValueError, match="--weight_feature weight: the index in .* was made with None; use the same"):
        indexed(job, tmp_path / "index", update=True, weight_feature="weight")


def test_the_commands(job: DigitsJob, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, folder = ["--model", str(job.model)], tmp_path / "index"
    fn_api = ["--runner=FnApiRunner", "--threads", "1"]
    train = job.shards("train", 3).pattern
    assert main(["index", *model, "--train", train, "--rank", "20", "--output", str(folder), *fn_api]) == 0
    assert "index " in capsys.readouterr().out
    assert main(["index", *model, "--train", train, "--output", str(folder), "--update", *fn_api]) == 0
    test = job.shards("test", 1).pattern
    assert main(["query", *model, "--index", str(folder), "--test", test, "--output", str(tmp_path / "out"), *fn_api]) == 0
    assert pq.read_table(tmp_path / "out" / "top_k").num_rows == 200
    assert read_manifest(str(folder))["curvature"]["curvature"] == "arnoldi"
    assert main(["query", *model, "--test", test, "--output", str(tmp_path / "x"), *fn_api]) == 2
    assert "--index is needed" in capsys.readouterr().err


def test_the_command_with_a_saved_curvature_of_another_name(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    """`index` has a default of its own, arnoldi, which is no name that was given."""
    indexed(job, tmp_path / "first", files=1)
    saved = ["--curvature_path", str(tmp_path / "first" / "curvature"), "--runner=FnApiRunner", "--threads", "1"]
    model = ["--model", str(job.model), "--train", job.shards("train", 1).pattern]
    assert main(["index", *model, *saved, "--output", str(tmp_path / "again")]) == 0
    assert embeddings(tmp_path / "again").keys() == embeddings(tmp_path / "first").keys()


def test_nothing_crosses_but_names_and_facts(job: DigitsJob, index: pathlib.Path, tmp_path: pathlib.Path) -> None:
    import apache_beam as beam
    from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner

    from beam_influence.pipelines.build import build
    from tests.pipelines.test_graph import check, crossings

    making = job.config(tmp_path / "a", outputs="index", test=None, group_feature=None, **PROJECTED)
    asking = job.config(tmp_path / "b", train=None, index=str(index), group_feature=None, outputs="top_k")
    for config in (making, asking):
        pipeline = beam.Pipeline(FnApiRunner())
        build(pipeline, config)
        check(crossings(pipeline))
    assert hashlib.sha256(json.dumps(making.as_json()).encode()).hexdigest()  # all options are plain
