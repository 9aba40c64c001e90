"""Suspicious labels: cleanlab's columns, and a list of ids to drop. Both read the scores as a stream, whatever their number."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from beam_influence.pipelines.clean_options import count_suspicious
from beam_influence.pipelines.load_influence import Influence
from beam_influence.transforms.files import BeamFiles
from beam_influence.transforms.select_threshold import select_threshold


def write_issues(influence: Influence, share: float, path: str) -> tuple[int, int, float]:
    """A Parquet table `train_id`, `is_label_issue`, `label_score`, in the order of the training files.

    `label_score` is m / (m + max(s, 0)) of the self-influence s and its median m, of two middle ones the larger: from 0 to 1, low is bad.

    Args:
      share: the part of the examples with the largest self-influence, which are issues.

    Returns:
      The number of rows, of issues among them, and the self-influence from which on an example is one.
    """
    rows, threshold = _threshold(influence, share)
    median = select_threshold(lambda: influence.paths("self_influence"), -(-rows // 2))
    median = max(median if np.isfinite(median) else 0.0, np.finfo(np.float64).tiny)
    schema = pa.schema([("train_id", pa.string()), ("is_label_issue", pa.bool_()), ("label_score", pa.float64())])
    issues = 0
    with BeamFiles().open_write(path) as file, pq.ParquetWriter(pa.PythonFile(file, mode="w"), schema, compression="zstd") as writer:
        for batch in influence.batches("self_influence"):
            scores = batch.column("influence").to_numpy()
            is_issue = scores >= threshold
            issues += int(is_issue.sum())
            columns = [batch.column("train_id"), pa.array(is_issue), pa.array(median / (median + np.maximum(scores, 0)))]
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
    return rows, issues, threshold


def write_ids(influence: Influence, share: float, path: str) -> tuple[int, int, float]:
    """The ids of the examples of the largest self-influence, one a line; returns the number of examples, of ids, and the threshold.

    Raises:
      ValueError: an id has a line's end in it.
    """
    rows, threshold = _threshold(influence, share)
    written = 0
    with BeamFiles().open_write(path) as file:
        for batch in influence.batches("self_influence"):
            above = batch.column("train_id").filter(pa.array(batch.column("influence").to_numpy() >= threshold)).to_pylist()
            broken = next((name for name in above if not name or "\n" in name or name.endswith("\r")), None)
            if broken is not None:
                raise ValueError(f"the id {broken!r} can't stand on a line; use --to cleanlab, whose Parquet has ids of any kind")
            file.write("".join(f"{name}\n" for name in above).encode())
            written += len(above)
    return rows, written, threshold


def _threshold(influence: Influence, share: float) -> tuple[int, float]:
    """The number of scored examples, and the self-influence that the first `share` of them have at least, as the command clean has it."""
    influence.paths("self_influence")  # which says how to have it
    rows = int(influence.manifest["tables"]["self_influence"]["rows"])
    return rows, select_threshold(lambda: influence.paths("self_influence"), count_suspicious(share, rows))
