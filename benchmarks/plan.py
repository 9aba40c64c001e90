"""Does `beam-influence plan` tell the truth? Its seconds and peak memory beside those of the run that follows it.

Random data and networks with random weights, all made here. Each workload is planned, then run, by the command line, each in a process of
its own; the seconds of a clock are only worth something on a machine that does nothing else, the processors' seconds on a busy one too.
`tuned` are the workloads that the plan was developed on, `held_out` those that it was not.

    python -m benchmarks.plan [--workloads held_out] [--folder out/plan]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import time
from typing import Any

BEAM_INFLUENCE = [sys.executable, "-m", "beam_influence.pipelines.cli"]
CLASSES = 10


@dataclasses.dataclass(frozen=True)
class Workload:
    """Data, a network and the options of a run.

    Attributes:
      name: of the workload and its folder.
      train, points, files: training examples and test points, and the files that the first are in.
      shape: of an example.
      network: `mlp:WIDTHxLAYERS`, `cnn:FILTERS`, or `lstm:UNITS`.
      format: `tfrecord`, `gzip`, `parquet` or `csv`.
      options: of `run`.
      files: training files.
      groups: the groups that training examples name in the feature `group`, in Parquet; 0: none.
    """

    name: str
    train: int
    points: int
    shape: tuple[int, ...]
    network: str
    format: str
    options: str
    files: int = 4
    groups: int = 0


TUNED = (
    Workload("gn", 40_000, 100, (64,), "mlp:32x1", "tfrecord", "--curvature gauss_newton"),
    Workload("ekfac", 8_000, 60, (64,), "mlp:128x2", "parquet", "--curvature ekfac --weights all --outputs top_k,self_influence"),
    Workload("rounds", 600, 90, (64,), "mlp:512x5", "tfrecord", "--curvature ekfac --weights all --max_worker_memory 500MB"),
)
HELD_OUT = (
    Workload("exact-gzip", 60_000, 50, (48,), "mlp:48x1", "gzip", "--curvature exact --damping 1", 3),
    Workload("kfac-csv", 30_000, 120, (24,), "mlp:64x2", "csv", "--curvature kfac --weights all", 2),
    Workload("projection-parquet", 12_000, 40, (80,), "mlp:96x2", "parquet", "--curvature random_projection --weights all"),
    Workload("arnoldi", 4_000, 30, (40,), "mlp:40x1", "tfrecord", "--curvature arnoldi --weights all --rank 20 --passes 5", 2),
    Workload("cg", 3_000, 12, (50,), "mlp:48x2", "tfrecord", "--curvature gauss_newton_cg --weights all --passes 3"),
    Workload("cnn", 3_000, 50, (16, 16, 1), "cnn:16", "gzip", "--curvature ekfac --weights all --batch_size 64"),
    Workload("scores", 8_000, 400, (32,), "mlp:64x1", "parquet", "--curvature identity --outputs scores --weights all", 5),
    Workload("fit", 2_500, 0, (150,), "mlp:150x1", "tfrecord", "--curvature gauss_newton --outputs curvature"),
    Workload("many-points", 500, 90, (48,), "mlp:400x4", "parquet", "--curvature ekfac --weights all --max_worker_memory 400MB"),
    Workload("many-files", 20_000, 64, (32,), "mlp:32x1", "tfrecord", "--curvature gauss_newton --outputs top_k,self_influence", 200),
    Workload("lstm", 2_500, 40, (24, 12), "lstm:48", "tfrecord", "--curvature ekfac --weights all"),
    Workload("per-token", 1_500, 20, (16, 10), "lstm:32", "parquet", "--curvature kfac --weights all --per_token", 2),
    Workload("groups", 9_000, 30, (48,), "mlp:64x2", "parquet", "--curvature ekfac --weights all --group_feature group "
             "--outputs group_influence,group_self_influence", 3, 3_000),
)


def main() -> int:
    """Makes each workload, plans and runs it, and prints both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", default="held_out", help="tuned, held_out, or names separated by commas")
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("out/plan"), help="where the data goes")
    parser.add_argument("--make", help=argparse.SUPPRESS)
    options = parser.parse_args()
    known = {workload.name: workload for workload in (*TUNED, *HELD_OUT)}
    if options.make:
        make(known[options.make], options.folder / options.make)
        return 0
    sets = {"tuned": TUNED, "held_out": HELD_OUT}
    chosen = sets.get(options.workloads) or [known[name] for name in options.workloads.split(",")]
    print(f"{'':<20}{'wall s':^24}{'CPU s':^24}{'peak MiB':^24}{'plan took':>10}")
    print(f"{'':<20}" + f"{'plan':>8}{'run':>8}{'ratio':>8}" * 3)
    worst = 1.0
    for workload in chosen:
        folder = options.folder / workload.name
        subprocess.run([sys.executable, "-m", "benchmarks.plan", "--make", workload.name, "--folder", str(options.folder)], check=True)
        try:
            planned, ran = plan_and_run(workload, folder)
        except (subprocess.CalledProcessError, RuntimeError) as error:
            print(f"{workload.name:<20}{error}", flush=True)
            worst = float("inf")
            continue
        pairs = [(planned[key], ran[key]) for key in ("wall", "cpu", "peak")]
        text = "".join(f"{plan:>8,.0f}{run:>8,.0f}{plan / run:>8.2f}" for plan, run in pairs)
        print(f"{workload.name:<20}{text}{planned['took']:>10.0f}", flush=True)
        worst = max([worst, *(max(plan / run, run / plan) for plan, run in pairs[1:])])
    print(f"processors' seconds and peak memory within a factor of {worst:.2f}")
    return int(worst > 1.5)


