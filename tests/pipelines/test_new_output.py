"""An output that is only put into the table is validated, computed in memory, summed over bundles and workers, and written."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa
import pytest

from beam_influence.influence_ops.scoring.outputs.base import CombinedOutput, FinishedTable, Scoring
from beam_influence.influence_ops.scoring.outputs.table import OUTPUTS
from beam_influence.influence_ops.scoring.part import Part
from beam_influence.influence_ops.scoring.scores import BatchScores
from tests.pipelines.digits_job import DigitsJob, assert_same_tables, read, run_quietly

TABLE = "positive_influence"


class PositiveSums(Part):
    """Σ max(I(z_i, t), 0) for each of T test points: [T]."""

    def __init__(self, sums: np.ndarray):
        self.sums = sums

    def merge(self, other: PositiveSums) -> None:
        self.sums = self.sums + other.sums


class PositiveInfluence(CombinedOutput[PositiveSums]):
    """How much all helpful training examples help at each test point."""

    tables = {TABLE: pa.schema([pa.field("test_id", pa.string()), pa.field("influence", pa.float64())])}
    of_test_points = frozenset({TABLE})

    def create(self, scoring: Scoring) -> dict[str, PositiveSums]:
        return {key: PositiveSums(np.zeros(len(block))) for key, block in scoring.queries.items()}

    def add(self, parts: Mapping[str, PositiveSums], scored: BatchScores, scoring: Scoring) -> None:
        for part, scores in zip(parts.values(), scored.scores, strict=True):
            part.sums = part.sums + np.maximum(scores, 0).sum(axis=1)

    def finish(self, parts: Mapping[str, PositiveSums], scoring: Scoring) -> Iterator[FinishedTable]:
        for key, part in parts.items():
            columns = [pa.array(scoring.queries[key].ids, pa.string()), pa.array(part.sums)]
            yield FinishedTable(TABLE, f"block-{key}", pa.Table.from_arrays(columns, schema=self.tables[TABLE]))


def test_an_output_in_the_table_is_a_table_of_the_job(job: DigitsJob, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="must name some of top_k"):
        job.config(tmp_path / "out", outputs=TABLE)
    monkeypatch.setitem(OUTPUTS, TABLE, PositiveInfluence())
    with pytest.raises(ValueError, match=f"--outputs {TABLE} needs --test"):
        job.config(tmp_path / "out", outputs=TABLE, test=None)
    config = job.config(tmp_path / "out", outputs=f"{TABLE},scores", files=3, batch_size=17, query_block_size=7)
    summary = run_quietly(config)
    train, test = job.shards("train", 3), job.shards("test", 1)
    assert_same_tables(tmp_path / "out", job.oracle(config, train.ids(), test.ids()))
    # Both paths share one loop; the pairs themselves tell that it is right.
    scores = read(tmp_path / "out", "scores").to_pandas()
    wanted = scores[scores.influence > 0].groupby("test_id").influence.sum()
    found = read(tmp_path / "out", TABLE).to_pandas().set_index("test_id").influence
    np.testing.assert_allclose(found.loc[wanted.index], wanted, rtol=1e-9)
    assert summary.manifest["tables"][TABLE]["files"] == 3  # 20 test points in blocks of 7
