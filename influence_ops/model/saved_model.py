"""A SavedModel as a model whose weights can be watched: a signature of it, or the model inside, differentiated as it stands.

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

from beam_influence.influence_ops.model.saved_endpoints import open_endpoint

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


class SavedModelNetwork:
    """An endpoint of a SavedModel.

    Args:
      folder: a local folder, as `model.export` or `tf.saved_model.save` writes it.
      signature: as of `open_endpoint`.

    Attributes:
      inputs, variables, trainable_variables, layers: as of a Keras model; layers are grouped by the variables' names.
      one_by_one: whether it parses its inputs, which can't be vectorised over examples.
      stopped_gradients: how many StopGradient operations the graph has; see `exact_moments`.

    Raises:
      ValueError: it is no SavedModel, has no such signature, nothing to watch, or a refused operation.
    """

    def __init__(self, folder: str, signature: str = ""):
        self._folder = folder
        graph = _check_operations(folder)
        try:
            self._loaded = tf.saved_model.load(folder)  # keeps the variables alive
        except Exception as error:
            raise ValueError(f"can't load the SavedModel {folder!r}: {error}") from error
        self._endpoint = open_endpoint(self._loaded, signature, folder)
        self.inputs = self._endpoint.inputs
        fixed = [tensor for tensor in self.inputs if not tensor.shape or tensor.shape[0] is not None]
        if fixed:
            raise ValueError(
                f"the SavedModel {folder!r} takes {fixed[0].name!r} in the shape {list(fixed[0].shape)}, not in batches of any "
                "size; export it with None as the first dimension"
            )
        self.variables = _named(self._endpoint.variables)
        self.trainable_variables = [variable for variable in self.variables if variable.value.trainable]
        if not self.trainable_variables:
            raise ValueError(f"the SavedModel {folder!r} has no trainable variables (a frozen graph?); nothing can be watched")
        self.layers = _layers(self.trainable_variables, graph)
        self.one_by_one = any(tensor.parses for tensor in self.inputs)
        self.dtype = self.trainable_variables[0].dtype
        self.stopped_gradients = sum(name == "StopGradient" for name in _operations(self._endpoint.graph.as_graph_def()))

    def __call__(self, inputs: Any, training: bool = False) -> Any:
        """The endpoint's output, or a dictionary of several."""
        del training  # what was exported is the inference graph
        return self._endpoint.call(inputs if isinstance(inputs, Mapping) else {self.inputs[0].name: inputs})


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


def without_slots(graph: bytes) -> bytes:
    """A SavedModel's graph file without its optimizer's slots: TensorFlow can't load those of an optimizer of Keras 2, and none is
    needed. The same bytes where there are none."""
    saved = saved_model_pb2.SavedModel.FromString(graph)
    nodes = [node for meta in saved.meta_graphs for node in meta.object_graph_def.nodes if node.slot_variables]
    for node in nodes:
        del node.slot_variables[:]
    return saved.SerializeToString(deterministic=True) if nodes else graph
