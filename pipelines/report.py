"""`beam-influence report`: a finished run as one page that a person reads."""

from __future__ import annotations

import dataclasses
import html
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from beam_influence.pipelines.config import InfluenceConfig
from beam_influence.pipelines.evaluate_config import MEASURES
from beam_influence.pipelines.load_influence import Influence, load_influence
from beam_influence.pipelines.report_config import ReportConfig
from beam_influence.pipelines.report_examples import PICTURE_BYTES, ReportExamples
from beam_influence.pipelines.report_sources import RunSources
from beam_influence.pipelines.runners import open_file_systems
from beam_influence.report.charts import PARTS, Curve, svg_of_concentration, svg_of_groups
from beam_influence.report.missing import OF_TEST_POINTS, OF_TRAINING_EXAMPLES, asked, chosen_in_words, missing_parts, whose_loss
from beam_influence.report.page import Card, Page, Point, Share, Side, Spread, render
from beam_influence.report.strongest import Score
from beam_influence.report.tables import PointScores, RunTables, SelfInfluence
from beam_influence.report.token_scores import ByPosition, scored_tokens
from beam_influence.report.words import count_facts, curvature_facts, option_facts, trust, weight_facts, worked_sentence
from beam_influence.transforms.files import BeamFiles, join

SHOWN = OF_TEST_POINTS | OF_TRAINING_EXAMPLES
"""The tables of which a page can be made."""
_SUSPICIOUS = 24
_ByPosition: TypeAlias = Mapping[tuple[str, str], tuple[ByPosition, ByPosition]]
"""Of a test point's and a training example's id: their score by the training example's positions, and by the test point's."""


@dataclasses.dataclass(frozen=True)
class WrittenReport:
    """A report: where it is, its bytes, how many test points it shows, and what it could not show."""

    path: str
    size: int
    points: int
    notes: list[str]


def write_report(config: ReportConfig, beam_arguments: Sequence[str] = ()) -> WrittenReport:
    """Makes the page of a finished run.

    Args:
      config: the options.
      beam_arguments: options of the file systems that the run and its sources are on.

    Raises:
      ValueError: there is no such run, or an option does not fit it.
    """
    if beam_arguments:
        open_file_systems(beam_arguments)
    page = make_page(config)
    data = render(page).encode()
    try:
        BeamFiles().write(config.output, data)
    except OSError as error:
        raise ValueError(f"--output {config.output!r} can't be written: {error}") from error
    return WrittenReport(config.output, len(data), len(page.points), [note for notes in page.notes.values() for note in notes])


def report_text(report: WrittenReport) -> str:
    """What is told on the terminal."""
    points = "1 test point" if report.points == 1 else f"{report.points:,} test points"
    return "\n".join([*report.notes, f"{report.path}: {points}, {report.size / 1e6:.2f} MB"])


def frame(folder: str, points: int = 5) -> str:
    """The page of a run as an element of another page, whose styles and its own stay apart."""
    page = html.escape(render(make_page(ReportConfig(folder, test_points=str(points)))))
    title = html.escape(f"Influence report: {folder}")
    style = "width: 100%; height: 40rem; border: 1px solid #888"
    return f'<iframe title="{title}" srcdoc="{page}" sandbox="allow-scripts" style="{style}"></iframe>'


