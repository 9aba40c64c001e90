"""What `benchmarks.speed` measures: each a function of a folder for data, which returns its seconds and what it found.

    python -m benchmarks.speed_sides SIDE FOLDER EXAMPLES [TORCH_PYTHON]
"""

from __future__ import annotations

import json
import pathlib
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks import bare_loop, networks, numpy_softmax, png_images, scale
from benchmarks.torch_answers import DATTRI_DAMPING, answer_of

LAST, TEST, TOP_K = 100_000, networks.TEST, networks.TOP_K
KRONFLUENCE_LAYERS = ".*(multi_head_attention|dense).*"  # those of the transformer that it has factors of
Measured = dict[str, Any]


def last_job(folder: pathlib.Path) -> Measured:
    """`benchmarks.scale`'s job."""
    scale.make(folder / "last", LAST)
    return _numbers(scale.run_job(folder / "last", LAST))


def last_numpy(folder: pathlib.Path) -> Measured:
    """Its answer in NumPy."""
    return _numbers(scale.run_numpy(folder / "last", LAST))


def _numbers(found: Measured) -> Measured:
    return {key: found[key] for key in ("cpu", "wall", "peak", "top")}


def examples() -> int:
    """How many training examples of a network are read."""
    return int(sys.argv[3])


def _like_theirs(folder: pathlib.Path, network: str, curvature: str = "ekfac", **options: Any) -> Measured:
    """The job with the labels of the data, as kronfluence has them."""
    return _network_job(folder, network, curvature=curvature, fisher="empirical", **options)


def wide_job(folder: pathlib.Path) -> Measured:
    """The whole Gauss–Newton matrix of softmax regression."""
    return _network_job(folder, "softmax", curvature="gauss_newton", precision="float64")


def wide_numpy(folder: pathlib.Path) -> Measured:
    """Its answer in NumPy."""
    return numpy_softmax.answer(networks.arrays("softmax", folder / "softmax", examples()))


def ekfac_job(folder: pathlib.Path) -> Measured:
    """EK-FAC of the MLP."""
    return _like_theirs(folder, "mlp")


def kfac_job(folder: pathlib.Path) -> Measured:
    """K-FAC of the MLP."""
    return _like_theirs(folder, "mlp", "kfac")


def cnn_job(folder: pathlib.Path) -> Measured:
    """EK-FAC of the CNN."""
    return _like_theirs(folder, "cnn")


def cnn_one_product(folder: pathlib.Path) -> Measured:
    """The same, scored by one product over built gradients."""
    return _like_theirs(folder, "cnn", score_tolerance=0.0)


def transformer_job(folder: pathlib.Path) -> Measured:
    """EK-FAC of the transformer's dense layers and attention."""
    return _like_theirs(folder, "transformer", weights=KRONFLUENCE_LAYERS)


def ekfac_kronfluence(folder: pathlib.Path) -> Measured:
    """`ekfac_job` by kronfluence."""
    return _by_torch(folder, "kronfluence", "ekfac", "mlp")


def kfac_kronfluence(folder: pathlib.Path) -> Measured:
    """`kfac_job` by kronfluence."""
    return _by_torch(folder, "kronfluence", "kfac", "mlp")


def cnn_kronfluence(folder: pathlib.Path) -> Measured:
    """`cnn_job` by kronfluence."""
    return _by_torch(folder, "kronfluence", "ekfac", "cnn")


def transformer_kronfluence(folder: pathlib.Path) -> Measured:
    """`transformer_job` by kronfluence."""
    return _by_torch(folder, "kronfluence", "ekfac", "transformer")


def damped_job(folder: pathlib.Path) -> Measured:
    """EK-FAC of the MLP with the damping that dattri has here."""
    return _like_theirs(folder, "mlp", damping=str(DATTRI_DAMPING))


def damped_dattri(folder: pathlib.Path) -> Measured:
    """The same by dattri, which has one damping for all layers."""
    return _by_torch(folder, "dattri", "ekfac", "mlp")


def _by_torch(folder: pathlib.Path, system: str, strategy: str, network: str) -> Measured:
    return answer_of(sys.argv[4], folder / network, examples(), system, strategy, network)


def stage_job(folder: pathlib.Path) -> Measured:
    """The seconds of the scoring stage."""
    found = _network_job(folder, "mlp", curvature="ekfac")
    return {"wall": found["score"]}


def stage_bare(folder: pathlib.Path) -> Measured:
    """The bare loop."""
    return bare_loop.run(folder / "mlp", examples())


def two_processes(folder: pathlib.Path) -> Measured:
    """EK-FAC and self-influence of 600,000 PNG images in two worker processes of one thread."""
    return _image_passes(folder, ["--runner=local", "--workers=2"])


def one_process(folder: pathlib.Path) -> Measured:
    """The same in one process of one thread."""
    return _image_passes(folder)


def _image_passes(folder: pathlib.Path, engine: list[str] | None = None) -> Measured:
    data = png_images.many_images(folder / "images")
    reading: dict[str, Any] = {"preprocess": "benchmarks.png_images:decoded", "batch_size": 256, "threads": 1}
    return _job(data, engine, curvature="ekfac", outputs="top_k,self_influence", **reading)


def start_job(folder: pathlib.Path) -> Measured:
    """The whole command over one file of 2,500 examples."""
    networks.make("mlp", folder / "mlp")
    data = folder / "mlp"
    paths = {"model": "model.keras", "train": "train-00000.tfrecord", "test": "test.tfrecord", "output": "start"}
    return _command("run", "--curvature=kfac", "--weights=all", "--overwrite", *(f"--{name}={data / path}" for name, path in paths.items()))


