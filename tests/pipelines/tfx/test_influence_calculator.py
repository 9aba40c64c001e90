"""The component's executor gives what the command line gives on the same files, for every kind of Examples."""

from __future__ import annotations

import json
import pathlib
import typing
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.pipelines.tfx import needs_tfx as needs_tfx  # first: skips without the extra

# isort: split
import apache_beam as beam
import tensorflow as tf
from apache_beam.options.pipeline_options import DirectOptions
from tfx.dsl.components.base.base_beam_executor import BaseBeamExecutor
from tfx.types.channel import Channel

from beam_influence.influence_ops.curvature import load_preconditioner
from beam_influence.influence_ops.model.network import load_keras_file
from beam_influence.influence_ops.results.result_files import read_manifest
from beam_influence.pipelines.cli import main
from beam_influence.pipelines.run_pipeline import RunFailedError
from beam_influence.pipelines.tfx import Curvature, InfluenceCalculator, InfluenceScores
from beam_influence.pipelines.tfx.artifacts import standard_artifacts
from beam_influence.pipelines.tfx.influence_executor import InfluenceExecutor
from tests.pipelines.digits_job import SIZES, DigitsJob, files_below
from tests.pipelines.tfx.artifacts_of_tests import FORMATS, keras_model, write_examples

EVERYTHING = ("top_k", "self_influence", "self_influence_top_k", "group_influence", "scores", "influence_vectors")
OPTIONS: dict[str, Any] = {
    "curvature": "exact",
    "top_k": 7,
    "group_feature": "digit",
    "input_features": "image",
    "outputs": EVERYTHING,
    "threads": 1,
}


def execute(
    inputs: dict[str, Any], folder: pathlib.Path, arguments: tuple[str, ...] = (), make_pipeline: Any = None, **options: Any
) -> dict[str, Any]:
    """Runs the executor with the properties that the component has; returns its output artifacts."""
    channels = {name: Channel(type=type(artifact)) for name, artifact in inputs.items()}
    component = InfluenceCalculator(**channels, **options)
    outputs: dict[str, Any] = {"scores": InfluenceScores(), "curvature": Curvature()}
    for name, artifact in outputs.items():
        artifact.uri = str(folder / name)
        (folder / name).mkdir(parents=True)  # as the orchestrator does
    context = BaseBeamExecutor.Context(beam_pipeline_args=list(arguments), make_beam_pipeline_fn=make_pipeline)
    InfluenceExecutor(context).Do(
        {name: [artifact] for name, artifact in inputs.items()},
        {name: [artifact] for name, artifact in outputs.items()},
        dict(component.spec.exec_properties),
    )
    return outputs


def assert_identical(found: pathlib.Path, expected: pathlib.Path, tables: tuple[str, ...]) -> None:
    """The same files of every table with the same rows, to the last bit."""
    for table in tables:
        names = sorted(path.name for path in (expected / table).iterdir())
        assert names and sorted(path.name for path in (found / table).iterdir()) == names
        for name in names:
            a, b = (pq.read_table(folder / table / name) for folder in (found, expected))
            assert a.num_rows and a.equals(b, check_metadata=True), (table, name)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", FORMATS)
