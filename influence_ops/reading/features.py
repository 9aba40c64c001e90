"""The features of the data: their kinds and shapes as stored, as the model gets them, and as a schema says."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

from tensorflow_metadata.proto.v0 import schema_pb2 as _schema_pb2

schema_pb2: Any = _schema_pb2  # generated: type checkers see no names in it

Kind = Literal["float", "int", "bytes"]

SCHEMA_TYPES: dict[Kind, Any] = {"float": schema_pb2.FLOAT, "int": schema_pb2.INT, "bytes": schema_pb2.BYTES}


RECORD = "#record"
"""Names the record itself, as the file has it, where a model takes that."""

Default = float | int | bytes
"""What stands for a value that an example lacks."""


class Stored(NamedTuple):
    """How a feature is stored: its kind and the lengths of its lists, outermost first ([] is a scalar column).

    Attributes:
      longest: where it is one list whose length differs between rows: the greatest; else None.
    """

    kind: Kind
    shape: tuple[int, ...]
    longest: int | None = None


class Declared(NamedTuple):
    """What is known of a feature before any example is read.

    Attributes:
      kind: of its values.
      shape: of each example; None: not fixed.
      default: what stands for it where an example lacks it; None: nothing does.
      longest: how many values an example has at most, where that differs; None: not said.
      indices, values: of a sparse feature, the features with each value's place in `shape`, one for each dimension, and the one with
        the values.
    """

    kind: Kind
    shape: tuple[int, ...] | None = None
    default: Default | None = None
    longest: int | None = None
    indices: tuple[str, ...] = ()
    values: str = ""


Description = Mapping[str, Stored]
"""The features of some data, in the order of its columns where they have one."""

Schema = Mapping[str, Declared]
"""Features by their names."""


class ModelInput(NamedTuple):
    """One input of the model: its name, its shape without the batch, and its dtype as declared. `parses`: it takes serialized
    tf.Examples, and reads these features of them."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    parses: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Feature:
    """One feature.

    Attributes:
      name: its name in the data.
      kind: the kind of its values.
      shape: the shape of one example as the model gets it ([] is a scalar).
      stored: the lengths of its lists as stored when there are lists of lists; None: one list, or a scalar.
      parts: the features it is put together from, in order; empty: it is read as it is.
      default: what stands for it in an example that lacks it, and for a null in it; None: such an example is rejected.
      completes: whether a list that is too short is completed by `default`, too.
      sparse: the features of each value's place, one for each dimension of `shape`, and that of the values, last; empty: it is not sparse.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    stored: tuple[int, ...] | None = None
    parts: tuple[Feature, ...] = ()
    default: Default | None = None
    completes: bool = False
    sparse: tuple[Feature, ...] = ()

    @property
    def columns(self) -> tuple[Feature, ...]:
        """The features that are stored: itself, or what a sparse one is made of."""
        return self.sparse or (self,)

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
    """Each feature as most rows have it: a bad first row decides nothing, and an empty list is a feature that is missing."""
    seen: dict[str, Counter[Stored]] = {}
    for row in rows:
        for name, stored in row.items():
            seen.setdefault(name, Counter())[stored] += 1
    return {name: _most_common(counter) for name, counter in seen.items()}


def _most_common(seen: Counter[Stored]) -> Stored:
    filled = Counter({stored: times for stored, times in seen.items() if 0 not in stored.shape}) or seen
    stored = filled.most_common(1)[0][0]
    lengths = {other.shape[0] for other in seen if len(other.shape) == 1 and other.kind == stored.kind}
    return stored._replace(longest=max(lengths)) if len(stored.shape) == 1 and len(lengths) > 1 else stored
