"""A TFX pipeline that finds and drops its own mislabelled examples: scikit-learn's digits, a tenth of the labels wrong.

Examples, training, influence, cleaning, training again; under LocalDagRunner, with a metadata store in SQLite. Run it
twice: the second run is served from the cache.

    python -m examples.tfx_pipeline [--folder out/tfx]
"""

# No `from __future__ import annotations`: TFX reads the annotations of its function components.

import argparse
import json
import pathlib
import sys
from typing import Any

from beam_influence.influence_ops import device  # sets TensorFlow's log level before it is imported

device.configure_tensorflow()

import keras  # noqa: E402  (after the log level is set)
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from absl import logging  # noqa: E402
from ml_metadata import metadata_store  # noqa: E402
from ml_metadata.proto import metadata_store_pb2  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402
from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter  # noqa: E402
from tfx.dsl.component.experimental.decorators import component  # noqa: E402
from tfx.orchestration import metadata  # noqa: E402
from tfx.orchestration.local.local_dag_runner import LocalDagRunner  # noqa: E402
from tfx.orchestration.pipeline import Pipeline  # noqa: E402

from beam_influence.influence_ops.reading.tfrecord_framing import read_records  # noqa: E402
from beam_influence.pipelines.tfx import ExampleCleaner, InfluenceCalculator  # noqa: E402
from beam_influence.pipelines.tfx.artifacts import standard_artifacts  # noqa: E402
from beam_influence.pipelines.tfx.resolve_artifacts import split_patterns  # noqa: E402
from beam_influence.transforms.files import match_files  # noqa: E402

WRONG = 0.1
TEST = 500
SHARDS = {"train": 4, "eval": 1}
SEEDS = (1, 2, 3)
SHOWN = 5


@component
def DigitsExampleGen(examples: OutputArtifact[standard_artifacts.Examples], wrong: Parameter[float], seed: Parameter[int]):
    """Writes the digits as ExampleGen would; a share of the training labels is changed to another digit."""
    digits: Any = load_digits()
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(digits.data))
    images, true = (digits.data[order] / 16).astype(np.float32), digits.target[order]
    labels = true.copy()
    changed = rng.choice(np.arange(TEST, len(labels)), int(wrong * (len(labels) - TEST)), replace=False)
    labels[changed] = (labels[changed] + rng.integers(1, 10, len(changed))) % 10
    for split, rows in (("eval", np.arange(TEST)), ("train", np.arange(TEST, len(labels)))):
        folder = pathlib.Path(examples.uri) / f"Split-{split}"
        folder.mkdir(parents=True)
        count = SHARDS[split]
        for shard, part in enumerate(np.array_split(rows, count)):
            path = folder / f"data_tfrecord-{shard:05d}-of-{count:05d}.gz"
            with tf.io.TFRecordWriter(str(path), tf.io.TFRecordOptions("GZIP")) as writer:
                for row in part:
                    feature = {
                        "image": tf.train.Feature(float_list=tf.train.FloatList(value=images[row])),
                        "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[labels[row]])),
                        "true_label": tf.train.Feature(int64_list=tf.train.Int64List(value=[true[row]])),
                    }
                    writer.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())
    examples.splits = list(SHARDS)
    examples.set_string_custom_property("payload_format", "FORMAT_TF_EXAMPLE")
    examples.set_string_custom_property("file_format", "tfrecords_gzip")


@component
def DigitsTrainer(
    examples: InputArtifact[standard_artifacts.Examples], model: OutputArtifact[standard_artifacts.Model], label: Parameter[str]
):
    """Trains a small network (650 weights in its last layer) once for each seed; the first is the Model."""
    train, test = read_split(examples, "train"), read_split(examples, "eval")
    accuracies = []
    for seed in SEEDS:
        network = train_network(train["image"], train[label], seed)
        accuracies.append(float(network.evaluate(test["image"], test["label"])[1]))
        if seed == SEEDS[0]:
            folder = pathlib.Path(model.uri) / "Format-Serving"
            folder.mkdir(parents=True)
            network.save(folder / "model.keras")
    model.set_string_custom_property("accuracies", json.dumps(accuracies))


def train_network(images: np.ndarray, labels: np.ndarray, seed: int) -> keras.Model:
    """64 numbers, 64 hidden units, 10 classes; trained long enough to learn wrong labels by heart."""
    keras.utils.disable_interactive_logging()
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((64,), name="image")
    hidden = keras.layers.Dense(64, activation="relu")(inputs)
    penalty = keras.regularizers.L2(1e-4)
    outputs = keras.layers.Dense(10, activation="softmax", kernel_regularizer=penalty, bias_regularizer=penalty)(hidden)
    network = keras.Model(inputs, outputs)
    network.compile(keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(), metrics=["accuracy"])
    network.fit(images, labels, epochs=60, batch_size=128)
    return network


def read_split(examples: Any, split: str) -> dict[str, np.ndarray]:
    """A split in memory: image [N, 64], label, true_label and id (N,), in the order of files and records."""
    found: dict[str, list] = {"image": [], "label": [], "true_label": [], "id": []}
    for file in match_files(list(split_patterns([examples], [split]))):
        with open(file.path, "rb") as opened:
            for index, record in enumerate(read_records(opened)):
                assert isinstance(record, bytes)
                feature = tf.train.Example.FromString(record).features.feature
                found["image"].append(np.array(feature["image"].float_list.value, np.float32))
                found["label"].append(feature["label"].int64_list.value[0])
                found["true_label"].append(feature["true_label"].int64_list.value[0])
                found["id"].append(f"{pathlib.Path(file.path).name}:{index}")
    return {name: np.array(values) for name, values in found.items()}


