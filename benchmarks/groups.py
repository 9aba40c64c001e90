"""What do many groups, and many training examples, take? Influence of each group on 10 test points, for some numbers of each.

8 features in Parquet files of 50,000 rows, a dense layer of 10 classes (P = 90, float64), Gauss–Newton. Each case is a process of its own.
With `--features`, so many of them, and the groups' own self-influence beside it: sums of groups × weights.

    python -m benchmarks.groups [--cases 100000:1000,1000000:1000,1000000:1000000] [--folder out/groups]
    python -m benchmarks.groups --cases 200000:200000 --features 99 --memory 2GB
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
from typing import Any

from benchmarks.scale import Usage

CLASSES, TEST, FILE = 10, 10, 50_000


def main() -> int:
    """Runs each case, prints the table; returns 1 where a table is not of the groups that there are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="100000:1000,1000000:1000,1000000:1000000", help="examples:groups, separated by commas")
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("out/groups"), help="where the data goes")
    parser.add_argument("--features", type=int, default=8, help="of an example; other than 8: with group_self_influence")
    parser.add_argument("--memory", help="--max_worker_memory")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(run_job(options)))
        return 0
    print(f"{'examples':>10}{'groups':>11}{'wall s':>8}{'CPU s':>8}{'peak MiB':>10}{'rows':>12}")
    is_wrong = False
    for case in options.cases.split(","):
        command = [sys.executable, "-m", "benchmarks.groups", *sys.argv[1:], "--child", case]
        found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])
        examples, groups = map(int, case.split(":"))
        used = f"{found['wall']:>8.1f}{found['cpu']:>8.1f}{found['peak']:>10,.0f}"
        print(f"{examples:>10,}{groups:>11,}{used}{found['rows']:>12,}", flush=True)
        is_wrong |= found["rows"] != groups * (TEST + 1) or found["examples"] != examples * (TEST + 1)
    return int(is_wrong)


def make(folder: pathlib.Path, features: int, examples: int, groups: int) -> None:
    """Noise around ten centres; example i is of group i mod the number of groups, so that each file has all that it can."""
    from beam_influence.influence_ops import device  # quiets TensorFlow before it is imported

    device.configure_tensorflow()
    import keras
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(5)
    centres = rng.standard_normal((CLASSES, features))
    files = [(f"train-{first // FILE:05d}", first, min(first + FILE, examples)) for first in range(0, examples, FILE)]
    for name, first, last in [("test", 0, TEST), *files]:
        labels = rng.integers(0, CLASSES, last - first)
        x = (centres[labels] + rng.standard_normal((last - first, features))).astype(np.float32)
        columns = {
            "x": pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), features),
            "label": pa.array(labels),
            "group": pa.array([f"group {number % groups}" for number in range(first, last)]),
        }
        pq.write_table(pa.table(columns if name != "test" else {key: columns[key] for key in ("x", "label")}), folder / f"{name}.parquet")
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((features,), name="x"), keras.layers.Dense(CLASSES, "softmax")])
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy())
    model.save(folder / "model.keras")


def run_job(options: argparse.Namespace) -> dict[str, Any]:
    """The job as `beam-influence run` runs it; the data is made in this process too, file by file."""
    folder = options.folder / f"{options.child.replace(':', '-')}-{options.features}"
    make(folder, options.features, *map(int, options.child.split(":")))
    import pyarrow.parquet as pq

    from beam_influence.pipelines.config import InfluenceConfig
    from beam_influence.pipelines.launch import run

    usage = Usage()
    config = InfluenceConfig(
        model=str(folder / "model.keras"),
        train=str(folder / "train-*.parquet"),
        test=str(folder / "test.parquet"),
        output=str(folder / "influence"),
        group_feature="group",
        outputs="group_influence" if options.features == 8 else "group_influence,group_self_influence",
        max_worker_memory=options.memory,
        damping="0.01",
        overwrite=True,
    )
    run(config, ["--runner=FnApiRunner"])
    used = usage.read()
    counts = pq.read_table(folder / "influence" / "group_influence", columns=["count"]).column("count")
    return {**used, "rows": len(counts), "examples": int(counts.to_numpy().sum())}


if __name__ == "__main__":
    sys.exit(main())
