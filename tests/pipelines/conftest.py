"""The job that the tests of this folder share, and one finished run of it."""

from __future__ import annotations

import dataclasses
import pathlib

import pytest

from beam_influence.pipelines.config import InfluenceConfig
from beam_influence.pipelines.run_summary import RunSummary
from tests.kept_lookups import keep_lookups
from tests.pipelines.digits_job import DigitsJob, run_quietly

keep_lookups()


@pytest.fixture(scope="session")
def job(tmp_path_factory: pytest.TempPathFactory) -> DigitsJob:
    return DigitsJob(tmp_path_factory.mktemp("digits"))


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """A run with every output over three compressed files; read only."""

    config: InfluenceConfig
    output: pathlib.Path
    summary: RunSummary
    train_ids: list[str]
    test_ids: list[str]


@pytest.fixture(scope="session")
def finished(job: DigitsJob, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    output = tmp_path_factory.mktemp("finished") / "influence"
    config = job.config(output, files=3, compressed=True, batch_size=17, query_block_size=7)
    summary = run_quietly(config)
    train, test = (job.shards(split, files, compressed=True) for split, files in (("train", 3), ("test", 1)))
    return FinishedRun(config, output, summary, train.ids(), test.ids())
