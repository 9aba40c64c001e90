"""How much of the total influence the strongest examples have, over any number of examples in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_MANTISSA_BITS = 7  # a bin's numbers differ by less than 1/128
_SHIFT = 52 - _MANTISSA_BITS
_BINS = 1 << (11 + _MANTISSA_BITS)  # 4 MiB of counts and sums


class Concentration:
    """The distribution of |influence|: how many examples are in each of 262,144 bins of one binary order and 7 bits, and their sum.

    A share is exact where a bin ends, and elsewhere takes a bin's examples as equal, which they are to within 1/128.
    """

    def __init__(self) -> None:
        self._counts = np.zeros(_BINS, np.int64)
        self._sums = np.zeros(_BINS)

    def add(self, influence: np.ndarray) -> None:
        """Adds the influence of some examples."""
        size = np.abs(np.asarray(influence, np.float64))
        size = size[np.isfinite(size)]
        bins = np.ascontiguousarray(size).view(np.int64) >> _SHIFT
        self._counts += np.bincount(bins, minlength=_BINS)
        self._sums += np.bincount(bins, size, _BINS)

    @property
    def count(self) -> int:
        """How many examples were added."""
        return int(self._counts.sum())

    @property
    def total(self) -> float:
        """Σ |influence|."""
        return float(self._sums.sum())

    def shares(self, parts: Sequence[float]) -> np.ndarray:
        """The share of Σ |influence| that the first part of the examples has, for parts from 0 to 1; zeros where there is none."""
        if not self.total:
            return np.zeros(len(parts))
        counts = np.cumsum(self._counts[::-1])
        sums = np.cumsum(self._sums[::-1])
        kept = np.flatnonzero(np.diff(counts, prepend=0))
        return np.interp(np.asarray(parts) * self.count, np.append(0, counts[kept]), np.append(0.0, sums[kept])) / self.total
