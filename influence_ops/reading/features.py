"""The features of the data: their kinds and shapes as stored, as the model gets them, and as a schema says."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import schema_pb2 as _schema_pb2

schema_pb2: Any = _schema_pb2  # generated: type checkers see no names in it

Kind = Literal["float", "int", "bytes"]

SCHEMA_TYPES: dict[Kind, Any] = {"float": schema_pb2.FLOAT, "int": schema_pb2.INT, "bytes": schema_pb2.BYTES}


class Stored(NamedTuple):
    """How a feature is stored: its kind and the lengths of its lists, outermost first ([] is a scalar column)."""

    kind: Kind
    shape: tuple[int, ...]


Description = Mapping[str, Stored]
"""The features of some data, in the order of its columns where they have one."""

Schema = Mapping[str, tuple[Kind, tuple[int, ...] | None]]
"""Kind and fixed shape (None: not fixed) of each feature, by its name."""


class ModelInput(NamedTuple):
    """One input of the model: its name, its shape without the batch, and its dtype as declared."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str


@dataclasses.dataclass(frozen=True)
class Feature:
    """One feature.

    Attributes:
      name: its name in the data.
      kind: the kind of its values.
      shape: the shape of one example as the model gets it ([] is a scalar).
      stored: the lengths of its lists as stored when there are lists of lists; None: one list, or a scalar.
      parts: the features it is put together from, in order; empty: it is read as it is.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    stored: tuple[int, ...] | None = None
    parts: tuple[Feature, ...] = ()

    @property
    def length(self) -> int:
        """How many values one example must have."""
        return math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class FeatureSpec:
    """What a row of the data is decoded to.

    Attributes:
      inputs: (model input name, feature) pairs; a single pair is given to the model as one array. With `preprocess`
        the features are what it returns, not what is read.
      labels: the labels' features; a single one is given to the loss as one array, several as a dictionary by `label_names`.
      id, group, weight: features of these roles, or None.
      format: the name of the data's reader.
      double: whether floats are read as float64: the model takes such inputs. Else they are float32 in every format.
      preprocess: the function `module:function` that makes the inputs, or None.
      raw: the features that `preprocess` gets.
      outputs: the output of the model that each label belongs to, '' where the user named none.
    """

    inputs: tuple[tuple[str, Feature], ...]
    labels: tuple[Feature, ...]
    id: Feature | None = None
    group: Feature | None = None
    weight: Feature | None = None
    format: str = "tfrecord"
    double: bool = False
    preprocess: str | None = None
    raw: tuple[Feature, ...] = ()
    outputs: tuple[str, ...] = ()

    @property
    def label_names(self) -> tuple[str, ...]:
        """What each label is called: the output of the model that it belongs to, or its feature."""
        return tuple(output or label.name for output, label in zip(self.outputs or [""] * len(self.labels), self.labels, strict=True))

    def features(self) -> list[Feature]:
        """Every feature that is read, each name once."""
        of_inputs = self.raw if self.preprocess else [feature for _, feature in self.inputs]
        roles = [*of_inputs, *self.labels, self.id, self.group, self.weight]
        read = [part for feature in roles if feature is not None for part in feature.parts or (feature,)]
        return list({feature.name: feature for feature in read}.values())


@dataclasses.dataclass(frozen=True)
class Roles:
    """Which feature does what, as the user says.

    Attributes:
      inputs: model input name -> feature, `a+b+c`, or a pattern such as `pixel_*`; for a model of one input the name
        may be empty.
      labels: the labels' names.
      id, group, weight: names, or None.
      outputs: the output of the model that each label belongs to, '' where none is named.
    """

    inputs: Mapping[str, str]
    labels: tuple[str, ...]
    id: str | None = None
    group: str | None = None
    weight: str | None = None
    outputs: tuple[str, ...] = ()

    def others(self) -> set[str]:
        """Features that are no input unless named so."""
        return {name for name in (*self.labels, self.id, self.group, self.weight) if name is not None}


def most_common(rows: Iterable[Description]) -> dict[str, Stored]:
    """Each feature as most rows have it: a bad first row decides nothing."""
    seen: dict[str, Counter[Stored]] = {}
    for row in rows:
        for name, stored in row.items():
            seen.setdefault(name, Counter())[stored] += 1
    return {name: counter.most_common(1)[0][0] for name, counter in seen.items()}


def parse_schema(text: str) -> Schema:
    """The features in a `schema.pbtxt`; a struct's are named like others.

    Raises:
      ValueError: the text is not a TensorFlow Metadata schema.
    """
    schema = schema_pb2.Schema()
    try:
        text_format.Parse(text, schema)
    except text_format.ParseError as error:
        raise ValueError(f"the schema can't be parsed: {error}; it must be a TensorFlow Metadata schema in text form") from error
    kinds: dict[Any, Kind] = {number: kind for kind, number in SCHEMA_TYPES.items()}
    found: dict[str, tuple[Kind, tuple[int, ...] | None]] = {}
    for feature in schema.feature:
        if feature.type in kinds:
            fixed = tuple(dim.size for dim in feature.shape.dim) if feature.HasField("shape") else None
            found[feature.name] = (kinds[feature.type], fixed)
        for step in feature.struct_domain.feature:
            if step.type in kinds:
                found[step.name] = (kinds[step.type], None)
    return found
