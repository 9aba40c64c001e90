"""An example that only the scoring pass rejects is in `rejected` and counted, beside those that the curvature pass has told."""

from __future__ import annotations

import os
import pathlib

import numpy as np
import pytest

from beam_influence.influence_ops.results.result_files import read_manifest
from beam_influence.pipelines.run_pipeline import RunFailedError
from tests.pipelines.digits_job import DigitsJob, read, run_quietly

HERE = "tests.pipelines.test_late_rejections"

SIGN = "BEAM_INFLUENCE_TEST_CURVATURE"
MARK = 0.123


def spoil(features: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Images as they are, but one from the start and one more, once the curvature is there, are NaN."""
    images = np.array(features["image"], dtype=np.float32)
    marked = np.isclose(images[:, 0], MARK)
    if os.path.exists(os.environ[SIGN]):
        images[marked] = np.nan
    images[np.isclose(images[:, 0], 2 * MARK)] = np.nan
    return {"image": images}


@pytest.fixture
def job(tmp_path: pathlib.Path) -> DigitsJob:
    job = DigitsJob(tmp_path)
    job.splits["train"].images[150, 0] = MARK
    job.splits["train"].images[[20, 220], 0] = 2 * MARK
    return job


@pytest.mark.parametrize("outputs", ["top_k,self_influence", "index"])
def test_a_rejection_of_the_scoring_pass(job: DigitsJob, outputs: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "out"
    monkeypatch.setenv(SIGN, str(output / "curvature" / "meta.json"))
    more = {"curvature": "kfac", "test": None} if outputs == "index" else {}
    config = job.config(
        output, outputs=outputs, group_feature=None, max_rejected=3, preprocess=f"{HERE}:spoil", input_features="image", **more
    )
    run_quietly(config)
    rejected = read(config.output, "rejected").to_pylist()
    ids = job.shards("train", 3).ids()
    assert sorted(f"{row['file']}:{row['index']}" for row in rejected) == sorted(ids[row] for row in (20, 150, 220))
    counts = read_manifest(config.output)["counts"]
    stage = "index" if outputs == "index" else "score"
    assert (counts["curvature"]["rejected"], counts[stage]["rejected"]) == (2, 3)


def test_they_count(job: DigitsJob, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "out"
    monkeypatch.setenv(SIGN, str(output / "curvature" / "meta.json"))
    config = job.config(output, outputs="top_k", group_feature=None, max_rejected=2, preprocess=f"{HERE}:spoil", input_features="image")
    with pytest.raises(RunFailedError, match=r"3 examples were rejected, more than --max_rejected 2"):
        run_quietly(config)
    assert not (output / "manifest.json").exists()
