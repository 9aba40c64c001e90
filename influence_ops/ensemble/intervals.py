"""How sure a mean over few members is: Student's t."""

from __future__ import annotations

import math

CONFIDENCE = 0.9
"""Of the intervals: the mean over all members that there could be lies in so many of them, where members differ by normal noise."""


def interval_factor(members: int) -> float:
    """t, so that mean ± t · (standard error) is a 90 % interval for the mean of a normal distribution that `members` are drawn from.

    Raises:
      ValueError: fewer than two members have no standard error.
    """
    if members < 2:
        raise ValueError(f"{members} member has no standard error; at least 2 are needed")
    low, high = 0.0, 1e3
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _inside(middle, members - 1) < CONFIDENCE else (low, middle)
    return high


def _inside(t: float, freedom: int) -> float:
    """The probability of |T| < t of Student's distribution (Abramowitz & Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan2(t, math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    term, total = (cosine, 0.0) if freedom % 2 else (1.0, 0.0)
    for step in range(freedom // 2):
        total += term
        term *= cosine**2 * ((2 * step + 2) / (2 * step + 3) if freedom % 2 else (2 * step + 1) / (2 * step + 2))
    return 2 / math.pi * (angle + sine * total) if freedom % 2 else sine * total
