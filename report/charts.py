"""The page's charts: Matplotlib's SVG, whose ink and paper are those of the page, so that they follow it into the dark."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.figure import Figure

from beam_influence.report.concentration import Concentration
from beam_influence.report.tables import Group

_INK, _FAINT, _HELP, _HARM = "#010101", "#020202", "#030303", "#040404"  # stand for the page's own colours
_OF_PAGE = {_INK: "var(--ink)", _FAINT: "var(--line)", _HELP: "var(--help)", _HARM: "var(--harm)"}
_COLOURS = {_INK: "#1b1f24", _FAINT: "#d4d9df", _HELP: "#0b6bcb", _HARM: "#b4470f"}
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "beam-influence",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
PARTS = (0.001, 0.01, 0.05, 0.1, 0.2, 0.5, 1.0)
"""The first parts of the examples whose share of the influence a page tells."""


class Curve(NamedTuple):
    """A line of the chart of concentration: its name, and the distribution."""

    name: str
    spread: Concentration


def plot_groups(groups: Sequence[Group], figure: Figure | None = None, colours: Sequence[str] = tuple(_COLOURS.values())) -> Figure:
    """Bars: what the removal of each group does to the loss (its influence, where no change of the loss is known)."""
    ink, faint, help_, harm = colours
    with rc_context(_STYLE):
        figure = figure or Figure(figsize=(5, 0.7 + 0.28 * len(groups)))
        axes = figure.subplots()
        of_change = all(group.loss_change is not None for group in groups)
        values = [group.loss_change if of_change and group.loss_change is not None else group.influence for group in groups]
        places = np.arange(len(groups))[::-1]
        axes.barh(places, values, 0.7, color=[help_ if value >= 0 else harm for value in values])
        axes.set_yticks(places, [_short(group) for group in groups])
        axes.axvline(0, color=ink, linewidth=0.8)
        figure.supxlabel("loss change if the group is removed" if of_change else "influence", color=ink, fontsize=10)
        _finish(axes, ink, faint, "x")
        figure.set_layout_engine("constrained")
    return figure


def plot_concentration(curves: Sequence[Curve], figure: Figure | None = None, colours: Sequence[str] = tuple(_COLOURS.values())) -> Figure:
    """The share of the total that the strongest examples have, against how many of them; dashed: equal shares."""
    ink, faint, help_, harm = colours
    with rc_context(_STYLE):
        figure = figure or Figure(figsize=(5, 3))
        axes = figure.subplots()
        parts = np.concatenate([[0.0], np.geomspace(1e-4, 1, 200)])
        for curve, colour in zip(curves, (help_, harm), strict=False):
            axes.plot(100 * parts, 100 * curve.spread.shares(list(parts)), color=colour, linewidth=2, label=curve.name)
        axes.plot([0, 100], [0, 100], color=ink, linewidth=0.8, linestyle=(0, (4, 4)), label="if all were equal")
        axes.set_xlabel("% of the training examples, the strongest first")
        axes.set_ylabel("% of the total")
        axes.set_xlim(0, 100)
        axes.set_ylim(0, 101)
        axes.legend(frameon=False, labelcolor=ink, loc="lower right")
        _finish(axes, ink, faint, "both")
        figure.set_layout_engine("constrained")
    return figure


def svg_of_groups(groups: Sequence[Group], title: str) -> Markup:
    """`plot_groups` for the page."""
    return _svg(plot_groups(groups, colours=tuple(_OF_PAGE)), title, "groups")


def svg_of_concentration(curves: Sequence[Curve], title: str) -> Markup:
    """`plot_concentration` for the page."""
    return _svg(plot_concentration(curves, colours=tuple(_OF_PAGE)), title, "concentration")


def _short(group: Group) -> str:
    name = group.name if len(group.name) <= 24 else f"{group.name[:23]}…"
    return f"{name} ({group.count:,})".replace("$", r"\$")  # which would begin a formula


def _finish(axes: Any, ink: str, faint: str, grid: str) -> None:
    axes.set_axisbelow(True)
    axes.grid(axis=grid, color=faint, linewidth=0.6)
    axes.tick_params(colors=ink)
    for text in (axes.xaxis.label, axes.yaxis.label):
        text.set_color(ink)
    for spine in axes.spines.values():
        spine.set_color(ink)


def _svg(figure: Figure, title: str, name: str) -> Markup:
    """The figure as an element of a page, named by what it shows; its own ids begin with `name`."""
    buffer = io.StringIO()
    with rc_context({**_STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # texts stay texts, in the page's fonts
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r"<[^>]+>", lambda tag: _as_of_page(tag[0], name), text)  # tags alone: texts are the user's
    return Markup(text.replace("<defs>", f"<title>{escape(title)}</title><defs>", 1))


def _as_of_page(tag: str, name: str) -> str:
    """A tag in the page's colours and fonts, with ids of its own."""
    if tag.startswith("<svg"):
        return re.sub(r'.*?(viewBox="[^"]+").*', r'<svg \1 role="img" xmlns:xlink="http://www.w3.org/1999/xlink">', tag, flags=re.DOTALL)
    for given, of_page in _OF_PAGE.items():
        tag = tag.replace(given, of_page)
    tag = re.sub(r"font-family: [^;\"]*;? ?", "", tag)
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", tag)
