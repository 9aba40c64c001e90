"""The choices that the calculators' methods take, by the reference's names."""

from __future__ import annotations

import enum

from beam_influence.influence_ops.scoring.ranking import Order


class ORDER(enum.Enum):
    """From which end a top-k is taken: DESCENDING is the largest first."""

    ASCENDING = "ascending"
    DESCENDING = "descending"


class CACHE(enum.Enum):
    """Where influence vectors stay between test batches: N × P numbers in memory or on disk, or computed each time."""

    MEMORY = "memory"
    DISK = "disk"
    NO_CACHE = "no_cache"


def ranking(order: ORDER) -> Order:
    """The end, as `TopK` names it."""
    return "ascending" if order is ORDER.ASCENDING else "descending"