def test_equals_the_command_line(job: DigitsJob, tmp_path: pathlib.Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    examples = write_examples(job, tmp_path / "examples", kind)
    model = keras_model(job, tmp_path / "model")
    train, test = ("training", "validation") if kind == "custom" else ("train", "eval")
    outputs = execute({"examples": examples, "model": model}, tmp_path, train_splits=[train], test_splits=[test], **OPTIONS)
    folder = "all" if kind == "custom" else "Split-{}"
    command = [
        "run", "--model", f"{model.uri}/Format-Serving/model.keras", "--output", str(tmp_path / "command_line"),
        "--train", f"{examples.uri}/{folder.format(train)}/{train}-*", "--test", f"{examples.uri}/{folder.format(test)}/{test}-*",
        "--curvature", "exact", "--top_k", "7", "--group_feature", "digit", "--input_features", "image",
        "--outputs", ",".join(EVERYTHING), "--threads", "1",
        "--data_format", {"sequence": "sequence_example", "parquet": "parquet"}.get(kind, "tfrecord"),
    ]  # fmt: skip
    assert main(command) == 0, capsys.readouterr().err
    scores = pathlib.Path(outputs["scores"].uri)
    assert_identical(scores, tmp_path / "command_line", EVERYTHING)
    assert files_below(scores) == files_below(tmp_path / "command_line") | {"report.html"}
    assert "Suspicious labels" in (scores / "report.html").read_text(encoding="utf-8")
    assert pq.read_table(scores / "self_influence").num_rows == SIZES["train"]
    # The curvature artifact is whole, and its own.
    curvature = pathlib.Path(outputs["curvature"].uri)
    assert files_below(curvature) == files_below(scores / "curvature")
    assert all((curvature / name).read_bytes() == (scores / "curvature" / name).read_bytes() for name in files_below(curvature))


@pytest.fixture(scope="module")
def first(job: DigitsJob, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Inputs, and the outputs of a run with the default tables."""
    folder = tmp_path_factory.mktemp("first")
    inputs = {"examples": write_examples(job, folder / "examples"), "model": keras_model(job, folder / "model")}
    return {**inputs, **execute(inputs, folder, curvature="exact", input_features="image")}


def test_facts_are_custom_properties(first: dict[str, Any]) -> None:
    scores, curvature = first["scores"], first["curvature"]
    operator = read_manifest(scores.uri)["curvature"]
    for artifact in (scores, curvature):
        assert artifact.get_int_custom_property("train_examples") == SIZES["train"]
        assert artifact.get_string_custom_property("curvature") == "exact"
        assert float(artifact.get_string_custom_property("damping")) == operator["damping"] > 0
        assert artifact.get_int_custom_property("watched_weights") == 90
        assert artifact.get_string_custom_property("model_fingerprint") == operator["fingerprint"] != ""
        assert artifact.get_string_custom_property("train_splits") == '["train"]'
    assert scores.get_int_custom_property("test_examples") == SIZES["test"]
    assert scores.get_int_custom_property("rejected") == 0
    assert scores.get_string_custom_property("test_splits") == '["eval"]'
    rows = pq.read_table(pathlib.Path(scores.uri) / "self_influence").to_pylist()
    rows.sort(key=lambda row: (-row["influence"], row["train_id"]))
    candidates = json.loads(scores.get_string_custom_property("mislabel_candidates"))
    # A product's last bits depend on how many columns it has.
    assert [row["train_id"] for row in candidates] == [row["train_id"] for row in rows[:10]]
    assert [row["self_influence"] for row in candidates] == pytest.approx([row["influence"] for row in rows[:10]], rel=1e-12)


@pytest.mark.timeout(120)
def test_a_saved_curvature_is_used(first: dict[str, Any], tmp_path: pathlib.Path) -> None:
    inputs = {name: first[name] for name in ("examples", "model")}
    again = execute({**inputs, "saved_curvature": first["curvature"]}, tmp_path, input_features="image")
    manifest = read_manifest(again["scores"].uri)
    assert manifest["config"]["curvature_path"] == first["curvature"].uri and "curvature" not in manifest["counts"]
    tables = ("top_k", "self_influence", "self_influence_top_k")
    assert_identical(pathlib.Path(again["scores"].uri), pathlib.Path(first["scores"].uri), tables)
    assert files_below(pathlib.Path(again["curvature"].uri)) == files_below(pathlib.Path(first["curvature"].uri))


@pytest.mark.timeout(120)
@pytest.mark.parametrize("curvature", ["identity", "conjugate_gradient", "arnoldi"])
def test_other_curvatures_tell_their_facts(first: dict[str, Any], tmp_path: pathlib.Path, curvature: str) -> None:
    inputs = {name: first[name] for name in ("examples", "model")}
    damping = {} if curvature == "identity" else {"damping": 0.01}
    found = execute(inputs, tmp_path, curvature=curvature, input_features="image", outputs="top_k", **damping)
    for artifact in found.values():
        assert artifact.get_string_custom_property("curvature") == curvature
        assert artifact.get_int_custom_property("watched_weights") == 90
    assert found["scores"].get_string_custom_property("mislabel_candidates") == "[]"
    assert load_preconditioner(found["curvature"].uri).meta["curvature"] == curvature


@pytest.mark.timeout(120)
def test_no_test_points_and_ascending_order(first: dict[str, Any], tmp_path: pathlib.Path) -> None:
    inputs = {name: first[name] for name in ("examples", "model")}
    found = execute(inputs, tmp_path, test_splits=None, curvature="exact", input_features="image", order="ascending", top_k=3)["scores"]
    assert set(read_manifest(found.uri)["tables"]) == {"self_influence", "self_influence_top_k", "rejected"}
    assert found.get_int_custom_property("test_examples") == 0
    # The table has the smallest three, the candidates the largest twenty.
    candidates = json.loads(found.get_string_custom_property("mislabel_candidates"))
    before = json.loads(first["scores"].get_string_custom_property("mislabel_candidates"))
    assert len(candidates) == 20 and [row["train_id"] for row in candidates[:10]] == [row["train_id"] for row in before]


@pytest.mark.timeout(120)
def test_only_the_curvature(first: dict[str, Any], tmp_path: pathlib.Path) -> None:
    inputs = {name: first[name] for name in ("examples", "model")}
    found = execute(inputs, tmp_path, test_splits=None, curvature="exact", input_features="image", outputs="curvature")
    assert found["curvature"].get_int_custom_property("train_examples") == SIZES["train"]
    assert found["scores"].get_string_custom_property("mislabel_candidates") == "[]"
    assert files_below(pathlib.Path(found["curvature"].uri)) == files_below(pathlib.Path(first["curvature"].uri))


@pytest.mark.timeout(120)
def test_other_test_points_several_splits_and_a_schema(first: dict[str, Any], job: DigitsJob, tmp_path: pathlib.Path) -> None:
    """Test points of their own, one without an image; both splits as the training set; a schema that tells shapes and a default."""
    schema = standard_artifacts.Schema()
    schema.uri = str(tmp_path / "schema")
    (tmp_path / "schema").mkdir()
    (tmp_path / "schema" / "schema.pbtxt").write_text(
        'feature { name: "image" type: FLOAT presence { min_fraction: 1 } shape { dim { size: 64 } } }'
        'feature { name: "label" type: INT presence { min_fraction: 1 } shape {} }'
        'tensor_representation_group { key: "" value { tensor_representation { key: "image" value { dense_tensor {'
        '  column_name: "image" shape { dim { size: 64 } } default_value { float_value: 0.5 } } } } } }'
    )
    tests = write_examples(job, tmp_path / "tests", "plain", files=1)
    (written,) = pathlib.Path(tests.uri).glob("Split-eval/*")
    records = [tf.train.Example.FromString(record) for record in tf.data.TFRecordDataset(str(written)).as_numpy_iterator()]
    del records[0].features.feature["image"]
    with tf.io.TFRecordWriter(str(written)) as writer:
        for record in records:
            writer.write(record.SerializeToString())
    inputs = {**{name: first[name] for name in ("examples", "model")}, "schema": schema, "test_examples": tests}
    found = execute(inputs, tmp_path, train_splits=["train", "eval"], input_features="image", outputs="top_k")["scores"]
    assert found.get_int_custom_property("train_examples") == sum(SIZES.values())
    assert found.get_int_custom_property("test_examples") == SIZES["test"] and found.get_int_custom_property("rejected") == 0
    rows = pq.read_table(pathlib.Path(found.uri) / "top_k").to_pylist()
    assert {row["train_id"].split("/")[0] for row in rows} == {"Split-train", "Split-eval"}
    assert {row["test_id"].split(":")[0] for row in rows} == {"eval-00000"}
    (tmp_path / "schema" / "schema.pbtxt").unlink()
    with pytest.raises(ValueError, match="there is no schema at"):
        execute(inputs, tmp_path / "again", input_features="image")


@pytest.mark.timeout(120)
def test_a_saved_model(first: dict[str, Any], job: DigitsJob, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As Trainer exports it: without the loss, which is an option then."""
    model = standard_artifacts.Model()
    model.uri = str(tmp_path / "model")
    load_keras_file(str(job.model)).export(tmp_path / "model" / "Format-Serving", verbose=False)
    loss = "sparse_categorical_crossentropy"
    found = execute(
        {"examples": first["examples"], "model": model}, tmp_path, loss=loss, curvature="exact", outputs="top_k", input_features="image"
    )
    command = [
        "run", "--model", f"{model.uri}/Format-Serving", "--output", str(tmp_path / "command_line"), "--loss", loss,
        "--train", f"{first['examples'].uri}/Split-train/*", "--test", f"{first['examples'].uri}/Split-eval/*",
        "--curvature", "exact", "--outputs", "top_k", "--input_features", "image",
    ]  # fmt: skip
    assert main(command) == 0, capsys.readouterr().err
    assert_identical(pathlib.Path(found["scores"].uri), tmp_path / "command_line", ("top_k",))
    assert read_manifest(found["scores"].uri)["curvature"]["size"] == 90


@pytest.mark.timeout(120)
def test_failures_are_told_in_one_message(first: dict[str, Any], job: DigitsJob, tmp_path: pathlib.Path) -> None:
    inputs = {name: first[name] for name in ("examples", "model")}
    with pytest.raises(ValueError, match="have no split 'holdout'; they have train, eval"):
        execute(inputs, tmp_path / "split", test_splits=["holdout"])
    with pytest.raises(ValueError, match="nosuch"):
        execute(inputs, tmp_path / "feature", label_feature="nosuch", input_features="image")
    assert not files_below(tmp_path)
    bad = write_examples(job, tmp_path / "bad", "plain", files=1)
    file = tmp_path / "bad" / "Split-train" / "train-00000"
    data = bytearray(file.read_bytes())
    data[20] ^= 1
    file.write_bytes(data)
    with pytest.raises(RunFailedError, match=r"1 example was rejected, more than --max_rejected 0"):
        execute({**inputs, "examples": bad}, tmp_path / "rejected", input_features="image")
    allowed = execute({**inputs, "examples": bad}, tmp_path / "allowed", input_features="image", max_rejected=1)["scores"]
    assert allowed.get_int_custom_property("rejected") == 1
    assert allowed.get_int_custom_property("train_examples") == SIZES["train"] - 1


class _Made(Exception):
    pass


@pytest.mark.timeout(60)
def test_beam_arguments_reach_beam(first: dict[str, Any], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    class Recorded(beam.Pipeline):
        def __init__(self, *arguments: Any, **keywords: Any):
            super().__init__(*arguments, **keywords)
            seen.append(self)

        def run(self, test_runner_api: typing.Any = "AUTO") -> typing.NoReturn:
            raise _Made

    monkeypatch.setattr("apache_beam.Pipeline", Recorded)
    inputs = {name: first[name] for name in ("examples", "model")}
    arguments = ("--runner=FnApiRunner", "--direct_runner_bundle_repeat=3", "--direct_num_workers=1")
    with pytest.raises(RunFailedError, match="_Made"):
        execute(inputs, tmp_path, arguments, input_features="image")
    options = seen[0].options
    assert options.view_as(DirectOptions).direct_runner_bundle_repeat == 3
    # TFX would have added a package of itself.
    assert not options.get_all_options().get("extra_packages")


@pytest.mark.timeout(60)
def test_an_orchestrator_may_make_the_pipeline(first: dict[str, Any], tmp_path: pathlib.Path) -> None:
    def make() -> beam.Pipeline:
        raise _Made

    with pytest.raises(_Made):
        execute({name: first[name] for name in ("examples", "model")}, tmp_path, make_pipeline=make, input_features="image")