def make_page(config: ReportConfig) -> Page:
    """All that the page of a run shows.

    Raises:
      ValueError: as of `write_report`.
    """
    influence = load_influence(config.results)
    tables = RunTables(config.results, influence.manifest)
    if not tables.names & SHOWN:
        wrote = ", ".join(sorted(tables.names))
        raise ValueError(f"the run in {config.results!r} wrote no scores, but {wrote}; a report shows what the commands run and query give")
    if tables.of_candidates:
        raise ValueError(
            f"the run in {config.results!r} scored --candidates; a report shows training examples: give a run or query without --candidates"
        )
    measured = _measured(config)
    chosen = config.point_ids if config.point_count is None else tables.choose_points(config.point_count)
    scored = tables.of_points(chosen, config.top_k) if chosen else []
    suspicious = tables.self_influence(_SUSPICIOUS)
    sources = RunSources(influence.manifest, config)
    examples = ReportExamples(sources)
    train = [score.id for point in scored for side in (point.helpful, point.harmful) for score in side or ()]
    examples.find("test", chosen, PICTURE_BYTES // 3)
    examples.find("train", [*train, *(score.id for score in (suspicious.first if suspicious else ()))], 2 * PICTURE_BYTES // 3)
    return _page(config, influence, tables, scored, suspicious, sources, examples, measured)


def _page(
    config: ReportConfig,
    influence: Influence,
    tables: RunTables,
    scored: list[PointScores],
    suspicious: SelfInfluence | None,
    sources: RunSources,
    examples: ReportExamples,
    measured: list[dict[str, Any]],
) -> Page:
    manifest = influence.manifest
    groups, rejected, query_error = tables.groups(), tables.rejected(), tables.query_error()
    given, rest = option_facts(manifest, {field.name: field.default for field in dataclasses.fields(InfluenceConfig)})
    by_position = tables.by_position(scored)
    points = [_point(scores, examples, by_position) for scores in scored]
    facts = [
        ("Weights", weight_facts(manifest, sources.other_weights)),
        ("Curvature", curvature_facts(manifest, query_error)),
        ("Examples", count_facts(manifest)),
        ("Options that were given", given),
    ]
    return Page(
        title=f"Influence report: {'/'.join(config.results.rstrip('/').split('/')[-2:])}",
        asked=asked(manifest, config.results, tables.names),
        sign=influence.sign,
        unit=influence.unit,
        worked=_worked(points, influence),
        chosen=chosen_in_words(manifest, len(points), config.point_count is None, "top_k" in tables.names),
        points=points,
        suspicious=[examples.card("train", score.id, score) for score in suspicious.first] if suspicious else None,
        groups=groups,
        groups_of=whose_loss(tables.names),
        groups_svg=svg_of_groups(groups.shown, "What the removal of each group does to the loss") if groups and groups.shown else None,
        spread=_spread(suspicious),
        facts=facts,
        options=rest,
        rejected=rejected,
        trust=trust(manifest, config.results, rejected.count, query_error, measured),
        notes=missing_parts(manifest, tables.names, scored, groups is not None, [*sources.notes, *examples.notes()]),
    )


def _point(scores: PointScores, examples: ReportExamples, by_position: _ByPosition) -> Point:
    itself = examples.card("test", scores.test_id)

    def card(score: Score) -> Card:
        found = examples.card("train", score.id, score)
        of_train, of_test = by_position.get((scores.test_id, score.id), (None, None))
        return dataclasses.replace(found, tokens=scored_tokens(found.shown, of_train), test_tokens=scored_tokens(itself.shown, of_test))

    def side(name: str, found: list[Score] | None) -> Side:
        return Side(name, None if found is None else [card(score) for score in found])

    return Point(itself, (side("Most helpful", scores.helpful), side("Most harmful", scores.harmful)))


def _worked(points: list[Point], influence: Influence) -> str | None:
    """One score, in a sentence."""
    for point in points:
        best = next((side.cards[0] for side in point.sides if side.cards), None)
        if best is not None and best.influence is not None:
            test, train = ((f"{card.id} (label {card.label})" if card.label else card.id) for card in (point.card, best))
            loss = point.card.prediction.loss if point.card.prediction else None
            return worked_sentence(f"test point {test}", train, best.influence, best.loss_change, influence.n or 0, loss)
    return None


def _spread(suspicious: SelfInfluence | None) -> Spread | None:
    if suspicious is None or suspicious.spread is None or not suspicious.count:
        return None
    curve = Curve("self-influence", suspicious.spread)
    parts = [part for part in PARTS if part * suspicious.count >= 1]
    shares = suspicious.spread.shares(parts)
    rows = [
        Share(f"{100 * part:g} %", f"{round(part * suspicious.count):,}", [f"{100 * share:.1f} %"])
        for part, share in zip(parts, shares, strict=True)
    ]
    svg = svg_of_concentration([curve], "Share of the total self-influence against the part of the training examples")
    return Spread(svg, [curve.name], rows)


def _measured(config: ReportConfig) -> list[dict[str, Any]]:
    """The rows for this run of what `evaluate` wrote.

    Raises:
      ValueError: it wrote nothing there, or nothing of this run.
    """
    if config.evaluation is None:
        return []
    found, others = [], set()
    for measure in MEASURES:
        path = join(config.evaluation, f"{measure}.json")
        if not BeamFiles().exists(path):
            continue
        try:
            rows = json.loads(BeamFiles().read(path))["rows"]
            found += [{"measure": measure, **row} for row in rows if _is_folder(str(row["method"]), config.results)]
            others |= {str(row["method"]) for row in rows}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"--evaluation: {path!r} is damaged: {error!r}") from error
    if not found:
        if not others:
            raise ValueError(f"--evaluation {config.evaluation!r} holds no result of beam-influence evaluate")
        raise ValueError(f"--evaluation {config.evaluation!r} has figures of {', '.join(sorted(others))}, not of {config.results}")
    return found


def _is_folder(one: str, other: str) -> bool:
    if "://" in one or "://" in other:
        return one.rstrip("/") == other.rstrip("/")
    return os.path.abspath(one) == os.path.abspath(other)
