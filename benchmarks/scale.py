"""Does memory stay flat as the training set grows? The whole job on synthetic data of two sizes, against NumPy in memory.

784 features, a 784-32-10 network whose last layer (P = 330) is watched, 100 test points, top-10. Every measurement
is a process of its own.

    python -m benchmarks.scale [--sizes 20000,100000] [--repeats 3] [--job_alone] [--folder out/scale]
"""

from __future__ import annotations

import argparse
import json
import pathlib
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

FEATURES, HIDDEN, CLASSES = 784, 32, 10
TEST, TOP_K, DAMPING = 100, 10, 1e-3
SHARD = 5_000
TOLERANCE = 1.2


def main() -> int:
    """Makes the data, measures each size, prints the table; returns 1 when the peak grows or the answers differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="20000,100000", help=f"numbers of training examples, multiples of {SHARD:,}")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each size; the table shows medians")
    parser.add_argument("--job_alone", action="store_true", help="without NumPy, which holds all gradients of the largest size")
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("out/scale"), help="where the data goes")
    parser.add_argument("--child", choices=("make", "job", "numpy"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = [int(size) for size in options.sizes.split(",")]
    if options.child:
        measure = {"make": make, "job": run_job, "numpy": run_numpy}[options.child]
        print(json.dumps(measure(options.folder, max(sizes))))
        return 0
    in_child("make", options.folder, max(sizes))
    job = {size: [in_child("job", options.folder, size) for _ in range(options.repeats)] for size in sizes}
    of_numpy = [] if options.job_alone else sizes
    numpy = {size: [in_child("numpy", options.folder, size) for _ in range(options.repeats)] for size in of_numpy}
    print(f"{'':<7}{'examples':>9}{'wall s':>8}{'CPU s':>8}{'peak MiB':>10}   examples/s by stage")
    for name, measured in (("job", job), ("numpy", numpy)):
        for size, runs in measured.items():
            rates = "   ".join(f"{stage} {median(runs, 'rates', stage):,.0f}" for stage in runs[0]["rates"])
            print(f"{name:<7}{size:>9,}{median(runs, 'wall'):>8.1f}{median(runs, 'cpu'):>8.1f}{median(runs, 'peak'):>10,.0f}   {rates}")
    small, large = min(sizes), max(sizes)
    growth = median(job[large], "peak") / median(job[small], "peak")
    numpy_growth = f", NumPy {median(numpy[large], 'peak') / median(numpy[small], 'peak'):.3f}" if numpy else ""
    print(f"\npeak at {large:,} / peak at {small:,}: job {growth:.3f}{numpy_growth}")
    for size in numpy:
        print(f"CPU seconds of the job / of NumPy at {size:,}: {median(job[size], 'cpu') / median(numpy[size], 'cpu'):.1f}")
    print(f"imports, not in the seconds above: {median(job[large], 'imports'):.1f} CPU s")
    if not numpy:
        return int(growth > TOLERANCE)
    differences = [compare(*runs) for size in sizes for runs in zip(job[size], numpy[size], strict=True)]
    print(f"answers: the same {TEST * TOP_K:,} training examples in the same order, influence within {max(differences):.1e} relative")
    return int(growth > TOLERANCE or max(differences) > 1e-6)


def median(runs: list[dict[str, Any]], *keys: str) -> float:
    """The median over repeats of one measured number."""
    values = []
    for run in runs:
        value: Any = run
        for key in keys:
            value = value[key]
        values.append(value)
    return statistics.median(values)


def in_child(child: str, folder: pathlib.Path, size: int) -> dict[str, Any]:
    """Runs one measurement in its own process; this one stays small, for a child's peak begins at its parent's size."""
    command = [sys.executable, "-m", "benchmarks.scale", "--child", child, "--folder", str(folder), "--sizes", str(size)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def compare(job: dict[str, Any], numpy: dict[str, Any]) -> float:
    """The largest relative difference of influence; infinite when other examples were chosen."""
    if job["top"] != numpy["top"]:
        return float("inf")
    pairs = zip(job["influence"], numpy["influence"], strict=True)
    return max(abs(a - b) / max(abs(b), 1e-300) for row in pairs for a, b in zip(*row, strict=True))


class Usage:
    """Wall and CPU seconds from its creation on, and the peak memory of the process."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.monotonic(), time.process_time()

    def read(self) -> dict[str, float]:
        """In seconds and MiB, and the CPU seconds from the start of the process to this object's creation."""
        wall, cpu = time.monotonic() - self._wall, time.process_time() - self._cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return {"wall": wall, "cpu": cpu, "peak": peak, "imports": self._cpu}


