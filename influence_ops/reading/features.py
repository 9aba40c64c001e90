"""Which features of the data are read, of which kind and shape; found before a run starts."""

from __future__ import annotations

import dataclasses
import fnmatch
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
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


def parse_schema(text: str) -> dict[str, tuple[Kind, tuple[int, ...] | None]]:
    """Kind and fixed shape (None: not fixed) of each feature in a `schema.pbtxt`; a struct's are named like others.

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


class FeatureResolver:
    """Fits roles and the model's inputs to the data's features.

    Args:
      data: the features of the data.
      schema: by `parse_schema`, or None; it then decides kinds and shapes.
      converts: whether the data's numbers may be read as another kind of number (all formats but tf.Example).
      ordered: whether `data` is in the order of the data's columns; a pattern's features are sorted otherwise.
    """

    def __init__(self, data: Description, schema: Schema | None, converts: bool = False, ordered: bool = False):
        self._data = data
        self._schema = schema
        self._converts = converts
        self._ordered = ordered
        self._known: Schema = schema if schema is not None else {name: (stored.kind, None) for name, stored in data.items()}

    def resolve(self, model_inputs: Sequence[ModelInput], roles: Roles) -> FeatureSpec:
        """The specification without a preprocess function.

        Raises:
          ValueError: a feature is missing, or its kind or its number of values does not fit.
        """
        inputs = tuple((tensor.name, self._input(tensor, roles, len(model_inputs) == 1)) for tensor in model_inputs)
        return dataclasses.replace(self._of_roles(roles, numeric_labels=True), inputs=inputs, double=takes_double(model_inputs))

    def resolve_raw(self, names: Sequence[str], roles: Roles, preprocess: str, double: bool) -> FeatureSpec:
        """What a preprocess function reads; its results, `inputs`, are left open.

        Args:
          names: the features it needs; none: all that have no other role.

        Raises:
          ValueError: a feature is missing.
        """
        spec = self._of_roles(roles, numeric_labels=False)
        chosen = list(names) or [name for name in self._known if name not in roles.others()]
        raw = tuple(self._as_stored(name, "named by --input_features, for --preprocess") for name in chosen)
        return dataclasses.replace(spec, raw=raw, preprocess=preprocess, double=double)

    def _of_roles(self, roles: Roles, numeric_labels: bool) -> FeatureSpec:
        labels = tuple(self._as_stored(name, "the label; name it with --label_feature") for name in roles.labels)
        for label in labels:
            if label.kind == "bytes" and numeric_labels:
                raise ValueError(
                    f"the label feature {label.name!r} holds bytes; labels must be numbers (a --preprocess function may return them)"
                )
        return FeatureSpec(
            (),
            labels,
            self._scalar(roles.id, "--id_feature", ("bytes", "int")),
            self._scalar(roles.group, "--group_feature", ("bytes", "int")),
            self._weight(roles.weight),
            outputs=roles.outputs,
        )

    def _weight(self, name: str | None) -> Feature | None:
        """A number, or one for each position of the example."""
        scalar = self._scalar(name, "--weight_feature", ("float", "int"))
        return None if scalar is None else dataclasses.replace(self._as_stored(scalar.name, "--weight_feature"), kind=scalar.kind)

    def _find(self, name: str, role: str) -> tuple[Kind, tuple[int, ...] | None]:
        if name not in self._known:
            source = "the schema" if self._schema is not None else "the data"
            raise ValueError(f"{source} has no feature {name!r} ({role}); it has {_listed(self._known) or 'none'}")
        return self._known[name]

    def _input(self, tensor: ModelInput, roles: Roles, only: bool) -> Feature:
        wanted = roles.inputs.get(tensor.name, roles.inputs.get("", tensor.name) if only else tensor.name)
        option = f"the model's input {tensor.name!r}; name its feature with --input_features {tensor.name}=FEATURE"
        names = self._expand(wanted)
        parts = [self._part(name, tensor, option) for name in names]
        if len(parts) == 1 and names == [wanted]:
            (part,) = parts
            fixed = self._known[part.name][1]
            shape = _fit(tensor, part.length if part.name in self._data or fixed is not None else None, fixed or part.stored, part.name)
            return dataclasses.replace(part, shape=shape)
        total = sum(part.length for part in parts)
        kind: Kind = "float" if any(part.kind == "float" for part in parts) else parts[0].kind
        return Feature(wanted, kind, _fit(tensor, total, None, wanted), parts=tuple(parts))

    def _part(self, name: str, tensor: ModelInput, option: str) -> Feature:
        part = self._as_stored(name, option)
        if (part.kind == "bytes") != (tensor.dtype == "string"):
            of_text = "; where it is text that looks like numbers, say so by a --schema in which its type is BYTES"
            hint = "; decode it with --preprocess module:function" if part.kind == "bytes" else of_text
            raise ValueError(f"feature {name!r} holds {part.kind} values, the model's input {tensor.name!r} takes {tensor.dtype}{hint}")
        if self._converts and self._schema is None and part.kind == "int" and "float" in tensor.dtype:
            # The first rows of a column of floats may all be whole numbers.
            part = dataclasses.replace(part, kind="float")
        return part

    def _expand(self, wanted: str) -> list[str]:
        """`a+b+c` and patterns as names; a feature of exactly that name comes first."""
        if wanted in self._known:
            return [wanted]
        names = []
        for part in wanted.split("+"):
            part = part.strip()
            if part not in self._known and re.search(r"[*?\[]", part):
                matches = [name for name in self._known if fnmatch.fnmatchcase(name, part)]
                if not matches:
                    raise ValueError(f"--input_features {wanted!r}: no feature matches {part!r}; there are {_listed(self._known)}")
                names += matches if self._ordered else sorted(matches, key=_natural)
            else:
                names.append(part)
        return names

    def _as_stored(self, name: str, role: str) -> Feature:
        kind, fixed = self._find(name, role)
        stored = self._data[name].shape if name in self._data else None
        nested = stored if stored is not None and len(stored) > 1 else None
        shape = fixed if fixed is not None else nested if nested is not None else () if stored in (None, (), (1,)) else stored
        assert shape is not None
        return Feature(name, kind, shape, nested)

    def _scalar(self, name: str | None, role: str, kinds: tuple[Kind, ...]) -> Feature | None:
        if name is None:
            return None
        found = self._find(name, role)[0]
        if found not in kinds:
            raise ValueError(f"{role} feature {name!r} holds {found} values; it must hold {' or '.join(kinds)}")
        if found == "int" and "float" in kinds and self._converts and self._schema is None:
            found = "float"
        return Feature(name, found, ())


def fit_to_output(feature: Feature, output: tuple[int | None, ...]) -> Feature:
    """A label or weight that is stored as one list, in the shape of the model's output, or of its positions.

    Args:
      output: the shape of the output without the batch. Where it is open, or the number of values is another, the feature stays as
        it is.
    """
    if len(feature.shape) != 1 or feature.stored is not None:
        return feature
    for shape in (output, output[:-1]):
        if len(shape) > 1 and None not in shape and math.prod(size or 0 for size in shape) == feature.length:
            return dataclasses.replace(feature, shape=tuple(size or 0 for size in shape))
    return feature


def takes_double(model_inputs: Sequence[ModelInput]) -> bool:
    """Whether the model was made for float64 inputs."""
    return any(tensor.dtype == "float64" for tensor in model_inputs)


def fit_result(tensor: ModelInput, shape: tuple[int, ...], preprocess: str) -> Feature:
    """The feature that a preprocess function returns for an input of the model.

    Raises:
      ValueError: its shape does not fit.
    """
    fits = len(shape) == len(tensor.shape) and all(want in (None, have) for want, have in zip(tensor.shape, shape, strict=True))
    if not fits:
        raise ValueError(
            f"--preprocess {preprocess!r} returns {tensor.name!r} with examples of the shape {list(shape)}; "
            f"the model's input takes {list(tensor.shape)}"
        )
    return Feature(tensor.name, "bytes" if tensor.dtype == "string" else "float", shape)


def _listed(known: Iterable[str]) -> str:
    names = sorted(known, key=_natural)
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def _natural(name: str) -> list[tuple[int, int, str]]:
    """x2 before x10."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name)]


def _fit(tensor: ModelInput, length: int | None, fixed: tuple[int, ...] | None, feature: str) -> tuple[int, ...]:
    """The model's input shape with its unknown dimensions worked out from the number of values."""
    shape = tensor.shape
    if length is None:
        raise ValueError(f"feature {feature!r} has no fixed shape in the schema and is missing in the first examples")
    open_dimensions = [index for index, size in enumerate(shape) if size is None]
    known = math.prod(size for size in shape if size is not None)
    if len(open_dimensions) > 1 and fixed is not None and len(fixed) == len(shape):
        return fixed
    if len(open_dimensions) == 1 and length % known == 0:
        return tuple(length // known if size is None else size for size in shape)
    if open_dimensions or known != length:
        raise ValueError(
            f"feature {feature!r} has {length} values, which do not fill the model's input {tensor.name!r} of shape {list(shape)}"
        )
    return tuple(size for size in shape if size is not None)
