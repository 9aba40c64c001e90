"""The same job on every engine: the time of each command, and whether its tables are those of the run in memory.

The main job's data (scikit-learn's digits: 1,697 training examples in 4 files, 100 test points); of the last layer every
pair of them is scored. Each measurement is a command of its own, imports and all. Needs Java and Maven for Flink, Prism or Go for
Prism; a cluster is started for it and stopped after it.

    python -m benchmarks.runners [--job last-layer] [--repeats 3] [--folder out/runners] [--only NAME,NAME]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
import pyarrow.parquet as pq

ROOT = pathlib.Path(__file__).parents[1]
WHOLE = "--weights all --curvature"
JOBS = {
    "last-layer": "--outputs top_k,self_influence,group_influence,scores --group_feature digit",
    "ekfac": f"{WHOLE} ekfac --outputs top_k,self_influence",
    "gauss_newton_cg": f"{WHOLE} gauss_newton_cg --passes 3 --outputs top_k",
    "arnoldi": f"{WHOLE} arnoldi --passes 4 --rank 50 --outputs top_k,self_influence",
}
"""What is asked for; `--outputs` are the tables that are compared."""
NUMBERS = ("influence", "loss_change")
TOLERANCE = 1e-6
TIME_LIMIT = 600

IN_MEMORY = "in memory"
FLINK = "--runner flink --job_endpoint localhost:8099"
ENGINES = {
    IN_MEMORY: ("", "--runner local"),
    "four threads": ("", "--runner local --direct_running_mode multi_threading --direct_num_workers 4"),
    "two processes": ("", "--runner local --workers 2"),
    "Prism": ("", "--runner prism"),
    "Flink in one process": ("local", FLINK),
    "Flink cluster, workers here": ("cluster", f"{FLINK} --environment LOOPBACK"),
    "Flink cluster, a pool of workers": ("cluster", f"{FLINK} --environment EXTERNAL"),
    "Flink cluster, workers of the task managers": ("cluster", f"{FLINK} --environment PROCESS"),
}
"""The cluster that each needs, and the options that it is asked for by."""


def main() -> int:
    """Runs the job on each engine and prints the table; returns 1 when an answer differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", choices=JOBS, default="last-layer", help="what is asked for; whole networks but for the first")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each engine; the table shows the median")
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("out/runners"), help="where the data goes")
    parser.add_argument("--only", default="", help="some of the engines, by the beginnings of their names, separated by commas")
    options = parser.parse_args()
    beginnings = [name.strip() for name in options.only.split(",") if name.strip()]
    chosen = {
        name: engine
        for name, engine in ENGINES.items()
        if name == IN_MEMORY or not beginnings or any(name.startswith(beginning) for beginning in beginnings)
    }
    if not (options.folder / "model.keras").exists():
        command = [sys.executable, "-m", "beam_influence.pipelines.cli", "demo", "digits", "--output", str(options.folder)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    if "Prism" in chosen and not shutil.which("prism"):
        command = [str(ROOT / "engines" / "prism" / "get_prism.sh")]
        subprocess.run(command, check=True, env={**os.environ, "PRISM_PYTHON": sys.executable}, stdout=subprocess.DEVNULL)
    print("| engine | options | seconds | ids and ranks | largest difference of a score |\n|---|---|---:|---|---:|")
    is_equal = True
    for name, (cluster, arguments) in chosen.items():
        results = options.folder / "results" / options.job
        output = results / name.replace(",", "").replace(" ", "-")
        with flink(cluster) if cluster else contextlib.nullcontext():
            seconds = [run(options.folder, output, JOBS[options.job], arguments) for _ in range(options.repeats)]
        same, difference = compare(output, results / IN_MEMORY.replace(" ", "-"), JOBS[options.job])
        is_equal &= same and difference <= TOLERANCE
        shown = "identical" if same else "DIFFERENT"
        print(f"| {name} | `{arguments}` | {statistics.median(seconds):.1f} | {shown} | {difference:.1e} |", flush=True)
    return int(not is_equal)


@contextlib.contextmanager
def flink(mode: str) -> Iterator[None]:
    """Flink on this machine, at the usual ports."""
    script = str(ROOT / "engines" / "flink" / "flink.sh")
    search = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "FLINK_PYTHON": sys.executable, "PYTHONPATH": search}
    try:
        subprocess.run([script, mode], check=True, env=environment, stdout=subprocess.DEVNULL)
        yield
    finally:
        subprocess.run([script, "stop"], check=True, env=environment)


def run(folder: pathlib.Path, output: pathlib.Path, asked: str, arguments: str) -> float:
    """Seconds of one command."""
    files = ["--model", "model.keras", "--train", "train-*.tfrecord.gz", "--test", "test-*.tfrecord.gz"]
    files = [word if word.startswith("--") else str(folder.resolve() / word) for word in files]
    job = ["--output", str(output.resolve()), "--overwrite", "--threads", "1", *asked.split()]
    command = [sys.executable, "-m", "beam_influence.pipelines.cli", "run", *files, *job, *arguments.split()]
    started = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=TIME_LIMIT)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    return time.monotonic() - started


def compare(found: pathlib.Path, expected: pathlib.Path, asked: str) -> tuple[bool, float]:
    """Whether ids, ranks, groups and counts are the same, and the largest difference of a number, relative to the table's largest."""
    is_same = counts(found) == counts(expected)
    largest = 0.0
    words = asked.split()
    for table in words[words.index("--outputs") + 1].split(","):
        a, b = pq.read_table(found / table), pq.read_table(expected / table)
        keys = [name for name in b.column_names if name not in NUMBERS]
        a, b = (rows.sort_by([(name, "ascending") for name in keys]) for rows in (a, b))
        is_same &= a.select(keys).equals(b.select(keys))
        if is_same:
            for name in NUMBERS:
                left, right = a[name].to_numpy(), b[name].to_numpy()
                largest = max(largest, float(np.max(np.abs(left - right)) / np.max(np.abs(right))))
    return is_same, largest


def counts(folder: pathlib.Path) -> dict[str, dict[str, int]]:
    """The counts of a run's manifest."""
    return json.loads((folder / "manifest.json").read_text())["counts"]


if __name__ == "__main__":
    sys.exit(main())
