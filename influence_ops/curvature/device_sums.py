"""Sums over many batches, in float64, where they cost least: on a GPU they stay there, on a CPU they are added in place."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tensorflow as tf


class DeviceSums:
    """Named sums over a bundle that stay on the device; the host gets them once."""

    def __init__(self) -> None:
        self._sums: dict[str, tf.Variable] = {}

    def add(self, of_batch: Mapping[str, tf.Tensor]) -> None:
        """Adds a batch's; nothing is changed where the device has no room for them."""
        values = {name: tf.cast(value, tf.float64) for name, value in of_batch.items()}
        new = {name: tf.Variable(value, trainable=False) for name, value in values.items() if name not in self._sums}
        for name in values.keys() - new.keys():
            self._sums[name].assign_add(values[name], read_value=False)
        self._sums |= new

    def to_host(self) -> dict[str, np.ndarray]:
        """The sums as they are now."""
        return {name: np.array(total.numpy()) for name, total in self._sums.items()}


def stay_on_device(of_batch: Mapping[str, tf.Tensor]) -> bool:
    """Whether a batch's sums are on a device that the host would have to wait for."""
    return any("CPU" not in value.device for value in of_batch.values())
