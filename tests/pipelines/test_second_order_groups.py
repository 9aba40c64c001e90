"""Second-order group influence through the Beam job against plain loops in memory."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest

from beam_influence import compute_in_memory
from beam_influence.influence_ops.model.influence_model import InfluenceModel
from beam_influence.influence_ops.model.network import load_keras_file
from beam_influence.influence_ops.reading.example_batch import ExampleBatch
from beam_influence.influence_ops.scoring.scores import Scorer
from beam_influence.pipelines.run_pipeline import RunFailedError
from tests.pipelines.digits_job import SIZES, TOLERANCE, DigitsJob, assert_same_tables, framed, read, run_quietly

TABLES = "group_influence,group_self_influence,group_vectors"


@pytest.mark.parametrize(
    ("files", "options"),
    [
        (3, {"curvature": "exact", "batch_size": 17, "query_block_size": 7}),
        (1, {"curvature": "gauss_newton", "damping": "0.003", "weight_decay": 0.01, "regularizer": "loss"}),
    ],
    ids=["exact-three-files", "gauss_newton-regularizer-in-the-loss"],
)
def test_the_job_equals_memory(job: DigitsJob, tmp_path: pathlib.Path, files: int, options: dict[str, Any]) -> None:
    outputs = {"outputs": TABLES, "test_group_feature": "digit"}
    second = job.config(tmp_path / "second", files=files, second_order_groups=True, **outputs, **options)
    run_quietly(second)
    ids = {"train": job.shards("train", files).ids(), "test": job.shards("test", 1).ids()}
    batches = {
        split: [
            ExampleBatch(
                np.array(ids[split], dtype=object)[rows],
                job.splits[split].images[rows],
                job.splits[split].labels[rows],
                groups=np.array([f"digit {label}" for label in job.splits[split].labels[rows]], dtype=object),
            )
            for rows in np.array_split(np.arange(SIZES[split]), 3)
        ]
        for split in SIZES
    }
    regularizer = "loss" if second.regularizer == "loss" else "curvature"
    model = InfluenceModel(
        load_keras_file(str(job.model)), weights="last", loss_function="compiled", weight_decay=second.weight_decay, regularizer=regularizer
    )
    damping = second.finish_options().damping
    expected = {
        order: compute_in_memory(
            model,
            second.curvature,
            batches["train"],
            batches["test"],
            damping=damping,
            outputs=second.output_tables,
            second_order_groups=order,
        )
        for order in (False, True)
    }
    assert_same_tables(tmp_path / "second", expected[True])
    # The option does something: a group of about a tenth changes the Hessian by about as much.
    first = np.array(expected[False].tables["group_influence"]["influence"])
    found = np.array(read(tmp_path / "second", "group_influence")["influence"])
    assert np.abs(np.sort(found) - np.sort(first)).max() > 1000 * TOLERANCE * np.abs(first).max()


def test_a_training_set_of_one_group_is_refused_before_it_is_scored(
    job: DigitsJob, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = job.splits["train"]
    threes = tmp_path / "threes.tfrecord"
    threes.write_bytes(framed(split.example(int(row)) for row in np.flatnonzero(split.labels == 3)))
    scored: list[int] = []
    score = Scorer.score
    monkeypatch.setattr(Scorer, "score", lambda self, batch: scored.append(len(batch)) or score(self, batch))
    options: dict[str, Any] = {"train": str(threes), "outputs": TABLES, "curvature": "exact", "damping": "1", "second_order_groups": True}
    with pytest.raises(RunFailedError, match="group 'digit 3' is the whole training set.*another --group_feature"):
        run_quietly(job.config(tmp_path / "out", **options))
    assert not scored and not (tmp_path / "out" / "manifest.json").exists()
    run_quietly(job.config(tmp_path / "first-order", **{**options, "second_order_groups": False}))
    assert scored
