"""The same rows of several runs' tables, side by side, and their mean."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from beam_influence.influence_ops.arrow_compute import pc
from beam_influence.influence_ops.results.schemas import STANDARD_ERROR

AVERAGED = ("scores", "self_influence", "group_influence", "group_self_influence")
"""The tables that an ensemble has the mean of, where its members have them."""

_MEANS = ("influence", "loss_change", "loss_change_if_added")


def mean_schema(schema: pa.Schema) -> pa.Schema:
    """The schema of the mean of tables with this one; a member's own error is not in it."""
    return pa.schema([field for field in schema if field.name != STANDARD_ERROR.name]).append(STANDARD_ERROR)


def side_by_side(members: Sequence[Iterator[pa.RecordBatch]]) -> Iterator[list[pa.Table]]:
    """The same number of next rows of each member, again and again, however the members' batches are cut.

    Raises:
      ValueError: one has more rows than another.
    """
    waiting: list[pa.Table | None] = [None] * len(members)
    while True:
        for place, member in enumerate(members):
            if waiting[place] is None:
                batch = next((batch for batch in member if batch.num_rows), None)
                waiting[place] = None if batch is None else pa.Table.from_batches([batch])
        tables = [table for table in waiting if table is not None]
        if len(tables) < len(waiting):
            if tables:
                ended = next(place for place, table in enumerate(waiting) if table is None)
                raise ValueError(f"run {ended + 1} has fewer rows than the others")
            return
        count = min(table.num_rows for table in tables)
        yield [table.slice(0, count) for table in tables]
        waiting = [table.slice(count) if table.num_rows > count else None for table in tables]


def mean_rows(members: Sequence[pa.Table]) -> pa.Table:
    """Rows with the mean of the members' scores, and its standard error.

    Args:
      members: M ≥ 2 tables of one schema and length, whose columns but the scores are the same.

    Raises:
      ValueError: they are of other examples, or in another order.
    """
    members = [member.drop_columns([STANDARD_ERROR.name]) if STANDARD_ERROR.name in member.schema.names else member for member in members]
    first = members[0]
    for place, other in enumerate(members[1:], start=2):
        if other.schema.names != first.schema.names:
            raise ValueError(f"run {place} has the columns {', '.join(other.schema.names)}, not {', '.join(first.schema.names)}")
        _check_same(first, other, place)
    columns = [_mean([member[name] for member in members]) if name in _MEANS else first[name] for name in first.schema.names]
    influence = np.stack([member["influence"].to_numpy() for member in members])
    error = influence.std(axis=0, ddof=1) / np.sqrt(len(members))
    return pa.Table.from_arrays([*columns, pa.array(error)], schema=mean_schema(first.schema))


def _mean(columns: Sequence[pa.ChunkedArray]) -> pa.Array:
    """Null where one is null: relative scores predict no change of the loss."""
    total = np.mean([column.to_numpy() for column in columns], axis=0)  # a null is NaN
    return pa.array(total, pa.float64(), mask=np.any([column.is_null().to_numpy() for column in columns], axis=0))


def _check_same(first: pa.Table, other: pa.Table, place: int) -> None:
    named = [name for name in first.schema.names if name not in _MEANS]
    for name in named:
        if other[name].equals(first[name]):
            continue
        both = pc.coalesce(pc.cast(first[name], pa.string()), pa.scalar("")), pc.coalesce(pc.cast(other[name], pa.string()), pa.scalar(""))
        row = pc.index(pc.not_equal(*both), True).as_py()
        there, here = (", ".join(f"{column} {table[column][row].as_py()!r}" for column in named) for table in (other, first))
        raise ValueError(
            f"run {place} has a row of {there} where the first has {here}; members are runs over the same examples and test points, with "
            "the same ids, --batch_size and --max_worker_memory"
        )
