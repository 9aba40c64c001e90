"""How long does a query take over 10,000,000 rows of an int8 index, in how much memory, and does it find what a float32 scan finds?

The index is a real one of `benchmarks.scale`'s network (all P = 25,450 weights, `random_projection --projection sjlt`, 124 numbers), whose
rows are then replaced by as many Gaussian ones as are asked for: the hardest to tell apart, since no example stands out. Recall@10 is
the share of each test point's ten best by a scan of the same rows in float32 that `beam-influence query` gives too. Each step is a
process of its own; the query's seconds are without its imports.

    python -m benchmarks.index_search [--rows 10000000] [--folder out/index_search] [--workers 1]
"""

from __future__ import annotations

import argparse
import json
import pathlib
import shutil
import subprocess
import sys
from typing import Any

from benchmarks import scale

DIM, BEST, ROWS_IN_A_FILE, ROWS_AT_ONCE = 124, 10, 250_000, 10_000


def main() -> int:
    """Makes the index, queries it, prints the row; returns 1 where recall is below 0.99 or a row takes more than 160 bytes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000, help=f"a multiple of {ROWS_IN_A_FILE:,} (default: 10,000,000)")
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("out/index_search"), help="where the data goes")
    parser.add_argument("--workers", type=int, default=1, help="processes of the query (default: 1); the peak is of the first alone")
    parser.add_argument("--child", choices=("make", "query"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps({"make": make, "query": query}[arguments.child](arguments)))
        return 0

    def child(name: str) -> dict[str, Any]:
        options = ["--rows", str(arguments.rows), "--folder", str(arguments.folder), "--workers", str(arguments.workers), "--child", name]
        done = subprocess.run([sys.executable, "-m", "benchmarks.index_search", *options], stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])

    scale.in_child("make", arguments.folder, scale.SHARD)
    made, asked = child("make"), child("query")
    found, wanted = (set(map(tuple, side["top"])) for side in (asked, made))
    recall = len(found & wanted) / len(wanted)
    points = len(wanted) // BEST
    print(f"{arguments.rows:,} rows of {DIM} numbers, {points} test points: {made['row_bytes']:.0f} bytes a row apart from ids,")
    print(f"{made['file_bytes'] / arguments.rows:.0f} with them as the files are; made and scanned in float32 in {made['cpu']:,.0f} CPU s")
    print(f"query: {asked['wall']:.1f} s, {asked['cpu']:.1f} CPU s, peak {asked['peak']:,.0f} MiB; recall@10 {recall:.4f}")
    print(f"index_error {asked['index_error']:.4f}; scoring alone {asked['score']:.1f} s over its workers")
    return int(recall < 0.99 or made["row_bytes"] > 160)


def config_of(arguments: argparse.Namespace, output: str, **options: Any) -> Any:
    """The options of a run with the network."""
    from beam_influence.pipelines.config import InfluenceConfig

    folder: pathlib.Path = arguments.folder
    return InfluenceConfig(model=str(folder / "model.keras"), output=str(folder / output), weights="all", overwrite=True, **options)


def make(arguments: argparse.Namespace) -> dict[str, Any]:
    """The index, and the ten best rows of each test point by a scan in float32."""
    import numpy as np

    from beam_influence.influence_ops.results.result_files import ParquetFile, read_manifest, write_manifest
    from beam_influence.influence_ops.scoring.index import INDEX, InfluenceIndex, embed_for_index
    from beam_influence.influence_ops.scoring.index_rows import index_schema, index_table, stored_error
    from beam_influence.influence_ops.scoring.top_k import TopK
    from beam_influence.pipelines.launch import run

    folder: pathlib.Path = arguments.folder
    fitting = {"outputs": "index", "curvature": "random_projection", "projection": "sjlt", "projection_dim": DIM, "index_dtype": "int8"}
    run(config_of(arguments, "indexed", train=str(folder / "train-00000.tfrecord"), **fitting))
    index = folder / "indexed"
    opened = InfluenceIndex.open(str(index))
    model, batch = test_points(arguments)
    block, _ = embed_for_index(model, opened.preconditioner.bind(model), batch)
    content = {name: value for name, value in read_manifest(str(index)).items() if name not in ("files", "manifest_version")}
    shutil.rmtree(index / INDEX)
    (index / INDEX).mkdir()
    usage, random = scale.Usage(), np.random.default_rng(0)
    queries, best, written, row_bytes = block.gradients.astype(np.float32), TopK(len(block), BEST), [], 0.0
    for number in range(arguments.rows // ROWS_IN_A_FILE):
        file, error = ParquetFile(str(index), INDEX, f"shard-{number:05d}", index_schema(DIM, "int8"), opened.facts), 0.0
        for start in range(0, ROWS_IN_A_FILE, ROWS_AT_ONCE):
            ids = np.array([f"train-{number:05d}.tfrecord:{place}" for place in range(start, start + ROWS_AT_ONCE)], dtype=object)
            embedded = random.standard_normal((len(ids), DIM), dtype=np.float32)
            table = index_table(ids, embedded, "int8")
            error = max(error, stored_error(embedded, table)) if start == 0 else error
            best.add(queries @ embedded.T, ids)
            file.write(table)
            row_bytes = (table.nbytes - table["train_id"].nbytes) / len(ids)
        done = file.close()
        written.append(type(done)(done.table, done.path, done.rows, done.size, done.source, error))
    write_manifest(str(index), written, content)
    top = [[str(test), str(name)] for test, names in zip(block.ids, best.ids, strict=True) for name in names]
    return {**usage.read(), "top": top, "row_bytes": row_bytes, "file_bytes": sum(file.size for file in written)}


def test_points(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """The model, and the test points as one batch, with the ids that the query will give them."""
    from beam_influence.pipelines.prepare import prepare
    from beam_influence.transforms.progress import Progress
    from beam_influence.transforms.read_shards import ShardReader

    test = str(arguments.folder / "test.tfrecord")
    prepared = prepare(config_of(arguments, "asked", index=str(arguments.folder / "indexed"), test=test))
    assert prepared.test_features is not None
    reader = ShardReader("benchmark", prepared.test_features, scale.TEST, Progress(None))
    return prepared.model.session(), next(batch for batch, _ in reader.read(prepared.test[0]))


def query(arguments: argparse.Namespace) -> dict[str, Any]:
    """`beam-influence query`, in this process."""
    import pyarrow.parquet as pq

    from beam_influence.influence_ops.results.result_files import read_facts
    from beam_influence.pipelines.launch import run

    usage = scale.Usage()
    files = {"index": str(arguments.folder / "indexed"), "test": str(arguments.folder / "test.tfrecord")}
    summary = run(config_of(arguments, "asked", **files, top_k=BEST), [f"--workers={arguments.workers}"])
    used = usage.read()
    tables = sorted((arguments.folder / "asked" / "top_k").glob("*.parquet"))
    top = [[row["test_id"], row["train_id"]] for path in tables for row in pq.read_table(path).to_pylist()]
    error = read_facts(str(tables[0]))["index_error"]
    return {**used, "top": top, "index_error": error, "score": summary.milliseconds.get("score", 0) / 1000}


if __name__ == "__main__":
    sys.exit(main())
