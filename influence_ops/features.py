"""Which features of a tf.Example are read, of which kind and shape; found before a run starts."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import tensorflow as tf
from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import schema_pb2

Kind = Literal["float", "int", "bytes"]

_KINDS: dict[str, Kind] = {"float_list": "float", "int64_list": "int", "bytes_list": "bytes"}
_SCHEMA_TYPES: dict[Kind, Any] = {"float": schema_pb2.FLOAT, "int": schema_pb2.INT, "bytes": schema_pb2.BYTES}


@dataclasses.dataclass(frozen=True)
class Feature:
    """One feature: its name in the data, its kind, and the shape of one example ([] is a scalar)."""

    name: str
    kind: Kind
    shape: tuple[int, ...]

    @property
    def length(self) -> int:
        """How many values one example must have."""
        return math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class FeatureSpec:
    """What a record is decoded to.

    Attributes:
      inputs: (model input name, feature) pairs; a single pair is given to the model as one array.
      label: the label's feature.
      id, group, weight: features of these roles, or None.
    """

    inputs: tuple[tuple[str, Feature], ...]
    label: Feature
    id: Feature | None = None
    group: Feature | None = None
    weight: Feature | None = None

    def features(self) -> list[Feature]:
        """Every feature that is read, each name once."""
        roles = [feature for _, feature in self.inputs] + [self.label, self.id, self.group, self.weight]
        return list({feature.name: feature for feature in roles if feature is not None}.values())

    def schema(self) -> bytes:
        """A serialized TensorFlow Metadata schema of these features."""
        schema = schema_pb2.Schema()
        for feature in self.features():
            schema.feature.add(name=feature.name, type=_SCHEMA_TYPES[feature.kind])
        return schema.SerializeToString()


def describe_example(record: bytes) -> dict[str, tuple[Kind, int]]:
    """The kind and the number of values of each feature in a serialized tf.Example.

    Raises:
      ValueError: the bytes are not a tf.Example.
    """
    try:
        example = tf.train.Example.FromString(record)
    except Exception as error:
        raise ValueError(f"not a serialized tf.Example: {error}") from error
    found: dict[str, tuple[Kind, int]] = {}
    for name, feature in example.features.feature.items():
        which = feature.WhichOneof("kind")
        if which is not None:
            found[name] = (_KINDS[which], len(getattr(feature, which).value))
    return found


def parse_schema(text: str) -> dict[str, tuple[Kind, tuple[int, ...] | None]]:
    """Kind and fixed shape (None: not fixed) of each feature in a `schema.pbtxt`.

    Raises:
      ValueError: the text is not a TensorFlow Metadata schema.
    """
    schema = schema_pb2.Schema()
    try:
        text_format.Parse(text, schema)
    except text_format.ParseError as error:
        raise ValueError(f"the schema can't be parsed: {error}; it must be a TensorFlow Metadata schema in text form") from error
    kinds = {number: kind for kind, number in _SCHEMA_TYPES.items()}
    return {
        feature.name: (kinds[feature.type], tuple(dim.size for dim in feature.shape.dim) if feature.HasField("shape") else None)
        for feature in schema.feature
        if feature.type in kinds
    }


def resolve_features(
    model_inputs: list[tuple[str, tuple[int | None, ...], str]],
    example: dict[str, tuple[Kind, int]],
    schema: dict[str, tuple[Kind, tuple[int, ...] | None]] | None,
    input_features: dict[str, str],
    label_feature: str,
    id_feature: str | None,
    group_feature: str | None,
    weight_feature: str | None,
) -> FeatureSpec:
    """Fits the model's inputs to the data's features.

    Args:
      model_inputs: (name, shape without the batch, dtype) of each input of the model.
      example: the first example, by `describe_example`.
      schema: by `parse_schema`, or None; it then decides kinds and shapes.
      input_features: model input name -> feature name, where they differ; for a model of one input
        the key may be empty.

    Raises:
      ValueError: a feature is missing, or its kind or its number of values does not fit.
    """
    known = schema if schema is not None else {name: (kind, None) for name, (kind, _) in example.items()}
    source = "the schema" if schema is not None else "the data"

    def find(name: str, role: str) -> tuple[Kind, tuple[int, ...] | None]:
        if name not in known:
            raise ValueError(f"{source} has no feature {name!r} ({role}); it has {', '.join(sorted(known)) or 'none'}")
        return known[name]

    inputs = []
    for name, shape, dtype in model_inputs:
        default = input_features.get("", name) if len(model_inputs) == 1 else name
        feature_name = input_features.get(name, default)
        option = f"the model's input {name!r}; name its feature with --input_features {name}=FEATURE"
        kind, fixed = find(feature_name, option)
        if (kind == "bytes") != (dtype == "string"):
            raise ValueError(f"feature {feature_name!r} holds {kind} values, the model's input {name!r} takes {dtype}")
        length = example[feature_name][1] if feature_name in example else (math.prod(fixed) if fixed is not None else None)
        inputs.append((name, Feature(feature_name, kind, _fit(shape, length, fixed, feature_name, name))))
    kind, fixed = find(label_feature, "the label; name it with --label_feature")
    length = example[label_feature][1] if label_feature in example else 1
    label = Feature(label_feature, kind, fixed if fixed is not None else (() if length == 1 else (length,)))
    if kind == "bytes":
        raise ValueError(f"the label feature {label_feature!r} holds bytes; labels must be numbers")

    def scalar(name: str | None, role: str, kinds: tuple[Kind, ...]) -> Feature | None:
        if name is None:
            return None
        found = find(name, role)[0]
        if found not in kinds:
            raise ValueError(f"{role} feature {name!r} holds {found} values; it must hold {' or '.join(kinds)}")
        return Feature(name, found, ())

    return FeatureSpec(
        tuple(inputs),
        label,
        scalar(id_feature, "--id_feature", ("bytes", "int")),
        scalar(group_feature, "--group_feature", ("bytes", "int")),
        scalar(weight_feature, "--weight_feature", ("float", "int")),
    )


def _fit(
    shape: tuple[int | None, ...], length: int | None, fixed: tuple[int, ...] | None, feature: str, name: str
) -> tuple[int, ...]:
    """The model's input shape with its unknown dimensions worked out from the number of values."""
    if length is None:
        raise ValueError(f"feature {feature!r} has no fixed shape in the schema and is missing in the first example")
    open_dimensions = [index for index, size in enumerate(shape) if size is None]
    known = math.prod(size for size in shape if size is not None)
    if len(open_dimensions) > 1 and fixed is not None and len(fixed) == len(shape):
        return fixed
    if len(open_dimensions) == 1 and length % known == 0:
        return tuple(length // known if size is None else size for size in shape)
    if open_dimensions or known != length:
        raise ValueError(
            f"feature {feature!r} has {length} values, which do not fill the model's input {name!r} of shape {list(shape)}"
        )
    return tuple(size for size in shape if size is not None)
