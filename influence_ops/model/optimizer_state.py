"""Whether Keras has read the optimizer's state that a file of weights holds: where it does not fit, Keras leaves it out with a warning."""

from __future__ import annotations

import io
import zipfile
from typing import Any, BinaryIO

import h5py
import keras
import numpy as np

WEIGHTS_ALONE = -1
"""The steps (`iterations`) of an optimizer whose state is not the checkpoint's, which was a file of weights alone."""

_WEIGHTS = "model.weights.h5"  # within a .keras file
_HEADER = 30  # bytes of a file's header in an archive, before its name and what is beside it


def note_unread_state(model: keras.Model, path: str) -> None:
    """Sets the model's `unread_optimizer` to a text of the state that the file holds and its optimizer has not; else leaves it.

    Args:
      model: as it was loaded from the file.
      path: a `.keras` or a `.weights.h5` file.
    """
    if not path.endswith(".keras"):
        _note(model, path)
        return
    optimizer: Any = getattr(model, "optimizer", None)
    if isinstance(optimizer, keras.optimizers.SGD) or (optimizer is not None and int(optimizer.iterations) > 0):
        return  # SGD is in the file's configuration, and its state does not matter; steps above 0 have been read with the rest
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        if _WEIGHTS in archive.namelist():
            entry = archive.getinfo(_WEIGHTS)
            if entry.compress_type == zipfile.ZIP_STORED:
                _note(model, _Part(file, entry))
            else:
                with archive.open(entry) as weights:
                    _note(model, weights)


def build_for_state(model: keras.Model, path: str) -> None:
    """Makes the variables of the model's optimizer where a `.weights.h5` file has some for them: Keras passes over them else."""
    optimizer: Any = getattr(model, "optimizer", None)
    if optimizer is not None and not optimizer.built:
        with h5py.File(path, "r") as file:
            if isinstance(file.get("optimizer/vars/0"), h5py.Dataset):
                optimizer.build(model.trainable_variables)


class _Part(io.RawIOBase):
    """A file that is stored in an archive as it is. The archive's own object reads all before a place again for each step back."""

    def __init__(self, file: BinaryIO, entry: zipfile.ZipInfo):
        file.seek(entry.header_offset)
        header = file.read(_HEADER)
        beside = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        self._file, self._start, self._size = file, entry.header_offset + _HEADER + beside, entry.file_size
        self._place = 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = offset + (0, self._place, self._size)[whence]
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: Any) -> int:
        self._file.seek(self._start + self._place)
        data = self._file.read(max(0, min(len(buffer), self._size - self._place)))
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)


def _note(model: keras.Model, source: str | Any) -> None:
    shapes, made = _saved(source)
    if not any(shapes):
        return  # the number of steps and the learning rate, all that there is before the first step, and of SGD without momentum
    optimizer: Any = getattr(model, "optimizer", None)
    name, own, steps = "no optimizer", [], None
    if optimizer is not None:
        name, steps = type(optimizer).__name__, int(optimizer.iterations)
        own = [tuple(variable.shape) for variable in optimizer.variables]
    if sorted(own) != sorted(shapes) or steps != made:
        told = f"has the state of an optimizer, {len(shapes)} arrays, and its model {name} with {len(own)}"
        object.__setattr__(model, "unread_optimizer", told)


def _saved(source: str | Any) -> tuple[list[tuple[int, ...]], int | None]:
    """The shapes of an optimizer's arrays in a file of weights, and the number of its steps."""
    shapes: list[tuple[int, ...]] = []

    def add(_: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            shapes.append(tuple(item.shape))

    with h5py.File(source, "r") as file:
        saved = file.get("optimizer")
        if not isinstance(saved, h5py.Group):
            return [], None
        saved.visititems(add)
        steps = saved.get("vars/0")
        return shapes, int(np.asarray(steps)) if isinstance(steps, h5py.Dataset) and steps.shape == () else None
