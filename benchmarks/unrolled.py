"""Does the derivative through a training predict what 1 % fewer examples do? LDS at leave-1 %-out, beside EK-FAC's, on digits or MNIST.

A network is trained once, by the command `unrolled`; then again without random parts of 1 % of its examples, by Keras's own `fit` in
float32 with the same order of the batches, where examples that are left out have the sample weight 0. Each LDS is the mean over test
points of Spearman's correlation over these trainings. `digits`: an MLP 64-32-10 with tanh. `mnist`: the data, network and training of
the MLP of `benchmarks.dattri_table` (relu, dropout 0.1, which draws the same numbers in each training).

    python -m benchmarks.unrolled digits [--retrainings 50] [--activation relu] [--optimizer adam] [--learning_rate 0.003]
    python -m benchmarks.unrolled mnist [--tests 10] [--dropout 0] [--epochs 10] [--folder FOLDER]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import resource
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from beam_influence.influence_ops import device  # sets TensorFlow's log level before it is imported

device.configure_tensorflow()

import keras  # noqa: E402  (after the log level is set)
import numpy as np  # noqa: E402

from beam_influence.influence_ops.evaluation.lds import linear_datamodelling_score  # noqa: E402
from beam_influence.influence_ops.evaluation.score_table import ScoreTable  # noqa: E402
from beam_influence.influence_ops.model.influence_model import InfluenceModel  # noqa: E402
from beam_influence.influence_ops.model.network import load_keras_file  # noqa: E402
from beam_influence.influence_ops.reading.example_batch import ExampleBatch  # noqa: E402
from beam_influence.pipelines.config import InfluenceConfig  # noqa: E402
from beam_influence.pipelines.launch import run  # noqa: E402
from beam_influence.pipelines.unrolled import unroll  # noqa: E402
from beam_influence.pipelines.unrolled_config import UnrolledConfig  # noqa: E402
from benchmarks.dattri_training import mnist  # noqa: E402
from benchmarks.scale import write_examples  # noqa: E402

SHARE = 0.01

Split = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a network is made and trained, where the options say nothing else."""

    hidden: str
    activation: str
    dropout: float
    learning_rate: float
    epochs: int
    tests: int


RECIPES = {"digits": Recipe("32", "tanh", 0.0, 0.02, 10, 100), "mnist": Recipe("128,64", "relu", 0.1, 0.01, 50, 10)}
BATCH = 64


def load(name: str, tests: int, folder: pathlib.Path) -> tuple[Split, Split]:
    """Training set and test points: images [N, F] and labels (N,)."""
    if name == "mnist":
        data = mnist(folder)
        x, y = data["X_train"].astype(np.float32), data["y_train"]
        return (x, y), (data["X_test"][:tests].astype(np.float32), data["y_test"][:tests])
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.data))
    x, y = (digits.data / 16).astype(np.float32)[order], digits.target[order]
    return (x[:1437], y[:1437]), (x[1437 : 1437 + tests], y[1437 : 1437 + tests])


