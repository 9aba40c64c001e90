"""Does memory stay flat as more examples are rejected? The job of `benchmarks.scale` over 100,000 examples, of which some hold a NaN.

Each measurement is a process of its own. The command fails when the peak with the most rejected is more than 1.2 × that with the fewest, or
when the table `rejected` does not name just those that were damaged.

    python -m benchmarks.rejected [--rejected 10,10000] [--folder out/scale]
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
from typing import Any

from benchmarks import scale

EXAMPLES = 100_000
MOST = 1.2


def main() -> int:
    """Makes the data, measures each number in its own process, prints the table; returns 1 when memory grows or a row is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rejected", default="10,10000", help="how many of the examples hold a NaN")
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("out/scale"), help="where the data goes")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(run_job(options.folder, options.child)))
        return 0
    scale.in_child("make", options.folder, EXAMPLES)
    print(f"{'rejected':>9}{'wall s':>9}{'CPU s':>8}{'peak MiB':>10}{'rows':>8}")
    peaks, right = [], True
    for count in map(int, options.rejected.split(",")):
        damage(options.folder, count)
        command = [sys.executable, "-m", "benchmarks.rejected", *sys.argv[1:], "--child", str(count)]
        found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])
        print(f"{count:>9,}{found['wall']:>9.1f}{found['cpu']:>8.1f}{found['peak']:>10,.0f}{found['rows']:>8,}", flush=True)
        peaks.append(found["peak"])
        right &= found["right"]
    print(f"the peak grows by a factor of {peaks[-1] / peaks[0]:.3f}; the table is {'right' if right else 'WRONG'}")
    return int(not right or peaks[-1] > MOST * peaks[0])


def damaged(count: int) -> set[int]:
    """The rows of the training set that hold a NaN."""
    return set(range(0, EXAMPLES, EXAMPLES // count))


def damage(folder: pathlib.Path, count: int) -> None:
    """Copies the training files, with NaN in some examples."""
    import numpy as np

    for shard in range(EXAMPLES // scale.SHARD):
        with np.load(folder / f"train-{shard:05d}.npz") as arrays:
            features, labels = arrays["features"], arrays["labels"]
        rows = [row - shard * scale.SHARD for row in damaged(count) if row // scale.SHARD == shard]
        features[rows, 3] = np.nan
        scale.write_examples(folder / f"damaged-{shard:05d}.tfrecord", features, labels)


def run_job(folder: pathlib.Path, count: int) -> dict[str, Any]:
    """The job as `beam-influence run` runs it."""
    import pyarrow.parquet as pq

    from beam_influence.pipelines.config import InfluenceConfig
    from beam_influence.pipelines.launch import run

    usage = scale.Usage()
    config = InfluenceConfig(
        model=str(folder / "model.keras"),
        train=str(folder / "damaged-*.tfrecord"),
        test=str(folder / "test.tfrecord"),
        output=str(folder / "rejected"),
        damping=str(scale.DAMPING),
        top_k=scale.TOP_K,
        max_rejected=count,
        overwrite=True,
    )
    run(config)
    used = usage.read()
    rows = pq.read_table(folder / "rejected" / "rejected").to_pylist()
    numbers = {int(row["file"].removesuffix(".tfrecord").rpartition("-")[2]) * scale.SHARD + row["index"] for row in rows}
    return {**used, "rows": len(rows), "right": numbers == damaged(count) and len(rows) == count}


if __name__ == "__main__":
    sys.exit(main())
