"""A list of training examples by their ids, in a file of the user's."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable

import pyarrow.parquet as pq

from beam_influence.transforms.files import BeamFiles


def read_ids(path: str, limit: int | None = None) -> set[str]:
    """The ids in a text file (one a line, spaces and all), or in the column train_id of a Parquet or CSV file.

    Args:
      limit: how many bytes the file may have; None: any number.

    Raises:
      ValueError: there is no such file, column or id, or it is too large.
    """
    if not BeamFiles().exists(path):
        raise ValueError(f"there is no file {path!r} with ids of training examples")
    with BeamFiles().open_read(path) as file:
        content = file.read() if limit is None else file.read(limit + 1)
    if limit is not None and len(content) > limit:
        raise ValueError(f"{path!r} is larger than {limit >> 20:,} MiB, which every worker would hold; name a --share in its place")
    ids: Iterable[str]
    if content[:4] == b"PAR1":
        table = pq.read_table(io.BytesIO(content))
        if "train_id" not in table.column_names:
            raise ValueError(f"{path!r} has no column train_id, but {', '.join(table.column_names)}")
        ids = table.column("train_id").to_pylist()
    else:
        text = content.decode("utf-8-sig")
        header = next(csv.reader(io.StringIO(text, newline="")), [])
        if "train_id" in header:
            ids = [record["train_id"] for record in csv.DictReader(io.StringIO(text, newline=""))]
        else:
            ids = filter(None, (line.removesuffix("\r") for line in text.split("\n")))
    found = {str(name) for name in ids}
    if not found:
        raise ValueError(f"{path!r} has no ids; give one a line")
    return found
