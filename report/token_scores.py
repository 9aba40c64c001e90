"""Which of an example's tokens make a score: each in a colour, and the largest in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from beam_influence.report.numbers import plain
from beam_influence.report.showing import MOST_TOKENS, Shown

LEVELS = 4
"""Shades of each colour; the page's style has a class for each."""
_IN_WORDS = 3


class ByPosition(NamedTuple):
    """One score, split over the positions of one of its two sequences: a number for each, and what is at none."""

    scores: Sequence[float]
    unplaced: float


class Token(NamedTuple):
    """A token, and the class of its colour: `helps-1` to `helps-4`, `harms-1` to `harms-4`, or empty."""

    text: str
    level: str


class ScoredTokens(NamedTuple):
    """Tokens in their colours, and the largest in words."""

    tokens: list[Token]
    summary: str


def scored_tokens(shown: Shown | None, by_position: ByPosition | None) -> ScoredTokens | None:
    """An example's tokens by what each adds to a score; None where it is shown without tokens, or they are not the model's sequence."""
    if shown is None or by_position is None or not shown.tokens:
        return None
    scores = by_position.scores
    if shown.token_count != len(scores) and not shown.is_padded:
        return None
    largest = max((abs(score) for score in scores), default=0.0)
    pairs = list(zip(shown.tokens[:MOST_TOKENS], scores, strict=False))
    tokens = [Token(text, _level(score, largest)) for text, score in pairs]
    tokens += [Token(text, "") for text in shown.tokens[len(tokens) :]]  # the model reads no further, or the page has no more
    best = sorted(((score, text) for text, score in pairs if score), key=lambda pair: -abs(pair[0]))[:_IN_WORDS]
    words = [f"{text} {plain(score)}" for score, text in best]
    return ScoredTokens(tokens, f"{', '.join(words) or 'no token'}; at no position {plain(by_position.unplaced)}")


def _level(score: float, largest: float) -> str:
    return f"{'helps' if score > 0 else 'harms'}-{math.ceil(LEVELS * abs(score) / largest)}" if score and largest else ""
