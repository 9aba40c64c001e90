"""What the demos have in common: wrong labels are put in, files and a model are made, the job is run, and its report written."""

from __future__ import annotations

import csv
import dataclasses
import importlib.resources
import pathlib
import shlex
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import keras
import numpy as np
import tensorflow as tf

from beam_influence.pipelines.demo import DEMOS
from beam_influence.pipelines.load_influence import load_influence

_WRONG = 0.05
_SEED = 7
_SHARDS = {"train": 4, "test": 1}


class Examples(NamedTuple):
    """Examples of one split: the values of each feature, [N] or [N, …], and the labels, [N], as numbers of classes."""

    features: Mapping[str, np.ndarray]
    labels: np.ndarray

    def select(self, rows: np.ndarray) -> Examples:
        """Those at `rows`, in that order."""
        return Examples({name: values[rows] for name, values in self.features.items()}, self.labels[rows])


Splits: TypeAlias = dict[str, Examples]
"""The examples of `train` and `test`."""


@dataclasses.dataclass(frozen=True)
class Demo:
    """A data set, and how it is written, trained on and run.

    Attributes:
      question: what the model is trained to tell, in a few words.
      classes: what each label means, from 0.
      extension: of its files.
      load: its examples, with the right labels.
      write: writes examples to a file.
      network: a model for these training examples, compiled with its loss, not trained.
      epochs, batch_size: of its training.
      options: of `beam-influence run`, beside the model, the files and the output.
    """

    question: str
    classes: tuple[str, ...]
    extension: str
    load: Callable[[], Splits]
    write: Callable[[pathlib.Path, Examples], None]
    network: Callable[[Examples], keras.Model]
    epochs: int
    batch_size: int
    options: tuple[str, ...]


def load_demo(name: str) -> Demo:
    """The demo of a name in `DEMOS`.

    Raises:
      ValueError: its data can't be had, since a package is missing.
    """
    try:
        if name == "digits":
            from beam_influence.pipelines.demo.digits import DEMO
        elif name == "text":
            from beam_influence.pipelines.demo.text import DEMO
        else:
            from beam_influence.pipelines.demo.table import DEMO
        return DEMO
    except ImportError as error:
        raise ValueError(f"the demo {name} needs the extra demo: pip install 'beam-influence[demo]' ({error})") from error


def stored_rows(name: str) -> list[dict[str, str]]:
    """The rows of a CSV file in the folder data, by column."""
    data = importlib.resources.files("beam_influence.pipelines.demo") / "data" / name
    return list(csv.DictReader(data.read_text(encoding="utf-8").splitlines()))


def shuffled(examples: Examples, tests: int) -> Splits:
    """Shuffles examples, once and for all with one seed; the first `tests` are test points."""
    order = np.random.default_rng(_SEED).permutation(len(examples.labels))
    return {"train": examples.select(order[tests:]), "test": examples.select(order[:tests])}


def with_wrong_labels(examples: Examples, classes: int) -> tuple[Examples, np.ndarray]:
    """The examples with 5 % of their labels changed to another class, and the places of these, rising."""
    random = np.random.default_rng(_SEED)
    count = len(examples.labels)
    places = np.sort(random.choice(count, round(_WRONG * count), replace=False))
    labels = examples.labels.copy()
    labels[places] = (labels[places] + random.integers(1, classes, len(places))) % classes
    return examples._replace(labels=labels), places


def write_split(demo: Demo, folder: pathlib.Path, split: str, examples: Examples) -> tuple[str, list[str]]:
    """Writes a split as shards; returns their pattern, and the id that each example has there, `<file>:<index>`."""
    count, ids = _SHARDS[split], []
    for shard, rows in enumerate(np.array_split(np.arange(len(examples.labels)), count)):
        path = folder / f"{split}-{shard:05d}-of-{count:05d}.{demo.extension}"
        demo.write(path, examples.select(rows))
        ids += [f"{path.name}:{index}" for index in range(len(rows))]
    return str(folder / f"{split}-*.{demo.extension}"), ids


def run_demo(name: str, folder: pathlib.Path, command_line: Callable[[list[str]], int]) -> int:
    """Makes the demo's data and model, runs `beam-influence run` and `report` on them, and says what was found.

    Args:
      name: of the demo.
      folder: where everything goes; files of these names in it are replaced.
      command_line: runs the words after `beam-influence`, and returns their exit status.

    Returns:
      the exit status.
    """
    demo = load_demo(name)
    folder.mkdir(parents=True, exist_ok=True)
    splits = demo.load()
    train, wrong = with_wrong_labels(splits["train"], len(demo.classes))
    patterns, train_ids = {}, []
    for split, examples in (("test", splits["test"]), ("train", train)):
        patterns[split], train_ids = write_split(demo, folder, split, examples)
    planted = [train_ids[place] for place in wrong]
    (folder / "wrong_labels.txt").write_text("".join(f"{one}\n" for one in planted), encoding="utf-8")
    count = len(train.labels)
    print(f"The demo {name}: {DEMOS[name]}. {demo.question}")
    print(f"{count:,} training examples, {len(planted)} of them given a wrong label.", flush=True)
    model = trained_model(demo, train)
    model.save(folder / "model.keras")
    accuracy = np.mean(_classes(model, splits["test"]) == splits["test"].labels)
    print(f"A small model is trained; accuracy on {len(splits['test'].labels)} test examples: {accuracy:.2f}", flush=True)
    output, page = folder / "influence", folder / "report.html"
    run = [
        "run", "--model", str(folder / "model.keras"), "--train", patterns["train"], "--test", patterns["test"],
        "--output", str(output), *demo.options, "--top_k", "10", "--outputs", "top_k,self_influence,group_influence,scores", "--overwrite",
    ]  # fmt: skip
    for command in (run, ["report", str(output), "--class_names", ",".join(demo.classes), "--output", str(page)]):
        print(f"\n$ beam-influence {shlex.join(command)}\n", flush=True)
        status = command_line(command)
        if status:
            return status
    print(f"\n{_found(output, planted, count)}")
    print(f"Open the report in a browser: {page.resolve().as_uri()}")
    return 0


def trained_model(demo: Demo, examples: Examples) -> keras.Model:
    """The demo's model, trained on examples."""
    keras.utils.disable_interactive_logging()
    keras.utils.set_random_seed(1)
    model = demo.network(examples)
    model.fit(_inputs(examples), examples.labels, epochs=demo.epochs, batch_size=demo.batch_size)
    return model


def _inputs(examples: Examples) -> tf.Tensor | dict[str, tf.Tensor]:
    inputs = {name: tf.constant(values) for name, values in examples.features.items()}
    return inputs if len(inputs) > 1 else next(iter(inputs.values()))


def _classes(model: keras.Model, examples: Examples) -> np.ndarray:
    outputs = model.predict(_inputs(examples), verbose="0")
    return outputs.argmax(axis=1) if outputs.shape[1] > 1 else (outputs[:, 0] > 0.5).astype(int)


def _found(output: pathlib.Path, planted: list[str], count: int) -> str:
    own = load_influence(output).self_influence.sort_by([("influence", "descending"), ("train_id", "ascending")])
    first = own.column("train_id").slice(0, len(planted)).to_pylist()
    found, chance = len(set(first) & set(planted)), len(planted) ** 2 / count
    return (
        f"Of the {len(planted)} wrong labels, {found} are among the {len(planted)} training examples of the largest self-influence; "
        f"by chance {chance:.1f} would be. Their ids are in {output.parent / 'wrong_labels.txt'}."
    )