def plan_and_run(workload: Workload, folder: pathlib.Path) -> tuple[dict[str, float], dict[str, float]]:
    """What was planned and what was measured: wall and CPU seconds, and the peak in MiB."""
    words = ["--model", str(folder / "model.keras"), "--train", str(folder / "train-*"), "--output", str(folder / "run"), "--overwrite"]
    words += ["--label_feature", "label", *(["--input_features", "x_*"] if workload.format == "csv" else [])]
    words += ["--test", str(folder / "test-*")] if workload.points else []
    words += workload.options.split()
    printed = subprocess.run([*BEAM_INFLUENCE, "plan", "--json", *words], stdout=subprocess.PIPE, text=True, check=True).stdout
    plan = json.loads(printed)
    planned = {**plan["total"], "peak": plan["peak_bytes"] / (1 << 20), "took": plan["plan_seconds"]}
    started = time.monotonic()
    process = subprocess.Popen([*BEAM_INFLUENCE, "run", *words], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    wall = time.monotonic() - started
    if status:
        raise RuntimeError(f"the run of {workload.name} ended with {status}")
    return planned, {"wall": wall, "cpu": used.ru_utime + used.ru_stime, "peak": used.ru_maxrss / 1024}


def make(workload: Workload, folder: pathlib.Path) -> None:
    """The files and the network; kept when they are there."""
    done = folder / "done"
    if done.exists() and done.read_text() == repr(workload):
        return
    from beam_influence.influence_ops import device  # quiets TensorFlow before it is imported

    device.configure_tensorflow()
    import keras
    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("t*-*"):
        old.unlink()
    rng = np.random.default_rng(5)
    for split, count, files in (("train", workload.train, workload.files), ("test", workload.points, 1)):
        for number, rows in enumerate(np.array_split(np.arange(count), files)):
            if len(rows):
                x = rng.standard_normal((len(rows), *workload.shape)).astype(np.float32)
                groups = [f"group {row % workload.groups}" for row in rows] if workload.groups else None
                write(folder / f"{split}-{number:05d}", workload.format, x, rng.integers(0, CLASSES, len(rows)), groups)
    kind, _, size = workload.network.partition(":")
    keras.utils.set_random_seed(1)
    inputs = keras.Input(workload.shape, name="x")
    x: Any = inputs
    if kind == "cnn":
        for stride in (1, 2):
            x = keras.layers.Conv2D(int(size), 3, stride, activation="relu")(x)
        x = keras.layers.Flatten()(x)
    elif kind == "lstm":
        x = keras.layers.GlobalAveragePooling1D()(keras.layers.LSTM(int(size), return_sequences=True)(x))
    else:
        width, layers = map(int, size.split("x"))
        for _ in range(layers):
            x = keras.layers.Dense(width, "tanh")(x)
    model = keras.Model(inputs, keras.layers.Dense(CLASSES)(x))
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.save(folder / "model.keras")
    done.write_text(repr(workload))


def write(path: pathlib.Path, kind: str, x: Any, labels: Any, groups: list[str] | None = None) -> None:
    """One file of a format."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet as pq

    flat = x.reshape(len(x), -1)
    if kind == "csv":
        columns = {f"x_{place:04d}": flat[:, place] for place in range(flat.shape[1])}
        pyarrow.csv.write_csv(pa.table({**columns, "label": labels}), path.with_suffix(".csv"))
    elif kind == "parquet":
        rows = pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), flat.shape[1])
        columns = {"x": rows, "label": labels} | ({} if groups is None else {"group": groups})
        pq.write_table(pa.table(columns), path.with_suffix(".parquet"), row_group_size=2_000)
    else:
        import gzip

        from beam_influence.influence_ops.reading.tfrecord_framing import write_records

        opened: Any = gzip.open(path, "wb", 1) if kind == "gzip" else open(path, "wb")
        with opened as file:
            write_records(file, map(example, flat, labels))


def example(row: Any, label: int) -> bytes:
    """One serialised tf.Example."""
    import tensorflow as tf

    x = tf.train.Feature(float_list=tf.train.FloatList(value=row))
    feature = {"x": x, "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[int(label)]))}
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()


if __name__ == "__main__":
    sys.exit(main())
