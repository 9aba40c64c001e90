"""Whole networks, all weights: EK-FAC and K-FAC on Beam for an MLP, a CNN and a transformer, their time and memory.

The images are scikit-learn's digits enlarged to 28 × 28, each time shifted and with other noise; the sequences are generated: a
class prefers some tokens. The baseline of each ratio is the same job whose scores are all one matrix product over built
gradients (`--score_tolerance 0`), in the same run. Every job is a process of its own.

    python -m benchmarks.networks [--networks mlp,cnn,transformer] [--repeats 3] [--folder out/networks]
"""

from __future__ import annotations

import argparse
import json
import pathlib
import resource
import subprocess
import sys
import time
from typing import Any

from benchmarks.scale import Usage, median, write_examples

TEST, TOP_K, SHARD = 100, 10, 2_500
TRAIN = {"mlp": 20_000, "cnn": 10_000, "transformer": 10_000}
BATCH = {"mlp": 256, "cnn": 64, "transformer": 64}
VOCABULARY, LENGTH, WIDTH, CLASSES = 1_000, 32, 64, 10
WAYS: dict[str, dict[str, Any]] = {
    "ekfac": {"curvature": "ekfac"},
    "kfac": {"curvature": "kfac"},
    "kfac, one product": {"curvature": "kfac", "score_tolerance": 0.0},
}


def main() -> int:
    """Makes the data, measures each network, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=",".join(TRAIN), help="which, separated by commas")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each; the table shows medians")
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("out/networks"), help="where the data goes")
    parser.add_argument("--child", choices=tuple(TRAIN), help=argparse.SUPPRESS)
    parser.add_argument("--way", choices=tuple(WAYS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        folder = options.folder / options.child
        print(json.dumps(run_job(options.child, folder, WAYS[options.way]) if options.way else make(options.child, folder)))
        return 0
    print(f"{'network':<12}{'weights':>9}{'examples':>9} {'':<20}{'wall s':>8}{'CPU s':>8}{'peak MiB':>10}{'over start':>11}  stages, s")
    for network in options.networks.split(","):
        made = in_child(options.folder, network)
        runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
        for _ in range(options.repeats):  # in turn, so that the machine's other work meets both alike
            for way in WAYS:
                runs[way].append(in_child(options.folder, network, "--way", way))
        for way, measured in runs.items():
            stages = "  ".join(f"{stage} {median(measured, 'stages', stage):.1f}" for stage in measured[0]["stages"])
            seconds = f"{median(measured, 'wall'):>8.1f}{median(measured, 'cpu'):>8.1f}"
            memory = f"{median(measured, 'peak'):>10,.0f}{median(measured, 'over'):>11,.0f}"
            print(f"{network:<12}{made['weights']:>9,}{TRAIN[network]:>9,} {way:<20}{seconds}{memory}  {stages}")
        pairs = list(zip(runs["kfac"], runs["kfac, one product"], strict=True))
        ratios = [b["stages"]["score"] / a["stages"]["score"] for a, b in pairs]
        print(f"{'':<12}scoring, one product / cheapest contraction: {min(ratios):.2f} to {max(ratios):.2f}")
        same = all(a["top"] == b["top"] for a, b in pairs)
        print(f"{'':<12}the same {TEST * TOP_K:,} training examples in the same order: {'yes' if same else 'no'}", flush=True)
    return 0


def in_child(folder: pathlib.Path, network: str, *arguments: str) -> dict[str, Any]:
    """One measurement in its own process."""
    command = [sys.executable, "-m", "benchmarks.networks", "--folder", str(folder), "--child", network, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def make(network: str, folder: pathlib.Path) -> dict[str, Any]:
    """The data as TFRecord shards and a trained network; kept when they are there."""
    from beam_influence.influence_ops import device  # quiets TensorFlow before it is imported

    device.configure_tensorflow()
    import keras
    import numpy as np

    count = folder / "made.json"
    if count.exists():
        return json.loads(count.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(5)
    x, y = (draw_sequences if network == "transformer" else draw_images)(rng, TRAIN[network] + TEST)
    for shard, start in enumerate(range(0, TRAIN[network], SHARD)):
        write_examples(folder / f"train-{shard:05d}.tfrecord", x[start : start + SHARD], y[start : start + SHARD])
    write_examples(folder / "test.tfrecord", x[-TEST:], y[-TEST:])
    keras.utils.set_random_seed(1)
    model = {"mlp": make_mlp, "cnn": make_cnn, "transformer": make_transformer}[network]()
    model.compile(keras.optimizers.Adam(2e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    keras.utils.disable_interactive_logging()
    model.fit(x[:-TEST], y[:-TEST], epochs=3, batch_size=128)
    model.save(folder / "model.keras")
    facts = {"weights": model.count_params(), "accuracy": float(model.evaluate(x[-TEST:], y[-TEST:])[1])}
    count.write_text(json.dumps(facts))
    return facts


def draw_images(rng: Any, count: int) -> tuple[Any, Any]:
    """[count, 28, 28, 1] in [0, 1] and labels."""
    import numpy as np
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    chosen = rng.integers(0, len(images), count)
    large = np.kron(images[chosen].reshape(-1, 8, 8) / 16, np.ones((1, 3, 3)))
    canvas = np.zeros((count, 28, 28), dtype=np.float32)
    for row, (dy, dx) in enumerate(rng.integers(0, 5, (count, 2))):
        canvas[row, dy : dy + 24, dx : dx + 24] = large[row]
    canvas += rng.normal(0, 0.1, canvas.shape)
    return canvas[..., None].astype(np.float32), labels[chosen]


def draw_sequences(rng: Any, count: int) -> tuple[Any, Any]:
    """[count, LENGTH] tokens and labels: a third of the tokens are of the class's own."""
    import numpy as np

    labels = rng.integers(0, CLASSES, count)
    own = VOCABULARY // CLASSES
    tokens = rng.integers(0, VOCABULARY, (count, LENGTH))
    of_class = labels[:, None] * own + rng.integers(0, own, (count, LENGTH))
    return np.where(rng.random((count, LENGTH)) < 0.12, of_class, tokens).astype(np.int64), labels


