"""What is kept of scores: of any part of the training data, and in any order."""

from __future__ import annotations

import abc
from typing import Any


class Part(abc.ABC):
    """Sums or tables over some of the training data, of a size that does not grow with it."""

    __slots__ = ()

    @abc.abstractmethod
    def merge(self, other: Any) -> None:
        """Takes in a part of the same class. Attributes are replaced, never changed: `other` and a shallow copy stay."""
