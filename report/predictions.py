"""What the model says of the examples that a page shows, and its loss there."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from beam_influence.influence_ops.model.explained_model import ExplainedModel
from beam_influence.influence_ops.model.network import declared_outputs, feed
from beam_influence.influence_ops.reading import Rows
from beam_influence.influence_ops.reading.decode import RowDecoder
from beam_influence.influence_ops.reading.example_batch import ExampleBatch
from beam_influence.influence_ops.reading.features import FeatureSpec
from beam_influence.report.showing import in_words

_BATCH = 64
_MOST_TAGS = 100  # more outputs are a picture, a text or the like
_LISTED = 6


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What the model says of an example.

    Attributes:
      text: in words.
      loss: of the example, as the run's loss has it; None where it can't be computed.
      label: of a classifier, the label as the model's loss takes it; None where the outputs are no classes.
      is_right: of a classifier, whether the class of the largest output is the label, or all its labels are, where an example may have
        several; None: not known.
      weight: of the example in the training loss, which `loss` is without; None: it has none, or one for each position, which is in `loss`.
    """

    text: str
    loss: float | None
    label: str | None = None
    is_right: bool | None = None
    weight: float | None = None


class Predictor:
    """Evaluates rows of a split by the run's model.

    Args:
      model: the model that was scored.
      spec: how the split's rows are decoded.
      classes: the names of the classes, from class 0; empty: their numbers.

    Raises:
      ValueError: there is another number of classes.
    """

    def __init__(self, model: ExplainedModel, spec: FeatureSpec, classes: Sequence[str] = ()):
        self._model = model
        _check_classes(classes, model)
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
        weights = batch.weights
        if weights is not None and weights.size == len(batch) and not self._model.training_loss.takes_weights:
            batch = dataclasses.replace(batch, weights=None)
        else:
            weights = None
        try:
            losses: Sequence[float | None] = self._model.losses(batch).tolist()
        except (ValueError, tf.errors.OpError):  # such as a label that is no class: the run itself has rejected it
            losses = [None] * len(batch)
        outputs, ends_in_sigmoid = self._outputs(batch)
        if not isinstance(outputs, np.ndarray):
            texts = [", ".join(f"{name}: {in_words(value[row])}" for name, value in outputs.items()) for row in range(len(batch))]
            return [Prediction(text, loss) for text, loss in zip(texts, losses, strict=True)]
        labels = [None] * len(batch) if isinstance(batch.labels, (tuple, Mapping)) else list(np.asarray(batch.labels))
        several = _has_tags(self._model.loss_name, ends_in_sigmoid)
        of_each = zip(outputs, labels, losses, strict=True)
        found = [prediction(output, label, loss, ends_in_sigmoid, self._classes, several) for output, label, loss in of_each]
        if weights is None:
            return found
        return [dataclasses.replace(one, weight=float(weight)) for one, weight in zip(found, weights.reshape(-1), strict=True)]

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


def _check_classes(classes: Sequence[str], model: ExplainedModel) -> None:
    shapes = list(declared_outputs(model.network.original).values())
    if classes and len(shapes) == 1 and len(shapes[0]) == 1 and shapes[0][0] is not None:
        wanted = max(2, shapes[0][0])
        if len(classes) != wanted:
            raise ValueError(f"--class_names {','.join(classes)!r} has {len(classes)} names; the model tells {wanted} classes: name each")


def _has_tags(loss_name: str, ends_in_sigmoid: bool) -> bool:
    """Whether each of several outputs is a label by itself, of which an example may have any number."""
    name = loss_name.lower()
    return "binary" in name or "sigmoid" in name or (ends_in_sigmoid and "categorical" not in name and "softmax" not in name)


def prediction(
    output: np.ndarray,
    label: np.ndarray | None,
    loss: float | None,
    ends_in_sigmoid: bool = True,
    classes: Sequence[str] = (),
    has_tags: bool = False,
) -> Prediction:
    """One example's output in words: a class with its probability, or with its output where these are no probabilities.

    A single number is the probability of class 1 only where it `ends_in_sigmoid`: a logit between 0 and 1, or what a regression says of a
    target that is 0 or 1, looks like one. Where the model `has_tags`, each of several outputs is a label that the example has or has not.
    """
    loss = None if loss is None or not np.isfinite(loss) else loss
    output = np.asarray(output, np.float64)
    size = np.size(label) if label is not None else 0
    if output.ndim == 1 and output.size > 1 and has_tags:
        return _of_tags(output if ends_in_sigmoid else 1 / (1 + np.exp(-output)), label, loss, classes)
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


def _of_tags(chances: np.ndarray, label: np.ndarray | None, loss: float | None, classes: Sequence[str]) -> Prediction:
    """The labels that an example has, each by itself; those with a chance above a half are what the model says."""
    given = None if label is None or np.size(label) != chances.size else np.asarray(label).reshape(-1)
    if chances.size > _MOST_TAGS or (given is not None and not np.isin(given, (0, 1)).all()):
        return Prediction(in_words(chances), loss)
    said = chances > 0.5
    text = _listed([f"{class_name(tag, classes)} ({_percent(chances[tag])})" for tag in np.flatnonzero(said).tolist()])
    if given is None:
        return Prediction(text, loss)
    names = [class_name(tag, classes) for tag in np.flatnonzero(given).tolist()]
    return Prediction(text, loss, _listed(names), bool((said == given).all()))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "") or "none"


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
