"""The examples of a report, found in the run's sources: as they are shown, with their labels and predictions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from beam_influence.pipelines.report_sources import RunSources, SplitSource
from beam_influence.report.examples import StoredExample, stored_examples
from beam_influence.report.page import Card
from beam_influence.report.pictures import LARGEST_SIDE
from beam_influence.report.predictions import Prediction, class_name
from beam_influence.report.showing import Shown, View, in_words
from beam_influence.report.strongest import Score

PICTURE_BYTES = 1_200_000
"""What all pictures of a page take together, so that it stays below 2 MB; where they would take more, they are made smaller."""
_SIDES = (LARGEST_SIDE, 64, 48, 32)


class _Found(NamedTuple):
    shown: Shown
    label: str | None
    place: str
    prediction: Prediction | None


class ReportExamples:
    """Looks up examples by their ids.

    Attributes:
      missing: how many of a split's examples are not in its files any more.
    """

    def __init__(self, sources: RunSources):
        self._sources = sources
        self._found: dict[tuple[str, str], _Found] = {}
        self.missing: dict[str, int] = {}

    def find(self, split: str, ids: Iterable[str], picture_bytes: int) -> None:
        """Finds a split's examples, each once.

        Args:
          ids: theirs.
          picture_bytes: what their pictures may take on the page, each as often as `ids` has it.
        """
        ids = list(ids)
        opened = self._sources.splits.get(split)
        if opened is None or not ids:
            return
        stored: list[StoredExample] = []
        predictions: dict[str, Prediction] = {}
        for name, rows, of_rows in opened.source.find(dict.fromkeys(ids)):
            stored += stored_examples(name, rows, of_rows)
            if opened.predictor is not None:
                predictions |= opened.predictor.predict(name, rows, of_rows)
        self.missing[split] = len(set(ids) - {example.id for example in stored})
        shown = _fitting(stored, opened, ids, picture_bytes)
        for example in stored:
            place = f"{example.file}, number {example.index:,}"
            predicted = predictions.get(example.id)
            label = (predicted and predicted.label) or _label(example, opened)
            self._found[split, example.id] = _Found(shown[example.id], label, place, predicted)

    def notes(self) -> list[str]:
        """What could not be found, in words."""
        words = {"train": "training examples", "test": "test points"}
        return [
            f"{count:,} of the {words[split]} shown are not in the files any more: they are named only."
            for split, count in self.missing.items()
            if count
        ]

    def card(self, split: str, name: str, score: Score | None = None) -> Card:
        """The example on the page, with its score where it has one."""
        influence, change = (None, None) if score is None else (score.influence, score.loss_change)
        found = self._found.get((split, name))
        if found is None:
            return Card(name, influence=influence, loss_change=change)
        place = found.place if self._sources.has_id_feature else None
        return Card(name, place, found.shown, found.label, found.prediction, influence, change)


def _label(example: StoredExample, opened: SplitSource) -> str | None:
    known = {name: in_words(example.values[name]) for name in opened.labels if example.values.get(name) is not None}
    if len(known) == 1:
        only = next(iter(known.values()))
        return class_name(int(only), opened.classes) if only.isdecimal() else only
    return ", ".join(f"{name}: {value}" for name, value in known.items()) or None


def _fitting(stored: list[StoredExample], opened: SplitSource, ids: list[str], limit: int) -> dict[str, Shown]:
    """The examples as they are shown, their pictures so small that they take no more than `limit` bytes."""
    shown: dict[str, Shown] = {}
    for side in _SIDES:
        view = View(stored, opened.show, side)
        shown = {example.id: view.show(example) for example in stored}
        if sum(len(one.picture.uri) for name in ids if (one := shown.get(name)) and one.picture) <= limit:
            break
    return shown
