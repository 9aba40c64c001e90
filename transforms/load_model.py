"""A trained model from any file system: a `.keras` or `.h5` file, a SavedModel folder, or the user's own function."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from google.protobuf.message import DecodeError

from beam_influence.influence_ops.import_path import load_object
from beam_influence.influence_ops.model.network import load_keras_file
from beam_influence.influence_ops.model.optimizer_state import WEIGHTS_ALONE, build_for_state, note_unread_state
from beam_influence.influence_ops.model.saved_model import GRAPH_FILE, SavedModelNetwork, without_slots
from beam_influence.transforms.files import BeamFiles, join, match_files

_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_CHUNK = 16 << 20
MODEL_FILES = (".keras", ".h5", ".hdf5")
_WEIGHTS = ".weights.h5"


def load_model(path: str, weights: str | None = None, digest: str = "", signature: str = "") -> tuple[Any, str]:
    """The model, and the SHA-256 of what it was made from.

    Args:
      path: a `.keras` or `.h5` file, a SavedModel folder, or `module:function` of a function without arguments that returns a
        built Keras model.
      weights: with a function: a `.weights.h5` file to load into the model.
      digest: the SHA-256 that it must have; empty: any.
      signature: of a SavedModel, as of `open_endpoint`.

    Raises:
      ValueError: there is no model, it can't be loaded, or it is another one.
    """
    files = BeamFiles()
    if _FUNCTION.fullmatch(path) and not files.exists(path):
        return _from_function(path, weights, digest)
    if weights is not None:
        raise ValueError(f"--model_weights {weights!r} goes with --model module:function; {path!r} has its weights in it")
    if not files.exists(path) and not files.exists(join(path, GRAPH_FILE)):  # on object stores a folder does not exist
        raise ValueError(
            f"there is no model at {path!r}; give a .keras or .h5 file with --model, a SavedModel folder, or module:function"
        )
    is_folder = files.exists(join(path, GRAPH_FILE))
    if signature and not is_folder:
        raise ValueError(f"--signature {signature} is of a SavedModel folder; with --model {path!r} leave it out")
    if path.endswith(_WEIGHTS):
        raise ValueError(f"--model {path!r} has weights alone; give it with --model_weights, and --model module:function")
    if path.endswith(MODEL_FILES) and not is_folder:
        return _from_file(path, digest)
    if is_folder:
        return _from_folder(path, digest, signature)
    raise ValueError(
        f"--model {path!r} must be a .keras or .h5 file, as model.save('model.keras') writes it, a SavedModel folder, as "
        "model.export(folder) does, or module:function"
    )


def load_checkpoint(
    checkpoint: str, path: str, weights: str | None = None, digest: str = "", signature: str = ""
) -> tuple[Any, str]:
    """A checkpoint of the model at `path`, and the SHA-256 of the checkpoint.

    Args:
      checkpoint: a model as of `load_model`, or a `.weights.h5` file that is loaded into the one at `path`.
      path, weights, signature: as of `load_model`.
      digest: as of `load_model`.

    Raises:
      ValueError: there is none, it does not fit, or it is another one.
    """
    if not checkpoint.endswith(_WEIGHTS):
        return load_model(checkpoint, None, digest, signature)
    model, _ = load_model(path, weights)
    if not isinstance(model, keras.Model):
        raise ValueError(f"the checkpoint {checkpoint!r} can't be loaded into the SavedModel {path!r}; give --model as a .keras file")
    optimizer = getattr(model, "optimizer", None)
    if optimizer is not None:
        optimizer._iterations.assign(WEIGHTS_ALONE)  # unless the file has an optimizer's state, which takes this one's place
    found = _load_weights(model, checkpoint, path)
    _check_digest(checkpoint, found, digest)
    return model, found


def _load_weights(model: keras.Model, weights: str, path: str) -> str:
    """Loads a `.weights.h5` file; returns its SHA-256."""
    if not BeamFiles().exists(weights):
        raise ValueError(f"there are no weights at {weights!r}")
    with tempfile.TemporaryDirectory() as folder:
        local = os.path.join(folder, "model.weights.h5")
        digest = _copy(weights, local)
        try:
            build_for_state(model, local)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Skipping variable loading for optimizer")
                model.load_weights(local)
            note_unread_state(model, local)
        except Exception as error:
            reason = str(error).replace(local, weights)
            raise ValueError(f"the weights {weights!r} do not fit the model of {path!r}: {reason}") from error
    return digest


def _check_digest(path: str, found: str, digest: str) -> None:
    if digest and found != digest:
        raise ValueError(f"the model {path!r} has changed since the run began; start the run again")


def _from_file(path: str, wanted: str) -> tuple[Any, str]:
    with tempfile.TemporaryDirectory() as folder:
        local = os.path.join(folder, "model.keras" if path.endswith(".keras") else "model.h5")
        digest = _copy(path, local)
        _check_digest(path, digest, wanted)
        try:
            return load_keras_file(local), digest
        except ValueError as error:
            raise ValueError(str(error).replace(local, path)) from error


def _from_folder(path: str, wanted: str, signature: str) -> tuple[Any, str]:
    found = match_files([join(path, "**")])
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory() as folder:
        for file in found:
            name = file.path[len(path.rstrip("/")) + 1 :]
            if ".." in name.split("/") or name.startswith("/"):  # an object store's names may have it
                raise ValueError(f"the SavedModel {path!r} has a file {name!r}, which would be outside of its folder")
            local = os.path.join(folder, name)
            os.makedirs(os.path.dirname(local), exist_ok=True)
            digest.update(f"{name}|{_copy(file.path, local)}|".encode())
        _check_digest(path, digest.hexdigest(), wanted)
        _drop_slots(os.path.join(folder, GRAPH_FILE))
        try:
            return SavedModelNetwork(folder, signature), digest.hexdigest()
        except ValueError as error:
            raise ValueError(str(error).replace(folder, path)) from error


def _drop_slots(local: str) -> None:
    with open(local, "rb") as file:
        graph = file.read()
    try:
        without = without_slots(graph)
    except DecodeError:
        return  # refused, with its reason, when it is loaded
    if without != graph:
        with open(local, "wb") as file:
            file.write(without)


def _from_function(path: str, weights: str | None, wanted: str) -> tuple[Any, str]:
    function = load_object(path)
    if not callable(function):
        raise ValueError(f"--model {path!r} is not a function; it must return a built Keras model")
    try:
        model = function()
    except Exception as error:
        raise ValueError(f"--model {path!r} failed: {type(error).__name__}: {error}") from error
    if not isinstance(model, keras.Model):
        raise ValueError(f"--model {path!r} returned a {type(model).__name__}; it must return a built Keras model")
    if weights is not None:
        if not weights.endswith(".weights.h5"):
            raise ValueError(f"--model_weights {weights!r} must be a .weights.h5 file, as model.save_weights writes it")
        _load_weights(model, weights, path)
    digest = hashlib.sha256()
    for weight in model.get_weights():
        digest.update(f"{weight.shape}|{weight.dtype}|".encode() + np.ascontiguousarray(weight).tobytes())
    if wanted and digest.hexdigest() != wanted:
        raise ValueError(
            f"the model of {path!r} has other weights on this worker than when the run began; let it return trained "
            "weights, or give them with --model_weights"
        )
    return model, digest.hexdigest()


def _copy(path: str, local: str) -> str:
    """Copies a file to the local disk; returns its SHA-256."""
    digest = hashlib.sha256()
    with open(local, "wb") as target:
        for chunk in _chunks(path):
            digest.update(chunk)
            target.write(chunk)
    return digest.hexdigest()


def _chunks(path: str) -> Iterator[bytes]:
    with BeamFiles().open_read(path) as source:
        while chunk := source.read(_CHUNK):
            yield chunk
