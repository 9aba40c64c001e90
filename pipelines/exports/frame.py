"""One Parquet table of scores, each with its training example beside it: for pandas, and with pictures for Renumics Spotlight."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from beam_influence.influence_ops.arrow_compute import pc
from beam_influence.pipelines.exports.run_examples import ExampleTables, open_source
from beam_influence.pipelines.load_influence import Influence
from beam_influence.report.examples import stored_examples
from beam_influence.report.showing import ShowOptions, View
from beam_influence.transforms.files import BeamFiles

LARGEST = 1 << 30
"""Bytes of the scores, and of the examples, that one process holds."""
_ID = "train_id"


def write_frame(influence: Influence, table: str | None, features: Sequence[str] | None, with_pictures: bool, path: str) -> tuple[str, int]:
    """Writes a table of the run with the features of its training examples; returns the table's name and its rows.

    Args:
      table: which; None: `self_influence`, else `top_k`.
      features: of the examples; None: all; empty: none.
      with_pictures: a column `picture` with an image file, where the examples have pictures.

    Raises:
      ValueError: there is no such table, it is of no training examples, or it is too large for one process.
    """
    name = table or next((name for name in ("self_influence", "top_k") if name in influence.tables), "top_k")
    parts, size = [], 0
    for batch in influence.batches(name):
        parts.append(batch)
        size = _bounded(size + batch.nbytes, f"the table {name}")
        if _ID not in batch.schema.names:
            raise ValueError(f"--table {name} has no {_ID}, but {', '.join(batch.schema.names)}; name a table of training examples")
    if not parts:
        raise ValueError(f"the table {name} of the run in {influence.folder!r} has no rows")
    scores = pa.Table.from_batches(parts).combine_chunks()
    if features is None or features or with_pictures:
        scores = _with_examples(influence, scores, features, with_pictures)
    with BeamFiles().open_write(path) as file:
        pq.write_table(scores.replace_schema_metadata(None), pa.PythonFile(file, mode="w"), compression="zstd")
    return name, len(scores)


def _with_examples(influence: Influence, scores: pa.Table, features: Sequence[str] | None, with_pictures: bool) -> pa.Table:
    wanted = pc.unique(scores.column(_ID))
    found, size, view = [], 0, None
    for batch, (name, rows, ids) in ExampleTables(open_source(influence.manifest, "train"), _ID, features).batches():
        if with_pictures:
            stored = stored_examples(name, rows, ids)
            view = view or View(stored, ShowOptions(roles=frozenset(str(influence.manifest["config"]["label_feature"]).split(","))), 256)
            pictures = [shown.uri if (shown := view.show(example).picture) else None for example in stored]
            files = [None if uri is None else base64.b64decode(uri.partition(",")[2]) for uri in pictures]
            batch = batch.append_column("picture", pa.array(files, pa.binary()))
        batch = batch.filter(pc.is_in(batch.column(_ID), wanted))
        found.append(batch)
        size = _bounded(size + batch.nbytes, "its examples")
    examples = pa.Table.from_batches(found).combine_chunks()
    places = pc.index_in(scores.column(_ID), examples.column(_ID).combine_chunks())
    if places.null_count:
        first = scores.column(_ID).filter(pc.is_null(places))[0].as_py()
        raise ValueError(f"{places.null_count:,} of the examples are not in the training files any more, such as {first!r}")
    beside = examples.take(places).drop_columns([_ID])
    for column in beside.column_names:
        if with_pictures and column == "picture" and beside.column(column).null_count == len(beside):
            continue
        scores = scores.append_column(column, beside.column(column))
    return scores


def _bounded(size: int, what: str) -> int:
    if size > LARGEST:
        raise ValueError(
            f"{what} takes more than {LARGEST >> 30} GiB, too much for a frame; use --to duckdb, or fewer --features, or a smaller --table"
        )
    return size
