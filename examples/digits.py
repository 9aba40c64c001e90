"""The main job on real data: scikit-learn's digits, from training a model to its most influential examples.

Writes TFRecord shards and a trained model, runs `beam-influence run` on them, prints, for some test points, the training
examples that caused their predictions, and makes the report.

    python -m examples.digits [--folder out/digits]
"""

from __future__ import annotations

import argparse
import pathlib
import shlex
import sys
from typing import Any

from beam_influence.influence_ops import device  # sets TensorFlow's log level before it is imported

device.configure_tensorflow()

import keras  # noqa: E402  (after the log level is set)
import numpy as np  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
import tensorflow as tf  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402

from beam_influence.pipelines.cli import main as beam_influence  # noqa: E402

TEST = 100
SHARDS = {"train": 4, "test": 1}


def load_split() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images [N, 64] in 0..1 and labels [N], shuffled once with a fixed seed."""
    digits: Any = load_digits()
    images, labels = digits.data, digits.target
    order = np.random.default_rng(7).permutation(len(images))
    images, labels = (images[order] / 16).astype(np.float32), labels[order]
    return {"train": (images[TEST:], labels[TEST:]), "test": (images[:TEST], labels[:TEST])}


def example(image: np.ndarray, label: int) -> bytes:
    """One serialized tf.Example: the image, its label, and the group that it belongs to."""
    feature = {
        "image": tf.train.Feature(float_list=tf.train.FloatList(value=image)),
        "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
        "digit": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"digit %d" % label])),
    }
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()


def write_shards(folder: pathlib.Path, split: str, images: np.ndarray, labels: np.ndarray) -> str:
    """Writes gzip TFRecord files of tf.Example; returns their pattern."""
    count = SHARDS[split]
    options = tf.io.TFRecordOptions(compression_type="GZIP")
    for shard, rows in enumerate(np.array_split(np.arange(len(images)), count)):
        path = folder / f"{split}-{shard:05d}-of-{count:05d}.tfrecord.gz"
        with tf.io.TFRecordWriter(str(path), options) as writer:
            for row in rows:
                writer.write(example(images[row], int(labels[row])))
    return str(folder / f"{split}-*.tfrecord.gz")


def make_network() -> keras.Model:
    """A small network with 32 hidden units; its last layer (P = 330) is what is watched."""
    inputs = keras.Input((64,), name="image")
    hidden = keras.layers.Dense(32, activation="relu")(inputs)
    penalty = keras.regularizers.L2(5e-4)
    outputs = keras.layers.Dense(10, activation="softmax", kernel_regularizer=penalty, bias_regularizer=penalty)(hidden)
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(), metrics=["accuracy"])
    return model


def train_model(images: np.ndarray, labels: np.ndarray) -> keras.Model:
    """The network, trained."""
    keras.utils.disable_interactive_logging()
    keras.utils.set_random_seed(1)
    model = make_network()
    model.fit(images, labels, epochs=30, batch_size=128)
    return model


def label_of(example_id: str, patterns: dict[str, tuple[np.ndarray, np.ndarray]], split: str) -> int:
    """The label of the example that an id such as train-00001-of-00004.tfrecord.gz:17 names."""
    name, _, index = example_id.rpartition(":")
    shard = int(name.split("-")[1])
    rows = np.array_split(np.arange(len(patterns[split][1])), SHARDS[split])[shard]
    return int(patterns[split][1][rows[int(index)]])


def show_top(output: pathlib.Path, data: dict[str, tuple[np.ndarray, np.ndarray]], points: int, k: int) -> None:
    """Prints the k most helpful training examples of some test points, with their labels."""
    rows = pq.read_table(output / "top_k").to_pylist()
    test_ids = list(dict.fromkeys(row["test_id"] for row in rows))
    for test_id in test_ids[:points]:
        print(f"\ntest point {test_id}, label {label_of(test_id, data, 'test')}")
        print(f"  {'rank':>4}  {'training example':<36}{'label':>5}{'influence':>12}{'loss change if removed':>25}")
        for row in [row for row in rows if row["test_id"] == test_id][:k]:
            label = label_of(row["train_id"], data, "train")
            print(f"  {row['rank']:>4}  {row['train_id']:<36}{label:>5}{row['influence']:>12.5f}{row['loss_change']:>+25.2e}")


def main() -> int:
    """Makes the data and the model, runs the job, shows its results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = pathlib.Path("out/digits")
    parser.add_argument("--folder", type=pathlib.Path, default=default, help=f"where everything goes (default: {default})")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    data = load_split()
    patterns = {split: write_shards(folder, split, *data[split]) for split in data}
    model = train_model(*data["train"])
    model.save(folder / "model.keras")
    _, accuracy = model.evaluate(*data["test"])
    print(f"trained on {len(data['train'][1]):,} digits; accuracy on {TEST} test digits {accuracy:.2f}")
    output = folder / "influence"
    command = [
        "run", "--model", str(folder / "model.keras"), "--train", patterns["train"], "--test", patterns["test"],
        "--output", str(output), "--curvature", "exact", "--top_k", "10", "--group_feature", "digit",
        "--outputs", "top_k,self_influence,group_influence,scores", "--overwrite",
    ]  # fmt: skip
    print(f"\n$ beam-influence {shlex.join(command)}\n")
    status = beam_influence(command)
    if status == 0:
        show_top(output, data, points=3, k=5)
        print(f"\nThe Parquet tables are in {output}: top_k, self_influence, group_influence and scores. As a page to read:\n")
        status = beam_influence(["report", str(output), "--output", str(folder / "report.html")])
    return status


if __name__ == "__main__":
    sys.exit(main())
