"""Draws the Beam graph of the main job (`beam-influence demo digits`) as it is built, to docs/architecture.svg:

    python -m docs.draw_graph

A row is a transform of `beam_influence.transforms`, in the order of the data; a line goes from those that give a type of elements down to
those that take it. Beam's own `Flatten` and `Create` are left out: a line leads from where an element was made to where it is used.
"""

from __future__ import annotations

import dataclasses
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any
from xml.sax.saxutils import escape

import apache_beam as beam
from apache_beam.pipeline import AppliedPTransform
from apache_beam.pvalue import PCollection
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.typehints.typehints import TupleConstraint

from beam_influence.pipelines.build import build
from beam_influence.pipelines.config import InfluenceConfig
from beam_influence.pipelines.demo import digits
from beam_influence.pipelines.demo.demo import write_split

PICTURE = pathlib.Path(__file__).with_name("architecture.svg")

_COLOURS = ("#4e79a7", "#e15759", "#59a14f", "#b07aa1", "#f28e2b", "#9c755f", "#d37295", "#499894", "#79706e", "#b6992d")
_ROW, _GAP, _WIDTH, _LANE, _MARGIN = 76, 12, 700, 26, 16


@dataclasses.dataclass(frozen=True)
class Line:
    """Elements of one type that pass between steps.

    Attributes:
      kind: the type's name.
      meaning: the first line of its docstring.
      sources: the steps that give them.
      targets: the steps that take them, each one that comes after a source; True: as a side input, which every worker gets whole.
    """

    kind: str
    meaning: str
    sources: list[str]
    targets: dict[str, bool]


@dataclasses.dataclass(frozen=True)
class Graph:
    """The transforms of a job in the order in which they were applied, each with what it is for, and what passes between them."""

    steps: dict[str, str]
    lines: list[Line]


def build_main_job(folder: pathlib.Path) -> beam.Pipeline:
    """The main job over its own data and network, which is not trained: the graph is the same."""
    patterns = {split: write_split(digits.DEMO, folder, split, examples)[0] for split, examples in digits.load().items()}
    digits.make_network().save(folder / "model.keras")
    pipeline = beam.Pipeline(FnApiRunner())
    config = InfluenceConfig(
        model=str(folder / "model.keras"), train=patterns["train"], test=patterns["test"], output=str(folder / "influence"),
        curvature="exact", group_feature="digit", outputs="top_k,self_influence,group_influence,scores", resume=False,
    )  # fmt: skip
    build(pipeline, config)
    return pipeline


def graph_of(pipeline: beam.Pipeline) -> Graph:
    """The transforms that `build` applied, and what passes between them."""
    steps = {
        step.full_label: step
        for step in pipeline._root_transform().parts
        if not isinstance(step.transform, (beam.Flatten, beam.Create))
    }
    lines: list[Line] = []
    for name, step in steps.items():
        for value, is_side_input in _inputs(step):
            for source, kind in _sources(value):
                if source != name:
                    _add(lines, kind, source, name, is_side_input)
    order = list(steps)
    for line in lines:
        line.sources.sort(key=order.index)
    lines.sort(key=lambda line: (order.index(line.sources[0]), line.kind))
    return Graph({name: _first_line(_documented(step.transform)) for name, step in steps.items()}, lines)


def _documented(transform: object) -> object:
    """What has the docstring: a transform of our own, or the CombineFn that one of Beam's is given."""
    return transform.fn if isinstance(transform, beam.CombinePerKey) else transform


def _add(lines: list[Line], kind: type, source: str, target: str, is_side_input: bool) -> None:
    """What goes to the same step is one line, and what comes from the same step."""
    whole = Line(kind.__name__, _first_line(kind).partition(";")[0].rstrip("."), [source], {target: is_side_input})
    for line in [line for line in lines if line.kind == whole.kind and (source in line.sources or target in line.targets)]:
        whole.sources[:] = dict.fromkeys([*line.sources, *whole.sources])
        for name, is_side in line.targets.items():
            whole.targets[name] = is_side and whole.targets.get(name, True)
        lines.remove(line)
    lines.append(whole)


def _first_line(documented: object) -> str:
    return (documented.__doc__ or "").splitlines()[0]


def _inputs(step: AppliedPTransform) -> Iterator[tuple[PCollection, bool]]:
    """What a step and the steps in it read, and whether as a side input."""
    yield from ((value, False) for value in step.inputs if isinstance(value, PCollection))
    yield from ((side.pvalue, True) for side in step.side_inputs)
    for part in step.parts:
        yield from _inputs(part)


def _sources(value: PCollection) -> Iterator[tuple[str, Any]]:
    """Which steps made the elements, and their type without a key; what a Create made is nothing that passes."""
    step: Any = value.producer
    while step.parent.parent is not None:
        step = step.parent
    if isinstance(step.transform, beam.Flatten):
        for source in step.inputs:
            yield from _sources(source)
    elif not isinstance(step.transform, beam.Create):
        kind: Any = value.element_type
        yield step.full_label, kind.tuple_types[-1] if isinstance(kind, TupleConstraint) else kind