def make_network(features: int, options: argparse.Namespace) -> keras.Model:
    """The network before its training."""
    keras.utils.set_random_seed(options.seed)
    inputs = outputs = keras.Input((features,), name="x")
    for units in map(int, options.hidden.split(",")):
        outputs = keras.layers.Dense(units, activation=options.activation)(outputs)
        if options.dropout:
            outputs = keras.layers.Dropout(options.dropout, seed=options.seed)(outputs)
    model = keras.Model(inputs, keras.layers.Dense(10)(outputs))
    rate: Any = keras.optimizers.schedules.CosineDecay(options.learning_rate, options.steps) if options.cosine else options.learning_rate
    made = {"sgd": lambda: keras.optimizers.SGD(rate, momentum=0.9), "adam": lambda: keras.optimizers.Adam(rate)}[options.optimizer]()
    model.compile(made, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def retrained(before: str, train: Split, test: ExampleBatch, masks: np.ndarray, epochs: int) -> Iterator[np.ndarray]:
    """The losses of the test points after `fit` without the examples that each mask has not, [T] each."""
    model: Any = load_keras_file(before)
    evaluated = InfluenceModel(model, weights="all")
    model.optimizer.build(model.trainable_variables)
    changed = [*model.variables, *model.optimizer.variables]
    start = [np.asarray(variable.value).copy() for variable in changed]
    for mask in masks:
        for variable, value in zip(changed, start, strict=True):
            variable.assign(value)
        kept = mask.astype(np.float32)
        model.fit(*train, sample_weight=kept, batch_size=BATCH, epochs=epochs, shuffle=False, verbose=0)
        evaluated.model.set_weights(model.get_weights())
        yield evaluated.losses(test)


def cpu() -> float:
    """Processor seconds of this process and of those that it waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def measure(options: argparse.Namespace, folder: pathlib.Path) -> dict[str, Any]:
    """All figures."""
    train, test = load(options.data, options.tests, options.folder)
    count = len(train[0])
    options.steps = options.epochs * -(-count // BATCH)
    before = str(folder / "before.keras")
    make_network(train[0].shape[1], options).save(before)
    write_examples(folder / "train.tfrecord", *train)
    write_examples(folder / "test.tfrecord", *test)
    files: dict[str, Any] = {"train": str(folder / "train.tfrecord"), "test": str(folder / "test.tfrecord"), "outputs": "scores"}
    started = cpu()
    unrolled = unroll(
        UnrolledConfig(model=before, **files, output=str(folder / "unrolled"), epochs=options.epochs, batch_size=BATCH),
        ["--runner=FnApiRunner"],
    )
    seconds = {"unrolled": cpu() - started}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    started = cpu()
    trained = unrolled.manifest["config"]["model"]
    run(InfluenceConfig(model=trained, **files, output=str(folder / "ekfac"), weights="all", curvature="ekfac"), ["--runner=FnApiRunner"])
    seconds["ekfac"] = cpu() - started
    tables = {name: ScoreTable(str(folder / name)) for name in ("unrolled", "ekfac")}
    train_ids, test_ids = tables["unrolled"].ids()
    masks = np.ones((options.retrainings, count), dtype=bool)
    for number, mask in enumerate(masks):
        mask[np.random.default_rng([options.seed, 2, number]).choice(count, round(SHARE * count), replace=False)] = False
    points = ExampleBatch(np.array(test_ids, object), *test)
    started = cpu()
    losses = np.array(list(retrained(before, train, points, masks, options.epochs)))
    seconds["retrainings"] = cpu() - started
    found = {name: linear_datamodelling_score(table.subset_sums(masks, train_ids, test_ids), losses) for name, table in tables.items()}
    smoothness = unrolled.manifest["curvature"]["smoothness"]
    figures = {name: {"lds": one.mean, "standard_error": one.standard_error} for name, one in found.items()}
    measured = {"figures": figures, "cpu_seconds": seconds, "smoothness": smoothness, "unrolled_peak_mebibytes": round(peak)}
    return {**vars(options), "folder": str(options.folder), **measured}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=RECIPES)
    parser.add_argument("--retrainings", type=int, default=50)
    parser.add_argument("--tests", type=int, help="test points, from the first on")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--hidden", help="units of each hidden layer, separated by commas")
    parser.add_argument("--activation")
    parser.add_argument("--dropout", type=float, help="after each hidden layer; it draws the same numbers in each training")
    parser.add_argument("--optimizer", choices=("sgd", "adam"), default="sgd")
    parser.add_argument("--learning_rate", type=float)
    parser.add_argument("--cosine", action="store_true", help="a learning rate that falls to 0 by the end")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("out/dattri"), help="where MNIST is kept, once fetched")
    parser.add_argument("--results", help="a JSON file to which the figures are written")
    options = parser.parse_args()
    for name, value in dataclasses.asdict(RECIPES[options.data]).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(options, pathlib.Path(folder))
    print(json.dumps(figures, indent=1))
    for name, one in figures["figures"].items():
        print(f"{name:<10} LDS {one['lds']:.3f} ± {one['standard_error']:.3f}   {figures['cpu_seconds'][name]:.0f} CPU s")
    print(f"{time.monotonic() - started:.0f} s in all, {figures['cpu_seconds']['retrainings']:.0f} CPU s of retrainings")
    if options.results:
        pathlib.Path(options.results).write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
