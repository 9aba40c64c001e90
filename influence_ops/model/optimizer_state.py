"""Whether Keras has read the optimizer's state that a file of weights holds: where it does not fit, Keras leaves it out with a warning."""

from __future__ import annotations

import zipfile
from typing import IO, Any

import h5py
import keras
import numpy as np

_WEIGHTS = "model.weights.h5"  # within a .keras file


def note_unread_state(model: keras.Model, path: str) -> None:
    """Sets the model's `unread_optimizer` to a text of the state that the file holds and its optimizer has not; else leaves it.

    Args:
      model: as it was loaded from the file.
      path: a `.keras` or a `.weights.h5` file.
    """
    if not path.endswith(".keras"):
        _note(model, path)
        return
    if isinstance(getattr(model, "optimizer", None), keras.optimizers.SGD):
        return  # it is in the file's configuration, and the state does not matter
    with zipfile.ZipFile(path) as archive:
        if _WEIGHTS in archive.namelist():
            with archive.open(_WEIGHTS) as weights:
                _note(model, weights)


def build_for_state(model: keras.Model, path: str) -> None:
    """Makes the variables of the model's optimizer where a `.weights.h5` file has some for them: Keras passes over them else."""
    optimizer: Any = getattr(model, "optimizer", None)
    if optimizer is not None and not optimizer.built:
        with h5py.File(path, "r") as file:
            if isinstance(file.get("optimizer/vars/0"), h5py.Dataset):
                optimizer.build(model.trainable_variables)


def _note(model: keras.Model, source: str | IO[bytes]) -> None:
    shapes, made = _saved(source)
    if not shapes:
        return
    optimizer: Any = getattr(model, "optimizer", None)
    name, own, steps = "no optimizer", [], None
    if optimizer is not None:
        name, steps = type(optimizer).__name__, int(optimizer.iterations)
        own = [tuple(variable.shape) for variable in optimizer.variables]
    if sorted(own) != sorted(shapes) or steps != made:
        told = f"has the state of an optimizer, {len(shapes)} arrays, and its model {name} with {len(own)}"
        object.__setattr__(model, "unread_optimizer", told)


def _saved(source: str | IO[bytes]) -> tuple[list[tuple[int, ...]], int | None]:
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
