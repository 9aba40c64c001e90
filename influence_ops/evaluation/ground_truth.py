"""Retrainings as they are saved: which examples each kept, and the losses of the test points after it.

A file is an `.npz` without pickled objects. For N training examples and T test points it holds, as far as there are any:

| array | shape | meaning |
|---|---|---|
| `subset_masks` | S × N bool | which examples each of S retrainings kept |
| `subset_test_loss` | S × T | the losses after it |
| `loo_idx` | R int | single removals: the position of the example that was removed |
| `loo_test_loss` | R × T | the losses after it |
| `base_test_loss` | T | the losses after training on all N, in the same way as the others |
| `train_ids`, `test_ids` | N, T strings | the ids that scores have; without them row i is the i-th example of the run's files |
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence

import numpy as np

from beam_influence.influence_ops.results.array_folder import FileStore, LocalFiles

_ARRAYS = ("subset_masks", "subset_test_loss", "loo_idx", "loo_test_loss", "base_test_loss", "train_ids", "test_ids")


@dataclasses.dataclass(frozen=True)
class GroundTruth:
    """What real retraining did; see the module for the arrays, None where there is none."""

    subset_masks: np.ndarray | None = None
    subset_test_loss: np.ndarray | None = None
    loo_idx: np.ndarray | None = None
    loo_test_loss: np.ndarray | None = None
    base_test_loss: np.ndarray | None = None
    train_ids: np.ndarray | None = None
    test_ids: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.subset_masks is not None or self.subset_test_loss is not None:
            masks, losses = self._both("subset_masks", "subset_test_loss")
            if masks.ndim != 2 or masks.dtype != bool or losses.ndim != 2 or len(masks) != len(losses):
                raise ValueError(
                    f"subset_masks ({masks.dtype} {masks.shape}) must be bool [S, N] and subset_test_loss {losses.shape} [S, T]"
                )
        if self.loo_idx is not None or self.loo_test_loss is not None:
            removed, losses = self._both("loo_idx", "loo_test_loss")
            if self.base_test_loss is None:
                raise ValueError("loo_test_loss needs base_test_loss beside it, the losses after training on everything")
            if removed.ndim != 1 or not np.issubdtype(removed.dtype, np.integer) or removed.min(initial=0) < 0:
                raise ValueError(f"loo_idx ({removed.dtype} {removed.shape}) must be positions [R] from 0")
            if losses.shape != (len(removed), len(self.base_test_loss)):
                raise ValueError(f"loo_test_loss {losses.shape} must be [R, T] = {(len(removed), len(self.base_test_loss))}")

    def _both(self, first: str, second: str) -> tuple[np.ndarray, np.ndarray]:
        a, b = getattr(self, first), getattr(self, second)
        if a is None or b is None:
            raise ValueError(f"{first if a is None else second} is missing beside {second if a is None else first}")
        return a, b

    def with_ids(self, train_ids: Sequence[str], test_ids: Sequence[str]) -> GroundTruth:
        """The same with ids: its own, else those given, which must be as many as it has examples.

        Raises:
          ValueError: the numbers differ.
        """
        losses = self.subset_test_loss if self.subset_test_loss is not None else self.loo_test_loss
        own_train = self.train_ids if self.train_ids is not None else np.asarray(train_ids, dtype=object)
        own_test = self.test_ids if self.test_ids is not None else np.asarray(test_ids, dtype=object)
        tests = losses.shape[1] if losses is not None else len(own_test)
        trains = self.subset_masks.shape[1] if self.subset_masks is not None else len(own_train)
        for what, ids, count in (("training examples", own_train, trains), ("test points", own_test, tests)):
            if len(ids) != count:
                raise ValueError(
                    f"the ground truth is of {count:,} {what}, but there are {len(ids):,} ids of them; give those that were "
                    "retrained on as its train_ids and test_ids, or score the same files"
                )
        if self.loo_idx is not None and self.loo_idx.max(initial=-1) >= len(own_train):
            raise ValueError(f"loo_idx has the position {self.loo_idx.max()}, but there are {len(own_train):,} training examples")
        return dataclasses.replace(self, train_ids=own_train, test_ids=own_test)

    def save(self, path: str, files: FileStore | None = None) -> None:
        """Writes the arrays there are."""
        arrays = {name: getattr(self, name) for name in _ARRAYS if getattr(self, name) is not None}
        for name in ("train_ids", "test_ids"):
            if name in arrays:
                ending = next((text for text in arrays[name] if str(text).endswith("\0")), None)
                if ending is not None:
                    raise ValueError(f"the id {ending!r} ends with NUL, which an .npz file of ids does not keep; give other ids")
                arrays[name] = arrays[name].astype(str)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        (files or LocalFiles()).write(path, buffer.getvalue())


def load_ground_truth(path: str, files: FileStore | None = None) -> GroundTruth:
    """Reads a file; arrays of other names in it are left alone.

    Raises:
      ValueError: there is no such file, it is no `.npz`, or its arrays do not fit each other.
    """
    files = files or LocalFiles()
    if not files.exists(path):
        raise ValueError(f"there is no ground truth at {path!r}; name an .npz file of saved retrainings")
    try:
        with files.open_read(path) as file, np.load(io.BytesIO(file.read()), allow_pickle=False) as content:
            arrays = {name: content[name] for name in _ARRAYS if name in content.files}
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"can't read the ground truth {path!r}: {error}; it must be an .npz file without pickled objects") from error
    try:
        return GroundTruth(**arrays)
    except ValueError as error:
        raise ValueError(f"the ground truth {path!r}: {error}") from error
