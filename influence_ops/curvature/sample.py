"""A uniform sample of n examples of a stream of any length, the same in whatever order and parts it is read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from beam_influence.influence_ops.reading.example_batch import ExampleBatch


class Sample:
    """The `size` examples whose ids have the smallest seeded hashes (bottom-k sampling); merges in any order.

    Attributes:
      batch: the examples kept so far, by hash.
      seen: how many were offered.
    """

    __slots__ = ("_keys", "batch", "seed", "seen", "size")

    def __init__(self, size: int, seed: int):
        if size < 1:
            raise ValueError(f"n_samples={size} must be at least 1")
        self.size = size
        self.seed = seed
        self.seen = 0
        self.batch: ExampleBatch | None = None
        self._keys = np.zeros(0, dtype=np.uint64)

    def add(self, batch: ExampleBatch) -> None:
        """Offers a batch."""
        self.seen += len(batch)
        keys = np.array([self._key(str(example_id)) for example_id in batch.ids], dtype=np.uint64)
        if len(self._keys) == self.size:
            better = np.flatnonzero(keys < self._keys[-1])
            if not len(better):
                return
            batch, keys = batch.select(better), keys[better]
        self._take(batch, keys)

    def merge(self, other: Sample) -> None:
        """Takes in the sample of other examples."""
        self.seen += other.seen
        if other.batch is not None:
            self._take(other.batch, other._keys)

    def batches(self, size: int) -> Iterator[ExampleBatch]:
        """The sample in batches of at most `size`."""
        if self.batch is not None:
            for start in range(0, len(self.batch), size):
                yield self.batch.select(np.arange(start, min(start + size, len(self.batch))))

    def _key(self, example_id: str) -> int:
        digest = hashlib.blake2b(f"{self.seed}|{example_id}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big")

    def _take(self, batch: ExampleBatch, keys: np.ndarray) -> None:
        if self.batch is not None:
            batch, keys = concatenate(self.batch, batch), np.concatenate([self._keys, keys])
        order = np.argsort(keys, kind="stable")[: self.size]
        self.batch, self._keys = batch.select(order), keys[order]


def concatenate(a: ExampleBatch, b: ExampleBatch) -> ExampleBatch:
    """The examples of two batches as one; without positions, since they may be of different files."""

    def join(x: np.ndarray | None, y: np.ndarray | None) -> np.ndarray | None:
        return None if x is None or y is None else np.concatenate([x, y])

    def tree(x: object, y: object) -> object:
        if isinstance(x, Mapping) and isinstance(y, Mapping):
            return {name: np.concatenate([x[name], y[name]]) for name in x}
        if isinstance(x, tuple) and isinstance(y, tuple):
            return tuple(np.concatenate(pair) for pair in zip(x, y, strict=True))
        return np.concatenate([np.asarray(x), np.asarray(y)])

    return ExampleBatch(
        np.concatenate([a.ids, b.ids]),
        tree(a.inputs, b.inputs),  # type: ignore[arg-type]
        tree(a.labels, b.labels),  # type: ignore[arg-type]
        join(a.weights, b.weights),
        join(a.groups, b.groups),
    )


def to_arrays(batch: ExampleBatch) -> dict[str, np.ndarray]:
    """What a loss needs of a batch, as named arrays that can be saved: `labels`, `weights`, `input` or `input.<name>`."""
    arrays = _named("input", batch.inputs) | _named("labels", batch.labels)
    if batch.weights is not None:
        arrays["weights"] = batch.weights
    return arrays


def from_arrays(arrays: Mapping[str, np.ndarray]) -> ExampleBatch:
    """A batch from `to_arrays`, its ids numbered."""
    inputs, labels = _tree("input", arrays), _tree("labels", arrays)
    first = next(iter(labels.values())) if isinstance(labels, Mapping) else labels[0] if isinstance(labels, tuple) else labels
    ids = np.array([str(row) for row in range(len(first))], dtype=object)
    return ExampleBatch(ids, inputs, labels, arrays.get("weights"))


def _named(prefix: str, value: object) -> dict[str, np.ndarray]:
    if isinstance(value, tuple):
        return {f"{prefix}-{place}": _savable(np.asarray(array)) for place, array in enumerate(value)}
    if isinstance(value, Mapping):
        return {f"{prefix}.{name}": _savable(array) for name, array in value.items()}
    return {prefix: _savable(np.asarray(value))}


def _savable(array: np.ndarray) -> np.ndarray:
    """Strings travel as fixed-width bytes: saved arrays hold no objects.

    Raises:
      ValueError: one ends with NUL, which would be lost.
    """
    if array.dtype != object:
        return array
    texts = (value.decode("latin-1") if isinstance(value, bytes) else str(value) for value in array.ravel())
    if any(text.endswith("\0") for text in texts):
        raise ValueError("a string input ends with NUL bytes, which a saved sample does not keep; turn it into numbers by --preprocess")
    return array.astype(np.bytes_)


def _tree(prefix: str, arrays: Mapping[str, np.ndarray]) -> Any:
    if prefix in arrays:
        return arrays[prefix]
    if f"{prefix}-0" in arrays:
        return tuple(arrays[f"{prefix}-{place}"] for place in range(sum(name.startswith(f"{prefix}-") for name in arrays)))
    return {name[len(prefix) + 1 :]: array for name, array in arrays.items() if name.startswith(f"{prefix}.")}
