"""How long does the page of a large run take, and how much memory? The tables of a run of many training examples, with random scores, over
digits that are written again and again; the model is that of the main job, which must have run.

    python -m benchmarks.report [--examples 1000000] [--scores 0] [--folder out/report]

What the page shows is compared with NumPy's sort of all scores; it returns 1 where they differ.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import resource
import shutil
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pyarrow as pa

from beam_influence.influence_ops.reading.tfrecord_framing import write_records
from beam_influence.influence_ops.results import schemas
from beam_influence.influence_ops.results.result_files import WrittenFile, write_manifest, write_table
from beam_influence.pipelines.demo import digits
from beam_influence.pipelines.report import make_page
from beam_influence.pipelines.report_config import ReportConfig
from beam_influence.report.page import render

MAIN_JOB = pathlib.Path("out/digits")
FILES, TESTS, KEPT = 100, 100, 10


def main() -> int:
    """Makes the run, then its page, and prints what that took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=1_000_000, help="training examples")
    parser.add_argument("--scores", type=int, default=0, help="test points with a table scores; 0: none")
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("out/report"), help="where the run goes")
    options = parser.parse_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    own = make_run(options.folder, options.examples // FILES, options.scores)
    wall, cpu = time.monotonic(), time.process_time()
    page = make_page(ReportConfig(str(options.folder / "influence")))
    size = len(render(page))
    wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    small, large = most_memory(MAIN_JOB / "influence", options.folder), most_memory(options.folder / "influence", options.folder)
    print(f"{options.examples:,} training examples, {len(page.points)} test points: {cpu:.1f} CPU s, {wall:.1f} s, {size / 1e6:.2f} MB")
    print(f"most memory of a process: {large:,.0f} MiB; of the main job's report {small:,.0f} MiB")
    order = np.sort(own)[::-1]
    exact = order[: len(own) // 100].sum() / order.sum()
    share = next(row.shares[0] for row in page.spread.rows if row.part == "1 %") if page.spread else ""
    same = [card.influence for card in page.suspicious or ()] == order[:24].tolist() and share == f"{100 * exact:.1f} %"
    print(f"the first 24 and the share of the first 1 % ({share}) are those of a sort: {'yes' if same else 'NO'}")
    return int(not same)


def make_run(folder: pathlib.Path, each: int, scored: int) -> np.ndarray:
    """A finished run over `FILES` files of `each` examples; returns the self-influence of all."""
    random = np.random.default_rng(0)
    data, output = folder / "data", str(folder / "influence")
    data.mkdir(parents=True)
    splits = digits.load()
    names = [f"train-{number:05d}.tfrecord" for number in range(FILES)]
    records = {
        split: [digits.example(*pair) for pair in zip(found.features["image"], found.labels, strict=True)]
        for split, found in splits.items()
    }
    for name in names:
        with open(data / name, "wb") as file:
            write_records(file, (records["train"][row % len(records["train"])] for row in range(each)))
    with open(data / "test.tfrecord", "wb") as file:
        write_records(file, records["test"][:TESTS])
    manifest: dict[str, Any] = json.loads((MAIN_JOB / "influence" / "manifest.json").read_text())
    count = each * FILES
    manifest["config"] |= {"train": str(data / "train-*"), "test": str(data / "test*"), "group_feature": None}
    manifest["counts"]["score"]["examples"] = manifest["curvature"]["examples"] = count
    written: list[WrittenFile] = []

    def write(table: str, name: str, schema: pa.Schema, columns: list[Any]) -> None:
        content = pa.Table.from_arrays([pa.array(column) for column in columns], schema=schema)
        written.append(write_table(output, table, name, schema, content, {}))

    own = []
    tests = np.array([f"test.tfrecord:{row}" for row in range(TESTS)])
    for number, name in enumerate(names):
        ids = [f"{name}:{row}" for row in range(each)]
        own.append(random.lognormal(0, 2, each))
        write("self_influence", f"shard-{number:05d}", schemas.SELF_INFLUENCE, [ids, own[-1], own[-1] / count])
        if scored:
            values = random.normal(size=each * scored)
            columns = [np.tile(tests[:scored], each), np.repeat(ids, scored), values, values / count]
            write("scores", f"shard-{number:05d}", schemas.SCORES, columns)
    best = [f"{names[row // each]}:{row % each}" for row in random.integers(0, count, TESTS * KEPT)]
    values = -np.sort(-random.lognormal(0, 2, (TESTS, KEPT)), axis=1).ravel()
    ranks = np.tile(np.arange(1, KEPT + 1, dtype=np.int32), TESTS)
    write("top_k", "block-00000", schemas.TOP_K, [np.repeat(tests, KEPT), ranks, best, values, values / count])
    write("rejected", "part-00000", schemas.REJECTED, [[]] * 6)
    write_manifest(output, written, {name: value for name, value in manifest.items() if name != "files"})
    return np.concatenate(own)


def most_memory(results: pathlib.Path, folder: pathlib.Path) -> float:
    """The most MiB that a process of its own, or an earlier child, has held."""
    words = ["-m", "beam_influence.pipelines.cli", "report", str(results), "--output", str(folder / "report.html")]
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


if __name__ == "__main__":
    raise SystemExit(main())
