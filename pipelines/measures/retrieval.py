"""Whether what is known to matter is found: `retrieval` of given examples, and `shortcut`."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from beam_influence.influence_ops.evaluation.found_examples import found_relevant, mean_and_error
from beam_influence.pipelines.evaluation_result import Row
from beam_influence.pipelines.id_list import read_ids
from beam_influence.pipelines.measures.chosen_sets import choose_sets
from beam_influence.pipelines.measures.measurement import Measured, Measurement
from beam_influence.transforms.files import BeamFiles


def retrieval(measurement: Measurement) -> Measured:
    """Precision@k, recall@k and the mean reciprocal rank of the training examples that `--relevant` names."""
    config, data = measurement.config, measurement.data()
    assert config.relevant is not None
    train_ids = data.ids("train")
    sets = choose_sets(measurement, data, train_ids)
    relevant = _relevant(config.relevant, sets.test_ids)
    known = set(train_ids)
    unknown = next((name for names in relevant for name in sorted(names) if name not in known), None)
    if unknown is not None:
        raise ValueError(f"--relevant {config.relevant!r} has {unknown!r}, which is no training example of {measurement.runs[0].folder!r}")
    if not any(relevant):
        raise ValueError(f"--relevant {config.relevant!r} has nothing of the {len(sets.test_ids)} test points; take more, --test_points")
    asked = np.array([bool(names) for names in relevant])
    rows: list[Row] = []
    for (method, k), draws in sets.of.items():
        found = [found_relevant(draw, relevant) for draw in draws]
        figures: dict[str, float] = {"k": k}
        for name in ("precision", "recall", "reciprocal_rank"):
            values = np.where(asked, np.mean([getattr(one, name) for one in found], axis=0), np.nan)
            figures[name], figures[f"{name}_error"] = mean_and_error(values)
        recall = np.mean([one.recall for one in found], axis=0)
        each = {name: float(value) for name, value in zip(sets.test_ids, recall, strict=True) if not np.isnan(value)}
        rows.append(Row(method, figures, each))
    facts = {"training_examples": len(train_ids), "test_points": int(asked.sum()), "without_relevant": int((~asked).sum())}
    return facts, rows


def _relevant(path: str, test_ids: list[str]) -> list[set[str]]:
    """The ids of each test point: of the rows with its test_id, or all, where the file has no such column."""
    table = _pairs(path)
    if table is None:
        return [read_ids(path)] * len(test_ids)
    found: dict[str, set[str]] = {name: set() for name in test_ids}
    for test_id, train_id in zip(table["test_id"].to_pylist(), table["train_id"].to_pylist(), strict=True):
        if str(test_id) in found:  # ids may be stored as numbers
            found[str(test_id)].add(str(train_id))
    return [found[name] for name in test_ids]


def _pairs(path: str) -> pa.Table | None:
    """The columns test_id and train_id of a Parquet or CSV file; None where there is no test_id."""
    if not BeamFiles().exists(path):
        raise ValueError(f"there is no file {path!r} with the ids of relevant training examples")
    content = BeamFiles().read(path)
    if content[:4] == b"PAR1":
        table = pq.read_table(io.BytesIO(content))
    elif b"test_id" in content.splitlines()[:1][0] if content else False:
        types = dict.fromkeys(("test_id", "train_id"), pa.string())
        table = pyarrow.csv.read_csv(io.BytesIO(content), convert_options=pyarrow.csv.ConvertOptions(column_types=types))
    else:
        return None
    if "test_id" not in table.column_names:
        return None
    if "train_id" not in table.column_names:
        raise ValueError(f"{path!r} has no column train_id, but {', '.join(table.column_names)}")
    return table
