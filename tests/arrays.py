"""What tests compare arrays by."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf


def relative(found: Any, wanted: Any) -> float:
    """max |found − wanted| / max |wanted|, of two arrays of one shape."""
    found, wanted = np.asarray(found), np.asarray(wanted)
    assert found.shape == wanted.shape
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def joined(dataset: tf.data.Dataset) -> np.ndarray:
    """The second element of all elements, one below the other."""
    return np.concatenate([np.asarray(element[1]) for element in dataset])


def matrix_of(dataset: tf.data.Dataset) -> np.ndarray:
    """[T, N] from the nested dataset of `estimate_influence_values_in_batches`."""
    return np.concatenate([np.concatenate([np.asarray(block) for _, block in inner], axis=1) for _, inner in dataset])
