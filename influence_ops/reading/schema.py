"""A TensorFlow Metadata schema as what it says of each feature: kind, shape, default, how long its lists may be, where it is sparse."""

from __future__ import annotations

from typing import Any

from google.protobuf import text_format

from beam_influence.influence_ops.reading.features import SCHEMA_TYPES, Declared, Default, Kind, Schema, schema_pb2

_KINDS: dict[Any, Kind] = {number: kind for kind, number in SCHEMA_TYPES.items()}


def parse_schema(text: str) -> Schema:
    """The features in a `schema.pbtxt`; a struct's are named like others.

    Of a `Feature`: its type, `shape`, and `value_count` (of one length: a shape; else the longest list). Of a `SparseFeature`, and of
    the tensor representations in `tensor_representation_group`: a sparse tensor's columns and size, a dense one's shape and default.

    Raises:
      ValueError: the text is not a TensorFlow Metadata schema, or a sparse feature has no size.
    """
    schema = schema_pb2.Schema()
    try:
        text_format.Parse(text, schema)
    except text_format.ParseError as error:
        raise ValueError(f"the schema can't be parsed: {error}; it must be a TensorFlow Metadata schema in text form") from error
    found: dict[str, Declared] = {}
    for feature in schema.feature:
        if feature.type in _KINDS:
            found[feature.name] = _declared(feature)
        for step in feature.struct_domain.feature:
            if step.type in _KINDS:
                found[step.name] = Declared(_KINDS[step.type])
    for sparse in schema.sparse_feature:
        names = [index.name for index in sparse.index_feature]
        found[sparse.name] = _sparse(schema, found, sparse.name, names, sparse.value_feature.name, sparse.dense_shape)
    for group in schema.tensor_representation_group.values():
        for name, tensor in group.tensor_representation.items():
            kind = tensor.WhichOneof("kind")
            if kind == "sparse_tensor":
                of = tensor.sparse_tensor
                found[name] = _sparse(schema, found, name, of.index_column_names, of.value_column_name, of.dense_shape)
            elif kind == "dense_tensor" and tensor.dense_tensor.column_name in found:
                of = tensor.dense_tensor
                shape = _shape(of.shape) if of.HasField("shape") else found[of.column_name].shape
                found[of.column_name] = found[of.column_name]._replace(shape=shape, default=_default(of.default_value))
    return found


def _declared(feature: Any) -> Declared:
    kind = _KINDS[feature.type]
    if feature.HasField("shape"):
        return Declared(kind, _shape(feature.shape))
    count = feature.value_count
    if count.max and count.min == count.max:
        return Declared(kind, () if count.max == 1 else (count.max,))
    return Declared(kind, None, longest=count.max or None)


def _shape(shape: Any) -> tuple[int, ...] | None:
    sizes = tuple(dim.size for dim in shape.dim)
    return sizes if all(size > 0 for size in sizes) else None


def _default(value: Any) -> Default | None:
    which = value.WhichOneof("kind")
    return None if which is None else getattr(value, which)


def _sparse(schema: Any, found: Schema, name: str, indices: Any, values: str, dense_shape: Any) -> Declared:
    by_name = {feature.name: feature for feature in schema.feature}
    missing = [column for column in (*indices, values) if column not in found]
    if missing:
        raise ValueError(f"the schema's sparse feature {name!r} is made of {missing[0]!r}, which is not among the schema's features")
    shape = _shape(dense_shape) if len(dense_shape.dim) else tuple(int(by_name[index].int_domain.max) + 1 for index in indices)
    if not shape or len(shape) != len(indices) or min(shape) < 2 and not len(dense_shape.dim):
        raise ValueError(
            f"the schema does not say how large the sparse feature {name!r} is; write dense_shape {{ dim {{ size: N }} }} in it, a dim "
            "for each of its index features, or int_domain { max: N-1 } in these"
        )
    return Declared(found[values].kind, shape, indices=tuple(indices), values=values)
