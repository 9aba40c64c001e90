"""Test points × weights within a worker's memory: EK-FAC of a deep network of random weights, whole and as factors, in rounds.

`--layers` residual Dense layers of `--width` units, of which the last `--watched` are watched. Each way is the same job in a process of
its own, with the curvature of one `fit`: whole solutions with memory enough for one round; whole ones within `--memory`; the same in
bfloat16, its error measured before; within it as the plan has it for `--tolerance`; and with factors of `--rank`. The peak is of the whole
process, mapped files with it; rounds are at most those. Last, the share of the first way's top-10, and the largest difference of influence,
relative to the largest. With `--check`, that is of whole solutions of the first so many of the test points, where all would be too large.

    python -m benchmarks.test_points [--points 100] [--width 512] [--layers 38] [--memory 3GB] [--rank 8] [--folder out/test_points]
    python -m benchmarks.test_points --points 1000 --width 1290 --layers 6 --memory 8GB --ways tolerance --train 1000 --check 20
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from benchmarks.scale import Usage, write_examples

if TYPE_CHECKING:  # the process that starts the others stays small
    from beam_influence.pipelines.config import InfluenceConfig

SHARD, TOP_K, CLASSES, FEATURES = 250, 10, 10, 64
WAYS = ("one round", "rounds", "bfloat16", "tolerance", "factors")
CHECK = "check"
ENOUGH = "1TB"
WHOLE = (CHECK, "one round", "rounds", "bfloat16")  # with --score_tolerance 0: every solution built, and every score a product with it


def main() -> int:
    """Makes the data, runs each way, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", default="100", help="how many test points; several numbers are separated by commas")
    parser.add_argument("--train", type=int, default=500, help=f"how many training examples, a multiple of {SHARD}")
    parser.add_argument("--width", type=int, default=512, help="units of a layer")
    parser.add_argument("--layers", type=int, default=38, help="layers")
    parser.add_argument("--memory", default="3GB", help="--max_worker_memory")
    parser.add_argument("--rank", type=int, default=8, help="--query_rank")
    parser.add_argument("--tolerance", type=float, default=1e-7, help="--score_tolerance of the way `tolerance`")
    parser.add_argument("--watched", type=int, default=0, help="how many of the layers are watched, from the last; 0: all")
    parser.add_argument("--check", type=int, default=0, help="whole solutions of how many test points are compared with; 0: none")
    parser.add_argument("--ways", default=",".join(WAYS), help="which, separated by commas")
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("out/test_points"), help="where the data goes")
    parser.add_argument("--child", choices=("make", "fit", CHECK, *WAYS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.folder /= f"{options.width}-{options.layers}-{options.watched}-{options.train}"
    if options.child:
        print(json.dumps({"make": make, "fit": fit}.get(options.child, run_job)(options)))
        return 0
    print(f"{'points':>8}{'weights':>12}  {'way':<11}{'rounds':>7}{'peak MiB':>10}{'wall s':>8}{'CPU s':>7}   top-{TOP_K}, influence")
    for points in map(int, options.points.split(",")):
        weights = in_child("make", points)["weights"]
        fitted = in_child("fit", points)
        print(f"{'':>8}{weights:>12,}  {'fit':<11}{'':>7}{fitted['peak']:>10,.0f}{fitted['wall']:>8.1f}{fitted['cpu']:>7.0f}", flush=True)
        first: dict[str, Any] = {}
        for way in filter(None, [CHECK * (options.check > 0), *options.ways.split(",")]):
            result = in_child(way, points)
            first = first or result
            same, difference = compare(first["top"], result["top"])
            cells = f"{way:<11}{result['rounds']:>7}{result['peak']:>10,.0f}{result['wall']:>8.1f}{result['cpu']:>7.0f}"
            count = options.check if way == CHECK else points
            print(f"{count:>8,}{weights:>12,}  {cells}   {same:.2%}, {difference:.1e}; {result['seconds']}", flush=True)
    return 0


def in_child(child: str, points: int) -> dict[str, Any]:
    """One step in its own process."""
    command = [sys.executable, "-m", "benchmarks.test_points", *sys.argv[1:], "--points", str(points), "--child", child]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])


