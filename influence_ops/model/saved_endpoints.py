"""What a SavedModel can be called by: its signatures, and the model inside whose functions were saved beside them.

A trainer of TFX saves a Keras model whose serving signature takes serialized tf.Examples and parses them in its graph. Two ways lead to its
weights: the signature, fed the records as the files have them; or the model inside (`CALL`), which takes what the graph makes of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import tensorflow as tf

SIGNATURE = "serving_default"
CALL = "call"
"""Names the model inside, where a signature is asked for."""


@dataclasses.dataclass(frozen=True)
class SavedInput:
    """An input of an endpoint; `shape` has the batch first, as a Keras tensor's. `parses`: it takes serialized tf.Examples, and the
    graph reads these features of them."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    parses: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """One way to call a SavedModel.

    Attributes:
      inputs: by name.
      call: takes the inputs by their names, gives the output, or several.
      variables: those it reads.
      graph: its graph.
    """

    inputs: list[SavedInput]
    call: Callable[[Mapping[str, Any]], Any]
    variables: tuple[Any, ...]
    graph: Any


def open_endpoint(loaded: Any, name: str, folder: str) -> Endpoint:
    """An endpoint of a loaded SavedModel.

    Args:
      name: a signature, or `CALL`; empty: `serving_default`.
      folder: where it is, for messages.

    Raises:
      ValueError: there is none of this name.
    """
    if name == CALL and CALL not in loaded.signatures:
        inside = next(_functions_inside(loaded), None)
        if inside is None:
            raise ValueError(f"the SavedModel {folder!r} has no model inside that takes tensors; leave --signature {CALL} out")
        return inside
    wanted = name or SIGNATURE
    if wanted not in loaded.signatures:
        there = ", ".join([*sorted(loaded.signatures), *([CALL] if any(_functions_inside(loaded)) else [])])
        written = f"write it with model.export(folder), or tf.saved_model.save(module, folder, signatures={{{SIGNATURE!r}: function}})"
        mend = f"name one with --signature: {there}" if there else written
        raise ValueError(f"the SavedModel {folder!r} has no signature {wanted!r}; {mend}")
    signature = loaded.signatures[wanted]
    parses = parsed_features(signature.graph)
    specs = sorted(signature.structured_input_signature[1].items())
    is_serialized = len(specs) == 1 and specs[0][1].dtype == tf.string and specs[0][1].shape.rank == 1
    inputs = [SavedInput(key, tuple(spec.shape), spec.dtype.name, parses if is_serialized else ()) for key, spec in specs]

    def call(given: Mapping[str, Any]) -> Any:
        outputs = signature(**{tensor.name: tf.cast(given[tensor.name], tensor.dtype) for tensor in inputs})
        return next(iter(outputs.values())) if len(outputs) == 1 else outputs

    return Endpoint(inputs, call, tuple(signature.variables), signature.graph)


def _functions_inside(loaded: Any) -> Iterator[Endpoint]:
    """The saved calls of the object itself that take a batch of tensors, not in training."""
    for name in ("__call__", "call", "serve"):
        restored = getattr(loaded, name, None)
        for function in getattr(restored, "concrete_functions", ()):
            (given, *others), keywords = function.structured_input_signature[0] or (None,), function.structured_input_signature[1]
            specs = tf.nest.flatten(given)
            if any(others) or any(keywords.values()) or not specs or not all(isinstance(spec, tf.TensorSpec) for spec in specs):
                continue
            yield _function_endpoint(restored, function, given, others)


def _function_endpoint(restored: Any, function: Any, structure: Any, others: list[Any]) -> Endpoint:
    names = {name: spec for name, spec in structure.items()} if isinstance(structure, dict) else {
        spec.name or f"input_{place}": spec for place, spec in enumerate(tf.nest.flatten(structure))
    }  # fmt: skip
    inputs = [SavedInput(name, tuple(spec.shape), spec.dtype.name) for name, spec in sorted(names.items())]

    def call(given: Mapping[str, Any]) -> Any:
        tensors = {tensor.name: tf.cast(given[tensor.name], tensor.dtype) for tensor in inputs}
        packed = tensors if isinstance(structure, dict) else tf.nest.pack_sequence_as(structure, [tensors[name] for name in names])
        outputs = restored(packed, *others)
        parts = list(outputs) if isinstance(outputs, (list, tuple)) else None
        if parts is None:
            return outputs
        return parts[0] if len(parts) == 1 else {str(place): part for place, part in enumerate(parts)}

    return Endpoint(inputs, call, tuple(function.variables), function.graph)


def parsed_features(graph: Any) -> tuple[str, ...]:
    """The features that a graph parses out of serialized tf.Examples; empty: it parses none."""
    definition = graph.as_graph_def()
    found: set[str] = set()
    for nodes in (definition.node, *(function.node_def for function in definition.library.function)):
        constants = {node.name: node for node in nodes if node.op == "Const"}
        for node in nodes:
            if node.op != "ParseExampleV2":
                continue
            for given in node.input:
                constant = constants.get(given.partition(":")[0])
                if constant is not None and constant.attr["value"].tensor.dtype == tf.string.as_datatype_enum:
                    names = tf.make_ndarray(constant.attr["value"].tensor).reshape(-1)
                    found |= {name.decode() for name in names if name}
    return tuple(sorted(found))
