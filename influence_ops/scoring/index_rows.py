"""The rows of an index: r numbers for each training example, in float32, float16, or a byte and two bits each.

In `int8` the r numbers are first rotated (fixed random signs, Hadamard transforms), which makes them about equally large, then divided by
the row's `scale` and rounded to whole numbers from −511 to 511: ⌊n/4⌋ is a byte, n's last two bits are in `last_bits`. A rotation keeps
inner products, so test points are rotated when they are searched for, and stored rows never turned back. r = 124 takes 124 + 31 + 4 bytes.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pyarrow as pa

from beam_influence.influence_ops.curvature.projections import hadamard_transform

IndexDtype = Literal["float32", "float16", "int8"]

_DTYPES: dict[str, Any] = {"float32": np.float32, "float16": np.float16}
_LARGEST = 511
_BITS = 2  # beside a byte: 8 bits alone, or 9, find less than 99 of 100 of the ten best of 10 million Gaussian rows


def index_schema(dim: int, dtype: IndexDtype) -> pa.Schema:
    """One row for each training example: the embedding, of `int8` rotated, is `scale` × the numbers in `embedding` (and `last_bits`)."""
    if dtype == "int8":
        numbers = [("embedding", pa.binary(dim)), ("last_bits", pa.binary(_bit_bytes(dim)))]
    else:
        numbers = [("embedding", pa.list_(pa.float16() if dtype == "float16" else pa.float32(), dim))]
    fields = [("train_id", pa.string()), ("scale", pa.float32()), *numbers]
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in fields])


def _bit_bytes(dim: int) -> int:
    return -(-_BITS * dim // 8)


def index_table(ids: np.ndarray, embedded: np.ndarray, dtype: IndexDtype) -> pa.Table:
    """Ids (B,) and embeddings [B, r] as rows. float16 and int8 are scaled row by row: no example is too small for them.

    Raises:
      ValueError: an embedding is too large for float32.
    """
    schema, dim = index_schema(embedded.shape[1], dtype), embedded.shape[1]
    numbers = rotated(embedded) if dtype == "int8" else embedded
    with np.errstate(over="ignore", invalid="ignore"):
        scale = np.ones(len(ids), dtype=np.float32)
        if dtype != "float32":
            largest = np.abs(numbers).max(axis=1, initial=0.0) / (_LARGEST if dtype == "int8" else 1)
            scale = np.maximum(largest, np.finfo(np.float32).tiny).astype(np.float32)
        numbers = numbers / scale[:, None].astype(np.float64)
        stored = numbers.astype(_DTYPES.get(dtype, np.float64))
    if not np.isfinite(stored).all() or not np.isfinite(scale).all():
        raise ValueError("an embedding is too large for float32; raise --damping")
    columns = [pa.array(ids, pa.string()), pa.array(scale)]
    if dtype == "int8":
        whole = np.clip(np.rint(numbers), -_LARGEST, _LARGEST).astype(np.int16)
        bits = (whole[:, :, None] >> np.arange(_BITS - 1, -1, -1)) & 1
        packed = np.packbits(bits.reshape(len(ids), _BITS * dim).astype(bool), axis=1)
        columns += [_bytes_column((whole >> _BITS).astype(np.int8)), _bytes_column(packed)]
    else:
        columns.append(pa.FixedSizeListArray.from_arrays(pa.array(stored.ravel()), dim))
    return pa.Table.from_arrays(columns, schema=schema)


def _bytes_column(rows: np.ndarray) -> pa.Array:
    """[B, m] of one byte each as a column of m bytes."""
    content = pa.py_buffer(np.ascontiguousarray(rows).tobytes())
    return pa.Array.from_buffers(pa.binary(rows.shape[1]), len(rows), [None, content])


def rotated(rows: np.ndarray) -> np.ndarray:
    """Each row turned by one orthogonal matrix, which follows from r: [B, r] -> [B, r] float64.

    Random signs and a Hadamard transform of the first 2^m numbers, again of the last 2^m; 2^m is the largest power of two up to r.
    """
    dim = rows.shape[1]
    width = 1 << max(dim.bit_length() - 1, 0)
    turned = np.array(rows, dtype=np.float64)
    for turn, start in enumerate(sorted({0, dim - width})):
        turned *= np.random.default_rng([dim, turn]).choice([-1.0, 1.0], dim)
        turned[:, start : start + width] = hadamard_transform(turned[:, start : start + width]) * width**-0.5
    return turned


def as_stored(vectors: np.ndarray, schema: pa.Schema) -> np.ndarray:
    """Embeddings [B, r] as those of the rows of `schema` are: rotated, where these are."""
    return rotated(vectors) if "last_bits" in schema.names else vectors


def stored_vectors(rows: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
    """Ids (B,) and vectors [B, ·] of rows of an index (of `int8`, rotated: see `as_stored`), or of saved influence vectors.

    Raises:
      ValueError: they are of neither.
    """
    columns: dict[str, Any] = {name: rows.schema.field(name).type for name in rows.schema.names}
    numbers: Any = columns.get("vector", columns.get("embedding"))
    in_bytes = "vector" not in columns and pa.types.is_fixed_size_binary(numbers or pa.null())
    leaf = numbers.value_type if isinstance(numbers, (pa.FixedSizeListType, pa.ListType, pa.LargeListType)) else pa.null()
    if not (in_bytes or pa.types.is_floating(leaf)) or not pa.types.is_string(columns.get("train_id", pa.null())):
        raise ValueError(f"these are no rows of an index or of influence vectors, but of {', '.join(columns) or 'nothing'}")
    if "vector" not in columns and not pa.types.is_floating(columns.get("scale", pa.null())):
        raise ValueError("the rows of an index have a number named scale")
    ids = np.array(rows.column("train_id").to_pylist(), dtype=object)
    if "vector" in rows.schema.names:
        return ids, np.asarray(rows.column("vector").flatten()).reshape(rows.num_rows, -1)
    if in_bytes:
        vectors = _from_bytes(rows, numbers.byte_width)
    else:
        vectors = np.asarray(rows.column("embedding").flatten()).reshape(rows.num_rows, -1).astype(np.float32)
    vectors *= np.asarray(rows.column("scale"))[:, None]
    return ids, vectors


def _from_bytes(rows: pa.RecordBatch, dim: int) -> np.ndarray:
    """The whole numbers of an `int8` row, as float32 [B, r]."""
    bits: Any = rows.schema.field("last_bits").type if "last_bits" in rows.schema.names else pa.null()
    if not pa.types.is_fixed_size_binary(bits) or bits.byte_width != _bit_bytes(dim):
        raise ValueError(f"rows of {dim} bytes have {_bit_bytes(dim)} bytes of last_bits")

    def content(name: str, width: int) -> np.ndarray:
        column: Any = rows.column(name)
        start = column.offset * width
        return np.frombuffer(column.buffers()[1], np.uint8)[start : start + rows.num_rows * width].reshape(rows.num_rows, width)

    vectors = content("embedding", dim).view(np.int8).astype(np.float32)
    unpacked = np.unpackbits(content("last_bits", bits.byte_width), axis=1, count=_BITS * dim).reshape(rows.num_rows, dim, _BITS)
    for bit in range(_BITS):
        vectors *= 2
        vectors += unpacked[:, :, bit]
    return vectors


def stored_error(embedded: np.ndarray, table: pa.Table) -> float:
    """The largest ‖x − what is stored of it‖ / ‖x‖ of embeddings [B, r] and their rows. A score is off by at most that × ‖x‖·‖query‖."""
    if not len(embedded):
        return 0.0
    wanted = as_stored(np.asarray(embedded, dtype=np.float64), table.schema)
    found = np.concatenate([stored_vectors(batch)[1] for batch in table.to_batches()]).astype(np.float64)
    norms = np.linalg.norm(wanted, axis=1)
    return float(np.max(np.linalg.norm(wanted - found, axis=1) / np.where(norms > 0, norms, 1.0)))