def make(options: argparse.Namespace) -> dict[str, Any]:
    """Noisy classes as TFRecord shards, and the network."""
    from beam_influence.influence_ops import device  # quiets TensorFlow before it is imported

    device.configure_tensorflow()
    import keras
    import numpy as np

    options.folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(2)
    centres = rng.standard_normal((CLASSES, FEATURES))
    for name, count in [*((f"train-{shard:05d}", SHARD) for shard in range(options.train // SHARD)), ("test", int(options.points))]:
        labels = rng.integers(0, CLASSES, count)
        features = (centres[labels] + rng.standard_normal((count, FEATURES))).astype(np.float32)
        write_examples(options.folder / f"{name}.tfrecord", features, labels)
        if name == "test":
            (options.folder / CHECK).mkdir(exist_ok=True)
            write_examples(options.folder / CHECK / "test.tfrecord", features[: options.check], labels[: options.check])
    keras.utils.set_random_seed(1)
    inputs = keras.Input((FEATURES,), name="x")
    x = keras.layers.Dense(options.width, "tanh")(inputs)
    start: Any = keras.initializers.RandomNormal(stddev=(options.layers * options.width) ** -0.5)
    for number in range(options.layers):
        x = keras.layers.Add()([x, keras.layers.Dense(options.width, "tanh", kernel_initializer=start, name=f"deep{number}")(x)])
    model = keras.Model(inputs, keras.layers.Dense(CLASSES)(x))
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.save(options.folder / "model.keras")
    return {"weights": model.count_params()}


def config_of(options: argparse.Namespace, **own: Any) -> InfluenceConfig:
    """The job's options, but for the `own` of a way."""
    from beam_influence.pipelines.config import InfluenceConfig

    last = range(options.layers - options.watched, options.layers)
    return InfluenceConfig(
        model=str(options.folder / "model.keras"),
        train=str(options.folder / "train-*.tfrecord"),
        output=str(options.folder / f"out-{options.child.replace(' ', '-')}"),
        curvature="ekfac",
        weights=f"deep({'|'.join(map(str, last))})/" if options.watched else "all",
        precision="bfloat16" if options.child == "bfloat16" else "native",
        batch_size=32,
        overwrite=True,
        **own,
    )


def fit(options: argparse.Namespace) -> dict[str, Any]:
    """The curvature, once for all ways; kept when it is there."""
    from beam_influence.pipelines.launch import run

    usage = Usage()
    if (options.folder / "out-fit" / "manifest.json").exists():
        return usage.read()
    run(config_of(options, outputs="curvature"), ["--runner=FnApiRunner"])
    return usage.read()


def run_job(options: argparse.Namespace) -> dict[str, Any]:
    """The job as `beam-influence run` runs it with `--curvature_path`."""
    import pyarrow.parquet as pq

    from beam_influence.pipelines.launch import run
    from beam_influence.pipelines.prepare import prepare

    usage = Usage()
    config = config_of(
        options,
        curvature_path=str(options.folder / "out-fit" / "curvature"),
        test=str(options.folder / (CHECK if options.child == CHECK else "") / "test.tfrecord"),
        top_k=TOP_K,
        max_worker_memory=ENOUGH if options.child in ("one round", CHECK) else options.memory,
        query_rank=options.rank if options.child == "factors" else None,
        score_tolerance=options.tolerance if options.child not in WHOLE else 0.0,
    )
    plan = prepare(config).queries
    print(plan.text, file=sys.stderr)
    summary = run(config, ["--runner=FnApiRunner"])
    top: dict[str, dict[str, float]] = {}
    for row in pq.read_table(pathlib.Path(config.output) / "top_k").to_pylist():
        top.setdefault(row["test_id"], {})[row["train_id"]] = row["influence"]
    return {**usage.read(), "rounds": plan.rounds.count, "top": top, "seconds": summary.milliseconds}


def compare(first: dict[str, dict[str, float]], other: dict[str, dict[str, float]]) -> tuple[float, float]:
    """The share of `first`'s pairs that `other` has too, and the largest difference of these, relative to the test point's largest."""
    shared = [(test, train) for test, found in first.items() for train in found if train in other[test]]
    pairs = sum(map(len, first.values()))
    differences = [abs(first[test][train] - other[test][train]) / max(map(abs, first[test].values())) for test, train in shared]
    return len(shared) / pairs, max(differences, default=0.0)


if __name__ == "__main__":
    sys.exit(main())
