"""How scores are ranked."""

from __future__ import annotations

from typing import Literal

import numpy as np

Order = Literal["descending", "ascending"]

DROPPED_BITS = 18  # of a double's 52: what is left is exact to 6e-11 relative
HALF, MASK = 1 << (DROPPED_BITS - 1), ~((1 << DROPPED_BITS) - 1)
"""What is added to a double's bits, and which of them are left then, to round it."""


def ranking_key(values: np.ndarray) -> np.ndarray:
    """Values rounded to 34 bits, which decide the ranks.

    A matrix product's last bits depend on the shape of the batch. Without rounding, equal examples in
    different batches would be ranked by that noise; rounded, they tie and their ids decide.
    """
    bits = np.ascontiguousarray(values, dtype=np.float64).view(np.int64)
    return ((bits + np.int64(HALF)) & np.int64(MASK)).view(np.float64) + 0.0  # + 0.0 makes -0.0 a 0.0