def make(folder: pathlib.Path, size: int) -> dict[str, Any]:
    """Ten noisy classes as TFRecord shards and as arrays, and a network trained on them; kept when it is there."""
    done = folder / f"made-{size}"
    if done.exists():
        return {}
    from beam_influence.influence_ops import device  # quiets TensorFlow before it is imported

    device.configure_tensorflow()
    import keras
    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(11)
    centres = rng.uniform(0, 1, (CLASSES, FEATURES))

    def draw(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = rng.integers(0, CLASSES, count)
        features = 0.2 * centres[labels] + rng.normal(0, 0.3, (count, FEATURES))
        return features.astype(np.float32), labels

    features, labels = draw(size)
    for shard in range(size // SHARD):
        rows = slice(shard * SHARD, (shard + 1) * SHARD)
        write_examples(folder / f"train-{shard:05d}.tfrecord", features[rows], labels[rows])
        np.savez(folder / f"train-{shard:05d}.npz", features=features[rows], labels=labels[rows])
    test_features, test_labels = draw(TEST)
    write_examples(folder / "test.tfrecord", test_features, test_labels)
    np.savez(folder / "test.npz", features=test_features, labels=test_labels)
    keras.utils.set_random_seed(1)
    layers = [keras.Input((FEATURES,), name="x"), keras.layers.Dense(HIDDEN, "relu"), keras.layers.Dense(CLASSES, "softmax")]
    model = keras.Sequential(layers)
    model.compile(keras.optimizers.Adam(0.003), keras.losses.SparseCategoricalCrossentropy())
    keras.utils.disable_interactive_logging()
    model.fit(features[:20_000], labels[:20_000], epochs=3, batch_size=256)
    model.save(folder / "model.keras")
    np.savez(folder / "weights.npz", *[np.asarray(weight) for weight in model.get_weights()])
    done.touch()
    return {}


def write_examples(path: pathlib.Path, inputs: Any, labels: Any) -> None:
    """One TFRecord file of tf.Example: `x`, floats or integers, and an integer `label`."""
    import tensorflow as tf

    with tf.io.TFRecordWriter(str(path)) as writer:
        for row, label in zip(inputs, labels, strict=True):
            flat = row.ravel()
            if flat.dtype.kind == "f":
                x = tf.train.Feature(float_list=tf.train.FloatList(value=flat))
            else:
                x = tf.train.Feature(int64_list=tf.train.Int64List(value=flat))
            feature = {"x": x, "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label]))}
            writer.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())


def run_job(folder: pathlib.Path, size: int) -> dict[str, Any]:
    """The job as `beam-influence run` runs it."""
    import pyarrow.parquet as pq

    from beam_influence.pipelines.config import InfluenceConfig
    from beam_influence.pipelines.launch import run

    usage = Usage()
    config = InfluenceConfig(
        model=str(folder / "model.keras"),
        train=",".join(str(folder / f"train-{shard:05d}.tfrecord") for shard in range(size // SHARD)),
        test=str(folder / "test.tfrecord"),
        output=str(folder / "influence"),
        damping=str(DAMPING),
        top_k=TOP_K,
        overwrite=True,
    )
    summary = run(config)
    used = usage.read()
    counts = summary.manifest["counts"]
    rates = {stage: counts[stage]["examples"] / (spent / 1000) for stage, spent in summary.milliseconds.items() if spent}
    rows = pq.read_table(folder / "influence" / "top_k").sort_by([("test_id", "ascending"), ("rank", "ascending")]).to_pylist()
    of_test: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        of_test.setdefault(int(row["test_id"].rpartition(":")[2]), []).append(row)
    top = [[position(row["train_id"]) for row in of_test[test]] for test in sorted(of_test)]
    influence = [[row["influence"] for row in of_test[test]] for test in sorted(of_test)]
    return {**used, "rates": rates, "top": top, "influence": influence}


def position(train_id: str) -> int:
    """The row of the training set that an id such as train-00003.tfrecord:17 names."""
    name, _, index = train_id.rpartition(":")
    return int(name.removesuffix(".tfrecord").rpartition("-")[2]) * SHARD + int(index)


def run_numpy(folder: pathlib.Path, size: int) -> dict[str, Any]:
    """The same answer with the whole training set and all its gradients in memory, from arrays: nothing to decode."""
    import numpy as np

    usage = Usage()
    with np.load(folder / "weights.npz") as weights:
        kernel, bias, head, head_bias = (weights[name].astype(np.float64) for name in weights.files)

    def load(names: list[str]) -> tuple[np.ndarray, np.ndarray]:
        parts = [np.load(folder / f"{name}.npz") for name in names]
        return np.concatenate([part["features"] for part in parts]), np.concatenate([part["labels"] for part in parts])

    def forward(features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        hidden = np.maximum(features.astype(np.float64) @ kernel + bias, 0)
        logits = hidden @ head + head_bias
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
        activations = np.concatenate([hidden, np.ones((len(hidden), 1))], axis=1)
        errors = probabilities - np.eye(CLASSES)[labels]
        gradients = (activations[:, :, None] * errors[:, None, :]).reshape(len(hidden), -1)
        return activations, probabilities, gradients

    activations, probabilities, gradients = forward(*load([f"train-{shard:05d}" for shard in range(size // SHARD)]))
    width = activations.shape[1]
    curvature = np.zeros((width, CLASSES, width, CLASSES))
    for a in range(CLASSES):
        for b in range(a, CLASSES):
            weight = probabilities[:, a] * (float(a == b) - probabilities[:, b])
            curvature[:, a, :, b] = curvature[:, b, :, a] = (activations * weight[:, None]).T @ activations / size
    matrix = curvature.reshape(width * CLASSES, -1) + DAMPING * np.eye(width * CLASSES)
    queries = np.linalg.solve(matrix, forward(*load(["test"]))[2].T).T
    scores = queries @ gradients.T
    nearest = np.argpartition(-scores, TOP_K, axis=1)[:, :TOP_K]
    order = np.argsort(-np.take_along_axis(scores, nearest, axis=1), axis=1)
    top = np.take_along_axis(nearest, order, axis=1)
    used = usage.read()
    return {**used, "rates": {}, "top": top.tolist(), "influence": np.take_along_axis(scores, top, axis=1).tolist()}


if __name__ == "__main__":
    sys.exit(main())
