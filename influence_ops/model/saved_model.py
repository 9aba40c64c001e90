"""A SavedModel as a model whose weights can be watched: its serving signature, differentiated as it stands.

Nothing of it is rebuilt, so it is computed in its own dtype and ends where its signature ends: probabilities stay
probabilities. What runs is its graph; one with operations that run Python or touch files is refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Mapping
from typing import Any

import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

SIGNATURE = "serving_default"
GRAPH_FILE = "saved_model.pb"
_REFUSED = {"PyFunc", "PyFuncStateless", "EagerPyFunc", "ReadFile", "WriteFile", "MatchingFiles"}


@dataclasses.dataclass(frozen=True)
class SavedVariable:
    """A variable with the attributes of a Keras one that influence needs."""

    path: str
    value: Any
    regularizer: None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape)

    @property
    def dtype(self) -> str:
        return self.value.dtype.name


@dataclasses.dataclass(frozen=True)
class SavedLayer:
    """Variables that stand together under one name, of the graph with the SHA-256 `graph`."""

    name: str
    trainable_variables: list[SavedVariable]
    graph: str

    def get_config(self) -> dict[str, str]:
        """What the model's fingerprint covers beside the weights."""
        return {"graph": self.graph}


@dataclasses.dataclass(frozen=True)
class SavedInput:
    """An input of the signature; `shape` has the batch first, as a Keras tensor's."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str


class SavedModelNetwork:
    """The serving signature of a SavedModel.

    Args:
      folder: a local folder, as `model.export` or `tf.saved_model.save` writes it.

    Attributes:
      inputs, variables, trainable_variables, layers: as of a Keras model; layers are grouped by the variables' names.
      stopped_gradients: how many StopGradient operations the graph has; see `exact_moments`.

    Raises:
      ValueError: it is no SavedModel, has no serving signature, nothing to watch, or a refused operation.
    """

    def __init__(self, folder: str):
        self._folder = folder
        graph = _check_operations(folder)
        try:
            self._loaded = tf.saved_model.load(folder)  # keeps the variables alive
        except Exception as error:
            raise ValueError(f"can't load the SavedModel {folder!r}: {error}") from error
        if SIGNATURE not in self._loaded.signatures:
            raise ValueError(
                f"the SavedModel {folder!r} has no signature {SIGNATURE!r}; write it with model.export(folder), or "
                f"tf.saved_model.save(module, folder, signatures={{{SIGNATURE!r}: function}})"
            )
        self._signature = self._loaded.signatures[SIGNATURE]
        specs = self._signature.structured_input_signature[1]
        self.inputs = [SavedInput(name, tuple(spec.shape), spec.dtype.name) for name, spec in sorted(specs.items())]
        fixed = [tensor for tensor in self.inputs if not tensor.shape or tensor.shape[0] is not None]
        if fixed:
            raise ValueError(
                f"the SavedModel {folder!r} takes {fixed[0].name!r} in the shape {list(fixed[0].shape)}, not in batches of any "
                "size; export it with None as the first dimension"
            )
        self.variables = _named(self._signature.variables)
        self.trainable_variables = [variable for variable in self.variables if variable.value.trainable]
        if not self.trainable_variables:
            raise ValueError(f"the SavedModel {folder!r} has no trainable variables (a frozen graph?); nothing can be watched")
        self.layers = _layers(self.trainable_variables, graph)
        self.dtype = self.trainable_variables[0].dtype
        self.stopped_gradients = sum(name == "StopGradient" for name in _operations(self._signature.graph.as_graph_def()))

    def __call__(self, inputs: Any, training: bool = False) -> Any:
        """The signature's output, or a dictionary of several."""
        del training  # what was exported is the inference graph
        given = inputs if isinstance(inputs, Mapping) else {self.inputs[0].name: inputs}
        outputs = self._signature(**{tensor.name: tf.cast(given[tensor.name], tensor.dtype) for tensor in self.inputs})
        return next(iter(outputs.values())) if len(outputs) == 1 else outputs


def _named(variables: Iterable[Any]) -> list[SavedVariable]:
    """The variables with their names, numbered where several have the same one."""
    found: dict[str, int] = {}
    named = []
    for variable in variables:
        name = variable.name.removesuffix(":0")
        found[name] = found.get(name, 0) + 1
        named.append(SavedVariable(name if found[name] == 1 else f"{name}_{found[name] - 1}", variable))
    return named


def _layers(variables: Iterable[SavedVariable], graph: str) -> list[SavedLayer]:
    layers: list[SavedLayer] = []
    for variable in variables:
        name = variable.path.rpartition("/")[0]
        if not layers or layers[-1].name != name:
            layers.append(SavedLayer(name, [], graph))
        layers[-1].trainable_variables.append(variable)
    return layers


def _operations(graph: Any) -> Iterable[str]:
    yield from (node.op for node in graph.node)
    yield from (node.op for function in graph.library.function for node in function.node_def)


def _check_operations(folder: str) -> str:
    """The SHA-256 of the graph's file, when it has no refused operation."""
    try:
        with open(os.path.join(folder, GRAPH_FILE), "rb") as file:
            content = file.read()
        saved = saved_model_pb2.SavedModel.FromString(content)
    except Exception as error:
        raise ValueError(f"can't read the SavedModel {folder!r}: {error}") from error
    refused = {name for meta in saved.meta_graphs for name in _operations(meta.graph_def)} & _REFUSED
    if refused:
        raise ValueError(
            f"the SavedModel {folder!r} has the operations {', '.join(sorted(refused))}, which run Python or touch files; "
            "export the model without them, or give it as --model module:function"
        )
    return hashlib.sha256(content).hexdigest()
