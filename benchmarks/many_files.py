"""What a run over very many small files costs before its first task and after its last: seconds, calls, memory, bytes.

The files are in an object store whose calls each take 20 ms (`benchmarks.slow_store`). Three steps are measured: the launcher's start (the
files are matched, the features and the model checked, what an earlier run left is looked for, the graph is built), the end (the manifest
with two result files for each training file, and reading what it lists), and the clean-up (`--overwrite`: all these results are deleted).

    python -m benchmarks.many_files [--files 1000,10000,100000,1000000] [--milliseconds 20] [--one_by_one] [--folder out/many_files]
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from benchmarks.scale import Usage, write_examples
from benchmarks.slow_store import STORE

MOST_SECONDS, MOST_GRAPH = 300, 2 << 20
"""What each step, and the graph's bytes, may be at any number of files."""
TABLES = ("scores", "self_influence")
OUTPUT = "slow://out/run"
STEPS = ("start", "end", "clean")


def main() -> int:
    """Measures each number of files in its own process and prints the table; returns 1 where a step is over its limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", default="1000,10000,100000,1000000", help="numbers of training files")
    parser.add_argument("--milliseconds", type=float, default=20, help="of each call")
    parser.add_argument("--one_by_one", action="store_true", help="the store deletes one file in a call, as HDFS")
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("out/many_files"), help="where the model goes")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.folder, options.child, options.milliseconds / 1000, not options.one_by_one)))
        return 0
    options.folder.mkdir(parents=True, exist_ok=True)
    print(f"{'files':>13}{'start s':>9}{'calls':>7}{'graph KiB':>11}{'end s':>8}{'manifest':>12}{'clean s':>9}{'calls':>9}{'peak MiB':>10}")
    bad = False
    for count in map(int, options.files.split(",")):
        command = [sys.executable, "-m", "benchmarks.many_files", *sys.argv[1:], "--child", str(count)]
        found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])
        start, end, clean = (found[step] for step in STEPS)
        print(
            f"{count:>13,}{start['wall']:>9.1f}{start['calls']:>7,}{found['graph'] / 1024:>11,.0f}{end['wall']:>8.1f}"
            f"{found['manifest']:>12,}{clean['wall']:>9.1f}{clean['calls']:>9,}{clean['peak']:>10,.0f}",
            flush=True,
        )
        bad |= found["graph"] > MOST_GRAPH or any(found[step]["wall"] > MOST_SECONDS for step in STEPS)
    return int(bad)


def measure(folder: pathlib.Path, count: int, waits: float, batches: bool) -> dict[str, Any]:
    """The three steps over `count` files: wall seconds, calls, the process's peak so far; the bytes of the graph and of the manifest."""
    from beam_influence.influence_ops import device  # quiets TensorFlow before it is imported

    device.configure_tensorflow()
    config = make(folder)
    STORE.clear(waits, batches)
    STORE.fill("slow://in/train-", ".tfrecord", (folder / "train.tfrecord").read_bytes(), count)
    found: dict[str, Any] = {}
    found["start"] = used(lambda: found.update(graph=start(config)))
    for table in TABLES:
        STORE.fill(f"{OUTPUT}/{table}/shard-", ".parquet", b"rows", count)
    found["end"] = used(lambda: found.update(manifest=finish(count)))
    found["clean"] = used(lambda: clean(config))
    if left := [path for path, _ in STORE.files(OUTPUT)]:
        raise AssertionError(f"{len(left):,} files are left, such as {left[0]}")
    return found


def used(step: Any) -> dict[str, float]:
    """What a step took."""
    STORE.calls.clear()
    usage = Usage()
    step()
    return {**usage.read(), "calls": sum(STORE.calls.values())}


def make(folder: pathlib.Path) -> Any:
    """A small network, a training file and a test file; the options of a run over many such training files."""
    import keras
    import numpy as np

    from beam_influence.pipelines.config import InfluenceConfig

    rng = np.random.default_rng(5)
    for name, rows in (("train", 2), ("test", 20)):
        write_examples(folder / f"{name}.tfrecord", rng.normal(size=(rows, 8)).astype(np.float32), rng.integers(0, 3, rows))
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((8,), name="x"), keras.layers.Dense(3, "softmax")])
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy())
    model.save(folder / "model.keras")
    return InfluenceConfig(
        model=str(folder / "model.keras"),
        train="slow://in/train-*.tfrecord",
        test=str(folder / "test.tfrecord"),
        output=OUTPUT,
        damping="0.1",
        outputs=",".join(TABLES),
        overwrite=True,
    )


def start(config: Any) -> int:
    """All that a launcher does before it gives the job to the engine; returns the bytes of the job's graph."""
    import apache_beam as beam
    from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner

    from beam_influence.pipelines.build import build
    from beam_influence.pipelines.prepare import prepare

    _lift_old_limit()
    prepared = prepare(config)
    clean(config)
    pipeline = beam.Pipeline(FnApiRunner())
    build(pipeline, config, prepared)
    return pipeline.to_runner_api().ByteSize()


def finish(count: int) -> int:
    """Writes the manifest of a run with `TABLES`, and reads it; returns its bytes."""
    from beam_influence.influence_ops.results.result_files import WrittenFile, read_manifest, table_files, write_manifest
    from beam_influence.transforms.files import BeamFiles

    files = BeamFiles()

    def written() -> Iterator[WrittenFile]:
        for table in TABLES:
            for number in range(count):
                yield WrittenFile(table, f"{table}/shard-{number:07d}.parquet", 40, 4)

    content = {"counts": {}, "config": {}, "curvature": {}}
    path = write_manifest(OUTPUT, written() if _is_new() else list(written()), content, files)
    read_manifest(OUTPUT, files)
    if sum(1 for _ in table_files(OUTPUT, "scores", files)) != count:
        raise AssertionError("the manifest does not list what was written")
    return len(files.read(path))


def clean(config: Any) -> None:
    """What a run with `--overwrite` does about the one before."""
    from beam_influence.influence_ops.results.result_files import MANIFEST
    from beam_influence.influence_ops.scoring.outputs.table import TABLES as ALL
    from beam_influence.pipelines.clear_output import clear_output

    clear_output(config, tuple(ALL), MANIFEST)


def _is_new() -> bool:
    """Whether this is the program with a list of files; the one before is measured by this file too."""
    return importlib.util.find_spec("beam_influence.transforms.file_list") is not None


def _lift_old_limit() -> None:
    if not _is_new():
        setattr(importlib.import_module("beam_influence.transforms.read_shards"), "MAX_FILES", 1 << 40)  # noqa: B010


if __name__ == "__main__":
    sys.exit(main())
