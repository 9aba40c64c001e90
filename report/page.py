"""The page: what it shows as one object, and the HTML made of it, with all that is not text in the file itself."""

from __future__ import annotations

import dataclasses
import importlib.resources
import re
from collections.abc import Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from beam_influence.report.numbers import amount, change, plain
from beam_influence.report.predictions import Prediction
from beam_influence.report.showing import Shown
from beam_influence.report.tables import Groups, RejectedRows
from beam_influence.report.token_scores import ScoredTokens
from beam_influence.report.words import Fact, Trust


@dataclasses.dataclass(frozen=True)
class Card:
    """An example on the page; what is not known of it is None.

    Attributes:
      id: its id.
      place: its file and index, where the id does not say so.
      shown: the example itself.
      label: in words.
      prediction: the model's, and its loss.
      influence, loss_change: its score, where it has one here.
      tokens, test_tokens: its tokens and the test point's by what they add to the score, where the run has that.
    """

    id: str
    place: str | None = None
    shown: Shown | None = None
    label: str | None = None
    prediction: Prediction | None = None
    influence: float | None = None
    loss_change: float | None = None
    tokens: ScoredTokens | None = None
    test_tokens: ScoredTokens | None = None

    @property
    def name(self) -> str:
        """What a reader who sees no picture is told in its place."""
        return f"{self.id}, label {self.label}" if self.label is not None else self.id


@dataclasses.dataclass(frozen=True)
class Side:
    """One end of a test point's scores: its examples; None, where the run did not keep this end."""

    name: str
    cards: list[Card] | None


@dataclasses.dataclass(frozen=True)
class Point:
    """A test point, and its training examples."""

    card: Card
    sides: tuple[Side, Side]

    @property
    def largest(self) -> float:
        """Its largest |influence|, to sort by."""
        return max((abs(card.influence or 0.0) for side in self.sides for card in side.cards or ()), default=0.0)


@dataclasses.dataclass(frozen=True)
class Share:
    """How much of the total the first part of the examples has: the part, how many they are, and the share of each curve."""

    part: str
    count: str
    shares: list[str]


@dataclasses.dataclass(frozen=True)
class Spread:
    """How concentrated influence is: the chart, and its numbers."""

    svg: Markup
    curves: list[str]
    rows: list[Share]


@dataclasses.dataclass(frozen=True)
class Page:
    """All that the page shows; a part that is None says what is missing in its `notes`.

    Attributes:
      title: of the page.
      asked: what was asked, in sentences.
      sign, unit: what a score means.
      worked: a sentence about one score.
      chosen: how the test points were chosen.
      points: the test points.
      suspicious: the training examples of the largest self-influence.
      groups, groups_of, groups_svg: the groups, and whose loss their removal changes.
      spread: how concentrated influence is.
      facts: tables of facts about the run: a caption, and its lines.
      options: all options that have their defaults.
      rejected: what was left out.
      trust: how far to trust the scores.
      notes: what is missing on the page and why, by part.
    """

    title: str
    asked: list[str]
    sign: str
    unit: str
    worked: str | None
    chosen: str
    points: list[Point]
    suspicious: list[Card] | None
    groups: Groups | None
    groups_of: str
    groups_svg: Markup | None
    spread: Spread | None
    facts: list[tuple[str, list[Fact]]]
    options: list[Fact]
    rejected: RejectedRows
    trust: list[Trust]
    notes: dict[str, list[str]]

    @property
    def has_colours(self) -> bool:
        """Whether tokens are coloured by what they add to a score."""
        return any(card.tokens or card.test_tokens for point in self.points for side in point.sides for card in side.cards or ())

    @property
    def answers(self) -> list[Fact]:
        """The first questions that a reader has, answered."""
        sign = Fact("Is a positive score good?", "Yes: the training example helped. A negative one harmed.")
        return [sign, *self._best(), *self._labels(), *self._weights(), self._left_out()]

    def _best(self) -> Sequence[Fact]:
        for point in self.points:
            best = (point.sides[0].cards or [None])[0]
            if best is not None:
                of_score = f", with the score {plain(best.influence)}"
                of_loss = f": without it, the loss there would be {plain(best.loss_change)} higher"
                size = of_score if best.loss_change is None else of_loss
                return [Fact("What helped most?", f"At {point.card.id}, the first test point below: {best.id}{size}.")]
        return []

    def _labels(self) -> Sequence[Fact]:
        if not self.suspicious:
            return []
        wrong = [card for card in self.suspicious if card.prediction is not None and card.prediction.is_right is False]
        said = f" For {len(wrong)} of the {len(self.suspicious)} shown the model says something else." if wrong else ""
        first = self.suspicious[0]
        label = f", label {first.label}" if first.label else ""
        return [Fact("Which labels look wrong?", f"First of all {first.id}{label}.{said}")]

    def _weights(self) -> Sequence[Fact]:
        return [Fact("Which weights are covered?", fact.value) for _, facts in self.facts for fact in facts if fact.name == "Covered"]

    def _left_out(self) -> Fact:
        count = self.rejected.count
        text = f"Yes, {amount(count, 'example')}; the reasons are below." if count else "No: every example was used."
        return Fact("Was anything left out?", text)


_OPTION = re.compile(r"(--[a-z]\w*(?: [A-Z]+\b| [\w,.]*,\w+)?)")


def with_options(text: str) -> Markup:
    """The text, escaped, with the names of options as code."""
    parts = _OPTION.split(text)
    return Markup("").join(Markup("<code>{}</code>").format(part) if place % 2 else part for place, part in enumerate(parts))


def render(page: Page) -> str:
    """The page as HTML: one file that asks nothing of the network; everything from the user's data is escaped."""
    environment = Environment(
        loader=PackageLoader("beam_influence.report", "templates"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(plain=plain, change=change, options=with_options)
    folder = importlib.resources.files("beam_influence.report") / "templates"
    style, script = (Markup((folder / name).read_text("utf-8")) for name in ("report.css", "report.js"))
    return environment.get_template("report.html").render(page=page, style=style, script=script)
