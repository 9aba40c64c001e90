"""What the model says of the examples that a page shows, and its loss there."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from beam_influence.influence_ops.model.explained_model import ExplainedModel
from beam_influence.influence_ops.model.network import feed
from beam_influence.influence_ops.reading import Rows
from beam_influence.influence_ops.reading.decode import RowDecoder
from beam_influence.influence_ops.reading.example_batch import ExampleBatch
from beam_influence.influence_ops.reading.features import FeatureSpec
from beam_influence.report.showing import in_words

_BATCH = 64


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What the model says of an example.

    Attributes:
      text: in words.
      loss: of the example, as the run's loss has it; None where it can't be computed.
      label: of a classifier, the label as the model's loss takes it; None where the outputs are no classes.
      is_right: of a classifier, whether the class of the largest output is the label; None: not known.
    """

    text: str
    loss: float | None
    label: str | None = None
    is_right: bool | None = None


class Predictor:
    """Evaluates rows of a split by the run's model.

    Args:
      model: the model that was scored.
      spec: how the split's rows are decoded.
      classes: the names of the classes, from class 0; those without one are numbers.
    """

    def __init__(self, model: ExplainedModel, spec: FeatureSpec, classes: Sequence[str] = ()):
        self._model = model
        self._classes = classes
        self._decoder = RowDecoder(spec)

    def predict(self, name: str, rows: Rows, ids: Sequence[str]) -> dict[str, Prediction]:
        """Of the rows of a file that can be decoded, by id."""
        by_position = dict(zip(rows.positions.tolist(), ids, strict=True))
        batch, _ = self._decoder.decode(rows, name)
        found = {}
        for start in range(0, len(batch), _BATCH):
            part = batch.select(np.arange(start, min(start + _BATCH, len(batch))))
            assert part.positions is not None
            names = [by_position[position] for position in part.positions.tolist()]
            found.update(zip(names, self._of_batch(part), strict=True))
        return found

    def _of_batch(self, batch: ExampleBatch) -> list[Prediction]:
        try:
            losses: Sequence[float | None] = self._model.losses(batch).tolist()
        except (ValueError, tf.errors.OpError):  # such as a label that is no class: the run itself has rejected it
            losses = [None] * len(batch)
        outputs, ends_in_sigmoid = self._outputs(batch)
        if not isinstance(outputs, np.ndarray):
            texts = [", ".join(f"{name}: {in_words(value[row])}" for name, value in outputs.items()) for row in range(len(batch))]
            return [Prediction(text, loss) for text, loss in zip(texts, losses, strict=True)]
        labels = [None] * len(batch) if isinstance(batch.labels, (tuple, Mapping)) else list(np.asarray(batch.labels))
        of_each = zip(outputs, labels, losses, strict=True)
        return [prediction(output, label, loss, ends_in_sigmoid, self._classes) for output, label, loss in of_each]

    def _outputs(self, batch: ExampleBatch) -> tuple[np.ndarray | dict[str, np.ndarray], bool]:
        """The outputs, by name where they are several; whether they are those of a last sigmoid, beside which Keras keeps the logits."""
        network = self._model.parts[-1].network
        inputs: Any = dict(batch.inputs) if isinstance(batch.inputs, Mapping) else batch.inputs
        found = network.model(feed(network.model, inputs, network.dtype), training=False)
        if isinstance(found, Mapping):
            return {str(name): np.asarray(value) for name, value in found.items()}, False
        if isinstance(found, (list, tuple)) and len(found) > 1:
            return {f"output {place}": np.asarray(value) for place, value in enumerate(found)}, False
        only = found[0] if isinstance(found, list) else found
        return np.asarray(only), hasattr(only, "_keras_logits")


def class_name(number: int, classes: Sequence[str]) -> str:
    """What a class is called."""
    return classes[number] if 0 <= number < len(classes) else str(number)


def prediction(
    output: np.ndarray, label: np.ndarray | None, loss: float | None, ends_in_sigmoid: bool = True, classes: Sequence[str] = ()
) -> Prediction:
    """One example's output in words: a class with its probability, or with its output where these are no probabilities.

    A single number is the probability of class 1 only where it `ends_in_sigmoid`: a logit between 0 and 1, or what a regression says of a
    target that is 0 or 1, looks like one.
    """
    loss = None if loss is None or not np.isfinite(loss) else loss
    output = np.asarray(output, np.float64)
    size = np.size(label) if label is not None else 0
    if output.ndim == 1 and output.size > 1:
        of_class = _class(label, output.size)
        if of_class is None and size == output.size:
            return Prediction(in_words(output), loss)
        best = int(output.argmax())
        sure = abs(output.sum() - 1) < 1e-3 and output.min() >= 0
        said = class_name(best, classes)
        text = f"{said} ({_percent(output[best])})" if sure else f"{said} (output {output[best]:.4g})"
        given = None if of_class is None else class_name(of_class, classes)
        return Prediction(text, loss, given, None if of_class is None else best == of_class)
    if output.size == 1:
        value = float(output.reshape(-1)[0])
        given = None if size != 1 else np.asarray(label).reshape(-1)[0]
        if ends_in_sigmoid and given is not None and given in (0, 1) and 0 <= value <= 1:
            text = f"{class_name(int(value > 0.5), classes)} ({_percent(max(value, 1 - value))})"
            return Prediction(text, loss, class_name(int(given), classes), bool((value > 0.5) == bool(given)))
        return Prediction(f"{value:.5g}", loss)
    return Prediction(in_words(output), loss)


def _class(label: np.ndarray | None, classes: int) -> int | None:
    """The class that a label of a classifier is: its number, or the place of the only one."""
    if label is None:
        return None
    values = np.asarray(label)
    if values.size == 1 and values.dtype.kind in "iuf":
        number = float(values.reshape(-1)[0])
        return int(number) if number == int(number) and 0 <= number < classes else None
    one_hot = values.ndim == 1 and values.size == classes and values.max() == 1 and np.count_nonzero(values) == 1
    return int(values.argmax()) if one_hot else None


def _percent(part: float) -> str:
    """Such as 97 %, 99.8 % or 0.3 %; never 100 % of what is less."""
    if part in (0, 1):
        return f"{100 * part:.0f} %"
    return "over 99.99 %" if part > 0.9999 else f"{100 * part:.2f} %" if part > 0.99 or part < 0.01 else f"{100 * part:.0f} %"
