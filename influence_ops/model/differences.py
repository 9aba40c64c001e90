"""How far what is computed is from what it is compared with, relative to the largest value."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from beam_influence.influence_ops.model.network import to_numpy


def difference(losses: np.ndarray, sums: list[np.ndarray], other_losses: np.ndarray, other_sums: list[np.ndarray]) -> float:
    """The larger of the relative differences of two lists of losses and of two lists of summed blocks."""
    scale = max((float(np.abs(part).max()) for part in sums), default=0.0)
    worst = max((float(np.abs(a - b).max()) for a, b in zip(sums, other_sums, strict=True)), default=0.0)
    return max(relative_difference(losses, other_losses), worst / scale if scale else worst)


def largest_difference(found: list[Any], wanted: list[Any]) -> float:
    """The largest relative difference of any two floating tensors."""
    floats = [(a, b) for a, b in zip(found, wanted, strict=True) if tf.convert_to_tensor(a).dtype.is_floating]
    return max((relative_difference(to_numpy(a), to_numpy(b)) for a, b in floats), default=0.0)


def relative_difference(found: np.ndarray, wanted: np.ndarray) -> float:
    """The largest difference, relative to the largest value; NaN where one is NaN and the other is not."""
    if found.shape != wanted.shape:
        return float("inf")
    scale = float(np.abs(wanted).max()) if wanted.size else 0.0
    worst = float(np.abs(found - wanted).max()) if wanted.size else 0.0
    return worst / scale if scale else worst