def make_mlp() -> Any:
    """784-64-10: 50,890 weights."""
    import keras

    layers = [keras.layers.Flatten(), keras.layers.Dense(64, "relu"), keras.layers.Dense(CLASSES)]
    return keras.Sequential([keras.Input((28, 28, 1), name="x"), *layers])


def make_cnn() -> Any:
    """Two convolutions and two dense layers: 121,930 weights."""
    import keras

    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((28, 28, 1), name="x"),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(64, "relu"),
            layers.Dense(CLASSES),
        ]
    )


def make_transformer() -> Any:
    """Embedding, two blocks of attention and feed-forward layers with LayerNorm, mean over positions."""
    import keras

    layers = keras.layers
    tokens = keras.Input((LENGTH,), dtype="int32", name="x")
    x = layers.Embedding(VOCABULARY, WIDTH)(tokens)
    for _ in range(2):
        x = layers.LayerNormalization()(x + layers.MultiHeadAttention(4, WIDTH // 4)(x, x))
        x = layers.LayerNormalization()(x + layers.Dense(WIDTH)(layers.Dense(4 * WIDTH, "gelu")(x)))
    return keras.Model(tokens, layers.Dense(CLASSES)(layers.GlobalAveragePooling1D()(x)))


def run_job(network: str, folder: pathlib.Path, way: dict[str, Any]) -> dict[str, Any]:
    """The job as `beam-influence run` runs it."""
    import pyarrow.parquet as pq

    from beam_influence.pipelines.config import InfluenceConfig
    from beam_influence.pipelines.launch import run

    usage, start = Usage(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    began = time.monotonic()
    config = InfluenceConfig(
        model=str(folder / "model.keras"),
        train=str(folder / "train-*.tfrecord"),
        test=str(folder / "test.tfrecord"),
        output=str(folder / "influence"),
        weights="all",
        precision="native",
        batch_size=BATCH[network],
        top_k=TOP_K,
        overwrite=True,
        **way,
    )
    summary = run(config)
    used = usage.read()
    rows = pq.read_table(folder / "influence" / "top_k").sort_by([("test_id", "ascending"), ("rank", "ascending")])
    return {
        **used,
        "wall": time.monotonic() - began,
        "over": used["peak"] - start,
        "stages": {stage: spent / 1000 for stage, spent in summary.milliseconds.items()},
        "top": rows["train_id"].to_pylist(),
    }


if __name__ == "__main__":
    sys.exit(main())
