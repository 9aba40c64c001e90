"""In a pipeline under LocalDagRunner: what is served from the cache, what is not, and the loop closed by the cleaner."""

# No `from __future__ import annotations`: TFX reads the annotations of its function components.

import json
import pathlib
from typing import Any

import pytest

from tests.pipelines.tfx import needs_tfx as needs_tfx  # first: skips without the extra

# isort: split
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf
from ml_metadata import metadata_store
from ml_metadata.proto import metadata_store_pb2
from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.orchestration import metadata
from tfx.orchestration.local.local_dag_runner import LocalDagRunner
from tfx.orchestration.pipeline import Pipeline

from beam_influence.influence_ops.reading.tfrecord_framing import read_records
from beam_influence.pipelines.tfx import ExampleCleaner, InfluenceCalculator
from beam_influence.pipelines.tfx.artifacts import standard_artifacts
from tests.pipelines.digits_job import SIZES, DigitsJob, read
from tests.pipelines.tfx.artifacts_of_tests import keras_model, write_examples

JOBS: dict[str, DigitsJob] = {}


@component
def ExampleGen(examples: OutputArtifact[standard_artifacts.Examples], job: Parameter[str], kind: Parameter[str]):
    made = write_examples(JOBS[job], pathlib.Path(examples.uri), kind, files=3)
    examples.splits, examples.span = made.splits, 5
    for name in ("payload_format", "file_format", "custom_split_pattern"):
        if made.has_custom_property(name):
            examples.set_string_custom_property(name, made.get_string_custom_property(name))


@component
def Trainer(examples: InputArtifact[standard_artifacts.Examples], model: OutputArtifact[standard_artifacts.Model], job: Parameter[str]):
    keras_model(JOBS[job], pathlib.Path(model.uri))


class Runs:
    """Runs of one pipeline over one metadata store."""

    def __init__(self, job: DigitsJob, folder: pathlib.Path):
        self.job = str(folder)
        self.folder = folder
        JOBS[self.job] = job

    def run(self, kind: str = "gzip", share: float = 0.1, arguments: tuple[str, ...] = (), **options: Any) -> dict[str, str]:
        """The state of each component's execution in this run."""
        train, test = ("training", "validation") if kind == "custom" else ("train", "eval")
        gen = ExampleGen(job=self.job, kind=kind)
        trainer = Trainer(examples=gen.outputs["examples"], job=self.job)
        influence = InfluenceCalculator(
            examples=gen.outputs["examples"],
            model=trainer.outputs["model"],
            train_splits=[train],
            test_splits=[test],
            **{"input_features": "image", "curvature": "exact", "outputs": "self_influence", **options},
        ).with_beam_pipeline_args(arguments)
        weight = None if kind != "sequence" else 0.5
        cleaner = ExampleCleaner(gen.outputs["examples"], influence.outputs["scores"], share, weight)
        pipeline = Pipeline(
            pipeline_name="test",
            pipeline_root=str(self.folder / "root"),
            components=[gen, trainer, influence, cleaner],
            metadata_connection_config=metadata.sqlite_metadata_connection_config(str(self.folder / "metadata.db")),
            enable_cache=True,
        )
        LocalDagRunner().run(pipeline)
        return self.states()

    def store(self) -> Any:
        config = metadata_store_pb2.ConnectionConfig()
        config.sqlite.filename_uri = str(self.folder / "metadata.db")
        return metadata_store.MetadataStore(config)

    def states(self) -> dict[str, str]:
        store = self.store()
        run = max(store.get_contexts_by_type("pipeline_run"), key=lambda context: context.id)
        found = {}
        for execution in store.get_executions_by_context(run.id):
            name = store.get_execution_types_by_id([execution.type_id])[0].name.rpartition(".")[2]
            found[name] = metadata_store_pb2.Execution.State.Name(execution.last_known_state)
        return found

    def last(self, type_name: str) -> Any:
        """The newest artifact of a type."""
        return max(self.store().get_artifacts_by_type(type_name), key=lambda artifact: artifact.id)


def states(influence: str, cleaner: str, others: str) -> dict[str, str]:
    return {"ExampleGen": others, "Trainer": others, "InfluenceCalculator": influence, "ExampleCleaner": cleaner}


