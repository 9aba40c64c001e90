"""Which feature of the data is which input, label, id, group or weight, in which shape; found before a run starts."""

from __future__ import annotations

import dataclasses
import fnmatch
import math
import re
from collections.abc import Iterable, Sequence

from beam_influence.influence_ops.reading.defaults import Defaults
from beam_influence.influence_ops.reading.features import (
    RECORD,
    Declared,
    Description,
    Feature,
    FeatureSpec,
    Kind,
    ModelInput,
    Roles,
    Schema,
)

NO_DEFAULTS = Defaults({})


class FeatureResolver:
    """Fits roles and the model's inputs to the data's features.

    Args:
      data: the features of the data.
      schema: by `parse_schema`, or None; it then decides kinds and shapes.
      converts: whether the data's numbers may be read as another kind of number (all formats but tf.Example).
      ordered: whether `data` is in the order of the data's columns; a pattern's features are sorted otherwise.
      defaults: what the user says stands for missing values.
      has_records: as of `Reader`.
    """

    def __init__(
        self,
        data: Description,
        schema: Schema | None,
        converts: bool = False,
        ordered: bool = False,
        defaults: Defaults = NO_DEFAULTS,
        has_records: bool = False,
    ):
        self._data = data
        self._schema = schema
        self._converts = converts
        self._ordered = ordered
        self._defaults = defaults
        self._has_records = has_records
        self._known: Schema = schema if schema is not None else {name: Declared(stored.kind) for name, stored in data.items()}

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
        of_sparse = {name for declared in self._known.values() for name in (*declared.indices, declared.values)}
        chosen = list(names) or [name for name in self._known if name not in roles.others() | of_sparse]
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
        return None if scalar is None else self._as_stored(scalar.name, "--weight_feature", scalar.kind)

    def _find(self, name: str, role: str) -> Declared:
        if name not in self._known:
            source = "the schema" if self._schema is not None else "the data"
            raise ValueError(f"{source} has no feature {name!r} ({role}); it has {_listed(self._known) or 'none'}")
        return self._known[name]

    def _input(self, tensor: ModelInput, roles: Roles, only: bool) -> Feature:
        if tensor.parses and not ({tensor.name, ""} & set(roles.inputs)):
            return self._record(tensor)
        wanted = roles.inputs.get(tensor.name, roles.inputs.get("", tensor.name) if only else tensor.name)
        option = f"the model's input {tensor.name!r}; name its feature with --input_features {tensor.name}=FEATURE"
        names = self._expand(wanted)
        parts = [self._part(name, tensor, option) for name in names]
        if len(parts) == 1 and names == [wanted]:
            (part,) = parts
            known = self._known[part.name]
            if part.completes:
                return dataclasses.replace(part, shape=_open_shape(tensor, part))
            length = part.length if part.name in self._data or known.shape is not None else None
            shape = _input_shape(tensor, length, known.shape or part.stored, part.name)
            if part.sparse and shape != part.shape:
                raise ValueError(
                    f"the sparse feature {part.name!r} has the shape {list(part.shape)} in the schema, the model's input "
                    f"{tensor.name!r} takes {list(tensor.shape)}"
                )
            return dataclasses.replace(part, shape=shape)
        total = sum(part.length for part in parts)
        kind: Kind = "float" if any(part.kind == "float" for part in parts) else parts[0].kind
        return Feature(wanted, kind, _input_shape(tensor, total, None, wanted), parts=tuple(parts))

    def _record(self, tensor: ModelInput) -> Feature:
        """The record itself, of which the model reads features that the data has."""
        mend = "give --signature call, the model inside, whose inputs are then features of the data"
        if not self._has_records:
            raise ValueError(f"the model's input {tensor.name!r} takes serialized tf.Examples, and these files hold none; {mend}")
        if self._data and not set(tensor.parses) & set(self._data):
            raise ValueError(
                f"the model parses {_listed(tensor.parses)} out of each tf.Example, and the data has {_listed(self._data)}, none of these; "
                f"{mend}, or the files that it was served with"
            )
        return Feature(RECORD, "bytes", ())

    def _part(self, name: str, tensor: ModelInput, option: str) -> Feature:
        kind = self._find(name, option).kind
        # The first rows of a column of floats may all be whole numbers.
        as_float = self._converts and self._schema is None and kind == "int" and "float" in tensor.dtype
        part = self._as_stored(name, option, "float" if as_float else kind)
        if (part.kind == "bytes") != (tensor.dtype == "string"):
            of_text = "; where it is text that looks like numbers, say so by a --schema in which its type is BYTES"
            hint = "; decode it with --preprocess module:function" if part.kind == "bytes" else of_text
            raise ValueError(f"feature {name!r} holds {part.kind} values, the model's input {tensor.name!r} takes {tensor.dtype}{hint}")
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
                names += matches if self._ordered else sorted(matches, key=_natural_order)
            else:
                names.append(part)
        return names

    def _as_stored(self, name: str, role: str, kind: Kind | None = None) -> Feature:
        """The feature as the data has it; `kind`: what its values are read as, where that is not what they are."""
        found, fixed, of_schema, most, indices, values = self._find(name, role)
        kind = kind or found
        said = self._defaults.of(name, kind)
        default = of_schema if said is None else said
        if indices:
            places = tuple(Feature(index, "int", ()) for index in indices)
            return Feature(name, kind, fixed or (), default=default, sparse=(*places, Feature(values, kind, ())))
        stored = self._data[name].shape if name in self._data else None
        nested = stored if stored is not None and len(stored) > 1 else None
        completes = default is not None and fixed is None and nested is None and stored != ()
        longest = most or (self._data[name].longest if name in self._data else None)
        if completes and longest is not None and longest > 1:
            return Feature(name, kind, (longest,), default=default, completes=True)
        shape = fixed if fixed is not None else nested if nested is not None else () if stored in (None, (), (1,)) else stored
        assert shape is not None
        return Feature(name, kind, shape, nested, default=default, completes=completes)

    def _scalar(self, name: str | None, role: str, kinds: tuple[Kind, ...]) -> Feature | None:
        if name is None:
            return None
        found = self._find(name, role).kind
        if found not in kinds:
            raise ValueError(f"{role} feature {name!r} holds {found} values; it must hold {' or '.join(kinds)}")
        if found == "int" and "float" in kinds and self._converts and self._schema is None:
            found = "float"
        if role == "--id_feature" and self._defaults.of(name, found) is not None:
            raise ValueError(f"--default names {name!r}, the ids: no two examples may have one id; leave it out")
        default = self._defaults.of(name, found)
        return Feature(name, found, (), default=self._known[name].default if default is None else default)


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
    names = sorted(known, key=_natural_order)
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def _natural_order(name: str) -> list[tuple[int, int, str]]:
    """A key by which names are sorted with their numbers in order: x2 before x10."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name)]


def _open_shape(tensor: ModelInput, part: Feature) -> tuple[int, ...]:
    """The model's input shape for lists that are completed: an open dimension is as long as the longest list needs it."""
    open_dimensions = sum(size is None for size in tensor.shape)
    if open_dimensions > 1:
        raise ValueError(
            f"the model's input {tensor.name!r} of shape {list(tensor.shape)} is open in several dimensions; give the shape of "
            f"{part.name!r} in a --schema"
        )
    known = math.prod(size for size in tensor.shape if size is not None)
    return tuple(-(-part.length // known) if size is None else size for size in tensor.shape)


def _input_shape(tensor: ModelInput, length: int | None, fixed: tuple[int, ...] | None, feature: str) -> tuple[int, ...]:
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