def start_help(folder: pathlib.Path) -> Measured:
    """`beam-influence --help`."""
    return _command("--help")


def _command(*arguments: str) -> Measured:
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "beam_influence.pipelines.cli", *arguments], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": time.monotonic() - began, "cpu": cpu}


def images_job(folder: pathlib.Path) -> Measured:
    """K-FAC over PNG images: a pass for the curvature, one for the scores."""
    data = png_images.make_images(folder / "images")
    return _job(data, curvature="kfac", preprocess="benchmarks.png_images:decoded")


def passes_job(folder: pathlib.Path) -> Measured:
    """Five passes over PNG images: two of EK-FAC, three rounds of scores."""
    return _five_passes(folder, "auto")


def passes_anew(folder: pathlib.Path) -> Measured:
    """The same, each pass decoding them."""
    return _five_passes(folder, "off")


def _five_passes(folder: pathlib.Path, decoded_cache: str) -> Measured:
    data = png_images.make_images(folder / "images")
    rounds: dict[str, Any] = {"max_worker_memory": "4MB", "score_tolerance": 0.0}
    reading: dict[str, Any] = {"preprocess": "examples.decode_images:decode_images", "decoded_cache": decoded_cache}
    return _job(data, train="train-00000.tfrecord", curvature="ekfac", batch_size=256, **rounds, **reading)


def images_fit(folder: pathlib.Path) -> Measured:
    """Two epochs of `model.fit` on the same files."""
    from beam_influence.influence_ops import device

    device.configure_tensorflow()
    import keras
    import tensorflow as tf

    data = png_images.make_images(folder / "images")
    model: Any = keras.models.load_model(data / "model.keras")
    features = {"image": tf.io.FixedLenFeature([], tf.string), "label": tf.io.FixedLenFeature([], tf.int64)}

    def parse(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        found = tf.io.parse_single_example(record, features)
        return png_images.decode_one(found["image"]), found["label"]

    examples = tf.data.TFRecordDataset(sorted(map(str, data.glob("train-*.tfrecord")))).map(parse).batch(256).prefetch(2)
    cpu, wall = time.process_time(), time.monotonic()
    keras.utils.disable_interactive_logging()
    model.fit(examples, epochs=2)
    return {"cpu": time.process_time() - cpu, "wall": time.monotonic() - wall}


def index_build(folder: pathlib.Path) -> Measured:
    """An index of the MLP's training examples by EK-FAC, 200 numbers for each."""
    networks.make("mlp", folder / "mlp")
    return _job(folder / "mlp", outputs="index", test="", curvature="ekfac", rank=200, output="index", batch_size=networks.BATCH["mlp"])


def index_query(folder: pathlib.Path) -> Measured:
    """The test points by that index."""
    if not (folder / "mlp" / "index" / "manifest.json").exists():
        index_build(folder)
    return _job(folder / "mlp", train="", index="index", output="query")


def _network_job(folder: pathlib.Path, network: str, engine: list[str] | None = None, **options: Any) -> Measured:
    """The job over the first examples of a network's."""
    networks.make(network, folder / network)
    files = [f"train-{shard:05d}.tfrecord" for shard in range(examples() // networks.SHARD)]
    return _job(folder / network, engine, ",".join(files), batch_size=networks.BATCH[network], **options)


def _job(data: pathlib.Path, engine: list[str] | None = None, train: str = "train-*.tfrecord", **options: Any) -> Measured:
    """The job over all weights as `beam-influence run` runs it; the top of each test point as rows of the training set."""
    import pyarrow.parquet as pq

    from beam_influence.pipelines.config import InfluenceConfig
    from beam_influence.pipelines.launch import run

    usage, start = scale.Usage(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    paths = {"model": "model.keras", "train": train, "test": "test.tfrecord", "output": "out", "index": ""}
    paths |= {name: value for name, value in options.items() if name in paths}
    options |= {name: ",".join(str(data / each) for each in path.split(",")) if path else None for name, path in paths.items()}
    settings = {"weights": "all", "precision": "native", "top_k": TOP_K, "overwrite": True, **options}
    summary = run(InfluenceConfig(**settings), engine or [])
    used = usage.read()
    if not paths["test"]:
        return used
    rows = pq.read_table(data / paths["output"] / "top_k").sort_by([("rank", "ascending")]).to_pylist()
    top: list[list[int]] = [[] for _ in range(TEST)]
    for row in rows:
        file, _, index = row["train_id"].rpartition(":")
        shard = int(file.removesuffix(".tfrecord").rpartition("-")[2]) if "-" in file else 0
        top[int(row["test_id"].rpartition(":")[2])].append(shard * networks.SHARD + int(index))
    return {**used, "over": used["peak"] - start, "score": summary.milliseconds["score"] / 1000, "top": top}


SIDES: dict[str, Callable[[pathlib.Path], Measured]] = {
    each.__name__: each
    for each in (
        last_job, last_numpy, wide_job, wide_numpy, ekfac_job, ekfac_kronfluence, damped_job, damped_dattri, kfac_job, kfac_kronfluence,
        cnn_job, cnn_kronfluence, cnn_one_product, transformer_job, transformer_kronfluence, stage_job, stage_bare, two_processes,
        one_process, start_job, start_help, images_job, images_fit, passes_job, passes_anew, index_build, index_query,
    )
}  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(SIDES[sys.argv[1]](pathlib.Path(sys.argv[2]))))
