"""What does an index cost, and what does it save? New test points by `query` from an index, against `run` over the training set.

The data of `benchmarks.scale`: 784 features, a 784-32-10 network, here with all its weights watched (P = 25,450), 100 test points,
top-10. One curvature for all of them, from a sample; it is not in the seconds. Every step is a process of its own.

    python -m benchmarks.index [--size 20000] [--curvature arnoldi --rank 200] [--projection sjlt] [--folder out/scale]
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
from typing import Any

from benchmarks import scale

SAMPLE = 2_000
DTYPES = ("float32", "float16", "int8")


def main() -> int:
    """Makes the data, measures each step, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=20_000, help=f"training examples, a multiple of {scale.SHARD:,}")
    parser.add_argument("--curvature", default="arnoldi", choices=("arnoldi", "random_projection"))
    parser.add_argument("--rank", type=int, default=200, help="numbers for each example (default: 200)")
    parser.add_argument("--projection", default="hadamard", choices=("hadamard", "two_sided", "sjlt"), help="of random_projection")
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("out/scale"), help="where the data goes")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(arguments, json.loads(arguments.child))))
        return 0
    scale.in_child("make", arguments.folder, arguments.size)

    def child(name: str, **options: Any) -> dict[str, Any]:
        command = [sys.executable, "-m", "benchmarks.index", "--size", str(arguments.size), "--folder", str(arguments.folder)]
        command += ["--curvature", arguments.curvature, "--rank", str(arguments.rank), "--projection", arguments.projection]
        command += ["--child", json.dumps({"name": name, **options})]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])

    fitted = child("fit", outputs="curvature", **of_curvature(arguments))
    saved = {"curvature_path": fitted["output"] + "/curvature"}
    whole = child("run", test=True, **saved)
    print(f"{arguments.curvature}, {arguments.rank} numbers for each of {arguments.size:,} examples; fit {fitted['wall']:.1f} s")
    print(f"{'':<16}{'wall s':>8}{'CPU s':>8}{'peak MiB':>10}{'training side, s':>18}{'bytes/example':>15}{'top-10 of run':>15}")
    print(row("run", whole))
    for dtype in DTYPES:
        index = child(f"index-{dtype}", outputs="index", index_dtype=dtype, curvature=arguments.curvature, **saved)
        print(row(f"index {dtype}", index, f"{index['index_bytes'] / arguments.size:,.0f}"))
        for search in ("linear", "faiss") if dtype == "float32" else ("linear",):
            query = child(f"query-{dtype}-{search}", test=True, index=index["output"], search=search)
            print(row(f"query {search}", query, "", f"{overlap(query['top'], whole['top']):.3f}"))
    return 0


def of_curvature(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of the curvature."""
    projected = {"projection_dim": arguments.rank, "projection": arguments.projection}
    size = {"rank": arguments.rank} if arguments.curvature == "arnoldi" else projected
    return {"curvature": arguments.curvature, "n_samples": SAMPLE, **size}


def measure(arguments: argparse.Namespace, options: dict[str, Any]) -> dict[str, Any]:
    """One command, in this process; its imports are not in the seconds."""
    import pyarrow.parquet as pq

    from beam_influence.pipelines.config import InfluenceConfig
    from beam_influence.pipelines.launch import run

    folder: pathlib.Path = arguments.folder
    output = folder / f"{arguments.curvature}-{options.pop('name')}"
    shards = [str(folder / f"train-{shard:05d}.tfrecord") for shard in range(arguments.size // scale.SHARD)]
    data = {} if "index" in options else {"train": ",".join(shards)}
    if options.pop("test", False):
        data["test"] = str(folder / "test.tfrecord")
    usage = scale.Usage()
    config: dict[str, Any] = {**data, **options}
    summary = run(InfluenceConfig(model=str(folder / "model.keras"), output=str(output), weights="all", overwrite=True, **config))
    used: dict[str, Any] = {**usage.read(), "output": str(output)}
    used["train_side"] = sum(summary.milliseconds.get(stage, 0) for stage in ("score", "index")) / 1000
    used["index_bytes"] = summary.manifest["tables"]["index"]["bytes"]
    if "test" in data:
        rows = pq.read_table(output / "top_k").select(["test_id", "train_id"]).to_pylist()
        used["top"] = [[entry["test_id"], entry["train_id"]] for entry in rows]
    return used


def row(name: str, used: dict[str, Any], size: str = "", top: str = "") -> str:
    """A line of the table."""
    return f"{name:<16}{used['wall']:>8.1f}{used['cpu']:>8.1f}{used['peak']:>10,.0f}{used['train_side']:>18.2f}{size:>15}{top:>15}"


def overlap(found: list[list[str]], wanted: list[list[str]]) -> float:
    """The share of the pairs that were wanted."""
    return len(set(map(tuple, found)) & set(map(tuple, wanted))) / len(wanted)


if __name__ == "__main__":
    sys.exit(main())