def draw(graph: Graph) -> str:
    """The graph as SVG."""
    rows = {name: number for number, name in enumerate(graph.steps)}
    kinds = list(dict.fromkeys(line.kind for line in graph.lines))
    colours = dict(zip(kinds, _COLOURS, strict=False))
    lanes = _lanes(graph, rows)
    width = _MARGIN + _WIDTH + _LANE * (max(lanes) + 2)
    legend = _MARGIN + _ROW * len(rows) + 30
    height = legend + 20 * (len(kinds) + 1) + _MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for line, lane in zip(graph.lines, lanes, strict=True):
        parts += _drawn_line(line, _MARGIN + _WIDTH + _LANE * (lane + 1), _ends(graph), colours[line.kind])
    for name, purpose in graph.steps.items():
        given = [line.kind for line in graph.lines if name in line.sources]
        parts += _drawn_step(name, purpose, _MARGIN + _ROW * rows[name], [(kind, colours[kind]) for kind in given])
    meanings = {line.kind: line.meaning for line in graph.lines}
    for number, kind in enumerate(kinds):
        y = legend + 20 * number
        parts.append(f'<rect x="{_MARGIN}" y="{y - 6}" width="22" height="4" fill="{colours[kind]}"/>')
        parts.append(_text(_MARGIN + 30, y, f"{kind}: {meanings[kind]}"))
    explanation = "● gives, ▸ takes; dashed: a side input, which every worker gets whole"
    parts.append(_text(_MARGIN + 30, legend + 20 * len(kinds), explanation))
    return "\n".join([*parts, "</svg>", ""])


def _lanes(graph: Graph, rows: dict[str, int]) -> list[int]:
    """A lane for each line, from the left, such that lines in one lane do not meet."""
    ends: list[int] = []  # the last row of each lane
    found = []
    for line in graph.lines:
        first, last = min(rows[name] for name in line.sources), max(rows[name] for name in line.targets)
        lane = next((lane for lane, end in enumerate(ends) if end < first), len(ends))
        ends[lane:] = [last, *ends[lane + 1 :]]
        found.append(lane)
    return found


def _ends(graph: Graph) -> dict[tuple[str, int, bool], float]:
    """The height of each end of a line, by step, line and whether the step takes it: spread over the side of the step's box."""
    found = {}
    for row, name in enumerate(graph.steps):
        taken = [(name, id(line), True) for line in graph.lines if name in line.targets]
        given = [(name, id(line), False) for line in graph.lines if name in line.sources]
        for number, end in enumerate([*taken, *given], start=1):
            found[end] = _MARGIN + _ROW * row + (_ROW - _GAP) * number / (len(taken) + len(given) + 1)
    return found


def _drawn_line(line: Line, x: int, ends: dict[tuple[str, int, bool], float], colour: str) -> Iterator[str]:
    given = [ends[name, id(line), False] for name in line.sources]
    taken = [ends[name, id(line), True] for name in line.targets]
    edge = _MARGIN + _WIDTH
    yield f'<path d="M{x} {min(given):.1f} V{max(taken):.1f}" stroke="{colour}" stroke-width="3" stroke-linecap="round"/>'
    for y in given:
        yield f'<path d="M{edge} {y:.1f} H{x}" stroke="{colour}" stroke-width="1.6"/>'
        yield f'<circle cx="{edge}" cy="{y:.1f}" r="3.5" fill="{colour}"/><circle cx="{x}" cy="{y:.1f}" r="3" fill="{colour}"/>'
    for y, is_side_input in zip(taken, line.targets.values(), strict=True):
        dashes = ' stroke-dasharray="4 3"' if is_side_input else ""
        yield f'<path d="M{edge + 6} {y:.1f} H{x}" stroke="{colour}" stroke-width="1.6"{dashes}/>'
        yield f'<path d="M{edge} {y:.1f} l9 -4 v8 z" fill="{colour}"/><circle cx="{x}" cy="{y:.1f}" r="3" fill="{colour}"/>'


def _drawn_step(name: str, purpose: str, y: int, given: list[tuple[str, str]]) -> Iterator[str]:
    yield f'<rect x="{_MARGIN}" y="{y}" width="{_WIDTH}" height="{_ROW - _GAP}" rx="5" fill="#f5f5f5" stroke="#888"/>'
    yield _text(_MARGIN + 10, y + 26, name, 'font-weight="bold" font-size="13"')
    yield _text(_MARGIN + 10, y + 48, purpose, 'fill="#555" font-size="11"')
    spans = "\N{EN SPACE}".join(f'<tspan fill="{colour}">{escape(kind)}</tspan>' for kind, colour in given)
    yield f'<text x="{_MARGIN + _WIDTH - 10}" y="{y + 26}" text-anchor="end" font-size="11">{spans}</text>'


def _text(x: int, y: int, text: str, style: str = "") -> str:
    return f'<text x="{x}" y="{y}" {style}>{escape(text)}</text>'


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        PICTURE.write_text(draw(graph_of(build_main_job(pathlib.Path(folder)))), encoding="utf-8")