def make_pipeline(folder: pathlib.Path, **options: Any) -> Pipeline:
    """The pipeline; `options` replace some of InfluenceCalculator's."""
    gen = DigitsExampleGen(wrong=WRONG, seed=7)
    trainer = DigitsTrainer(examples=gen.outputs["examples"], label="label")
    influence = InfluenceCalculator(
        examples=gen.outputs["examples"],
        model=trainer.outputs["model"],
        **{"label_feature": "label", "curvature": "exact", "top_k": 10, **options},
    )
    cleaner = ExampleCleaner(examples=gen.outputs["examples"], scores=influence.outputs["scores"], share=WRONG)
    again = DigitsTrainer(examples=cleaner.outputs["cleaned_examples"], label="label").with_id("DigitsTrainer.cleaned")
    # For comparison: what could be reached at best.
    right = DigitsTrainer(examples=gen.outputs["examples"], label="true_label").with_id("DigitsTrainer.right_labels")
    return Pipeline(
        pipeline_name="cleaning-digits",
        pipeline_root=str(folder / "root"),
        components=[gen, trainer, influence, cleaner, again, right],
        metadata_connection_config=metadata.sqlite_metadata_connection_config(str(folder / "metadata.db")),
        enable_cache=True,
    )


class LastRun:
    """What the metadata store knows of the last run: the state of each component, and its outputs."""

    def __init__(self, folder: pathlib.Path):
        config = metadata_store_pb2.ConnectionConfig()
        config.sqlite.filename_uri = str(folder / "metadata.db")
        store = metadata_store.MetadataStore(config)
        run = max(store.get_contexts_by_type("pipeline_run"), key=lambda context: context.id)
        self.states: dict[str, str] = {}
        self.outputs: dict[str, dict[str, Any]] = {}
        for execution in sorted(store.get_executions_by_context(run.id), key=lambda execution: execution.id):
            node = next(c.name for c in store.get_contexts_by_execution(execution.id) if c.type == "node").partition(".")[2]
            self.states[node] = metadata_store_pb2.Execution.State.Name(execution.last_known_state)
            events = store.get_events_by_execution_ids([execution.id])
            written = [event for event in events if event.type == metadata_store_pb2.Event.OUTPUT]
            artifacts = {artifact.id: artifact for artifact in store.get_artifacts_by_id([event.artifact_id for event in written])}
            self.outputs[node] = {event.path.steps[0].key: artifacts[event.artifact_id] for event in written}

    def examples(self, node: str, name: str) -> Any:
        """An Examples artifact."""
        examples = standard_artifacts.Examples()
        examples.set_mlmd_artifact(self.outputs[node][name])
        return examples

    def accuracies(self, node: str) -> np.ndarray:
        """What a trainer noted."""
        return np.array(json.loads(self.outputs[node]["model"].custom_properties["accuracies"].string_value))


def report(run: LastRun) -> None:
    """Prints what the influence found, and what cleaning changed."""
    before = read_split(run.examples("DigitsExampleGen", "examples"), "train")
    after = read_split(run.examples("ExampleCleaner", "cleaned_examples"), "train")
    wrong = before["label"] != before["true_label"]
    dropped = len(wrong) - len(after["label"])
    found = int(wrong.sum() - (after["label"] != after["true_label"]).sum())
    print(f"\n{len(wrong):,} training digits, {wrong.sum()} of them with a wrong label; {TEST} test digits")
    scores = run.outputs["InfluenceCalculator"]["scores"].custom_properties
    print(f"\nlargest self-influence among {scores['train_examples'].int_value:,}, noted at the artifact InfluenceScores:")
    print(f"  {'training example':<36}{'label':>6}{'in truth':>10}{'self-influence':>16}")
    position = {name: row for row, name in enumerate(before["id"])}
    for row in json.loads(scores["mislabel_candidates"].string_value)[:SHOWN]:
        at = position[row["train_id"]]
        print(f"  {row['train_id']:<36}{before['label'][at]:>6}{before['true_label'][at]:>10}{row['self_influence']:>16.2f}")
    print(f"\nExampleCleaner dropped {dropped}, {found} of them with a wrong label ({found / dropped:.0%}; by chance {wrong.mean():.0%})")
    print(f"share of the wrong labels that was found: {found / wrong.sum():.0%}")
    print(f"\ntest accuracy, mean of {len(SEEDS)} trainings (lowest to highest)")
    for name, node in (
        ("before, with the wrong labels", "DigitsTrainer"),
        ("after cleaning", "DigitsTrainer.cleaned"),
        ("with every label right", "DigitsTrainer.right_labels"),
    ):
        accuracies = run.accuracies(node)
        print(f"  {name:<32}{accuracies.mean():.3f}  ({accuracies.min():.3f} to {accuracies.max():.3f})")
    print("\n" + "\n".join(f"{node:<28}{state}" for node, state in run.states.items()))


def main() -> int:
    """Runs the pipeline and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = pathlib.Path("out/tfx")
    parser.add_argument("--folder", type=pathlib.Path, default=default, help=f"where everything goes (default: {default})")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    logging.set_verbosity(logging.ERROR)
    LocalDagRunner().run(make_pipeline(folder))
    run = LastRun(folder)
    # The runner does not raise when an input can't be resolved.
    if bad := {node: state for node, state in run.states.items() if state not in ("COMPLETE", "CACHED")}:
        print(f"failed: {bad}", file=sys.stderr)
        return 1
    report(run)
    return 0


if __name__ == "__main__":
    sys.exit(main())