@pytest.mark.timeout(300)
def test_cache(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    runs = Runs(job, tmp_path)
    assert runs.run() == states("COMPLETE", "COMPLETE", "COMPLETE")
    first = runs.last("InfluenceScores")
    # The same once more; the order in which options are given does not matter.
    assert runs.run() == states("CACHED", "CACHED", "CACHED")
    assert runs.run(top_k=10, damping="auto") == states("CACHED", "CACHED", "CACHED")
    assert runs.last("InfluenceScores").id == first.id
    # A property of the cleaner alone, then one of the calculator.
    assert runs.run(share=0.2) == states("CACHED", "COMPLETE", "CACHED")
    assert runs.run(damping=0.5) == states("COMPLETE", "COMPLETE", "CACHED")
    changed = runs.last("InfluenceScores")
    assert changed.id != first.id and changed.uri != first.uri
    assert changed.custom_properties["damping"].string_value == "0.5"
    assert runs.run() == states("CACHED", "CACHED", "CACHED")
    # TFX counts Beam's arguments too; the scores are a new artifact, so they are cleaned again.
    assert runs.run(arguments=("--direct_num_workers=1",)) == states("COMPLETE", "COMPLETE", "CACHED")


def cleaned_records(uri: str, pattern: str) -> list[bytes]:
    found = []
    for path in sorted(pathlib.Path(uri).glob(pattern)):
        with open(path, "rb") as file:
            found += [record for record in read_records(file) if isinstance(record, bytes)]
    return found


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["plain", "custom", "sequence", "parquet"])
def test_cleaned_examples_are_examples(job: DigitsJob, tmp_path: pathlib.Path, kind: str) -> None:
    """The same splits and properties; in the training split the largest self-influence is gone, or weighs half."""
    runs = Runs(job, tmp_path)
    arguments = ("--runner=FnApiRunner", "--direct_runner_bundle_repeat=1")
    assert runs.run(kind, arguments=arguments) == states("COMPLETE", "COMPLETE", "COMPLETE")
    cleaned = runs.last("Examples")
    before = min(runs.store().get_artifacts_by_type("Examples"), key=lambda artifact: artifact.id)
    assert before.uri != cleaned.uri
    for name in ("split_names", "span"):
        assert cleaned.properties[name] == before.properties[name]
    for name in ("payload_format", "file_format", "custom_split_pattern"):
        assert (name in cleaned.custom_properties) == (name in before.custom_properties)
        assert cleaned.custom_properties[name] == before.custom_properties[name]
    facts = cleaned.custom_properties
    assert (facts["scored_examples"].int_value, facts["suspicious_examples"].int_value) == (SIZES["train"], 30)
    scores = read(runs.last("InfluenceScores").uri, "self_influence").to_pylist()
    scores.sort(key=lambda row: -row["influence"])
    assert float(facts["threshold"].string_value) == scores[29]["influence"] > scores[30]["influence"]
    suspicious = {row["train_id"] for row in scores[:30]}
    train, test = ("all/training-*", "all/validation-*") if kind == "custom" else ("Split-train/*", "Split-eval/*")
    for path in pathlib.Path(before.uri).glob(test):
        assert (pathlib.Path(cleaned.uri) / path.relative_to(before.uri)).read_bytes() == path.read_bytes()
    if kind == "parquet":
        for path in pathlib.Path(before.uri).glob(train):
            kept = [f"{path.name}:{row}" not in suspicious for row in range(pq.read_metadata(path).num_rows)]
            assert pq.read_table(pathlib.Path(cleaned.uri) / "Split-train" / path.name).equals(pq.read_table(path).filter(pa.array(kept)))
        return
    originals: dict[str, bytes] = {}
    for path in sorted(pathlib.Path(before.uri).glob(train)):
        with open(path, "rb") as file:
            originals |= {f"{path.name}:{i}": record for i, record in enumerate(read_records(file)) if isinstance(record, bytes)}
    found = cleaned_records(cleaned.uri, train)
    if kind != "sequence":
        assert found == [record for name, record in originals.items() if name not in suspicious]
        return
    assert len(found) == SIZES["train"]
    for name, record in zip(originals, found, strict=True):
        context: Any = tf.train.SequenceExample.FromString(record).context
        assert list(context.feature["weight"].float_list.value) == [np.float32(0.5 if name in suspicious else 1)]


@pytest.mark.timeout(300)
def test_the_scores_artifact_tells_of_the_run(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    """As the metadata store has it, not only the executor."""
    runs = Runs(job, tmp_path)
    runs.run()
    properties = runs.last("InfluenceScores").custom_properties
    assert properties["train_examples"].int_value == SIZES["train"]
    candidates = json.loads(properties["mislabel_candidates"].string_value)
    assert len(candidates) == 20
    assert candidates[0]["self_influence"] == max(read(runs.last("InfluenceScores").uri, "self_influence")["influence"].to_pylist())
    assert runs.last("InfluenceCurvature").custom_properties["curvature"].string_value == "exact"


@pytest.mark.timeout(300)
def test_arguments_of_the_component_reach_beam(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    """Through the runner of the pipeline: Beam itself refuses this one, and the execution is marked as failed."""
    runs = Runs(job, tmp_path)
    with pytest.raises(Exception, match="NoSuchRunner"):
        runs.run(arguments=("--runner=NoSuchRunner",))
    found = runs.states()
    assert found["InfluenceCalculator"] == "FAILED" and "ExampleCleaner" not in found
    assert runs.run() == states("COMPLETE", "COMPLETE", "CACHED")
