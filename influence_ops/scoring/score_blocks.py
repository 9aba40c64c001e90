"""A batch's scores, which stay on the device until somebody asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy as np
import tensorflow as tf


class ScoreBlocks(Sequence[np.ndarray]):
    """One [T, B] float64 for each query block.

    Args:
      on_device: the same as tensors.
    """

    def __init__(self, on_device: Sequence[tf.Tensor]):
        self.on_device = on_device
        self._on_host: dict[int, np.ndarray] = {}

    @overload
    def __getitem__(self, number: int) -> np.ndarray: ...

    @overload
    def __getitem__(self, number: slice) -> list[np.ndarray]: ...

    def __getitem__(self, number: int | slice) -> np.ndarray | list[np.ndarray]:
        if isinstance(number, slice):
            return [self[each] for each in range(len(self))[number]]
        if number not in self._on_host:
            self._on_host[number] = self.on_device[number].numpy()
        return self._on_host[number]

    def __len__(self) -> int:
        return len(self.on_device)
