"""A device whose memory is too small for a batch, faked: the run's tables are the same, and the manifest counts the halved batches."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from apache_beam.metrics.metric import MetricsFilter

from beam_influence.influence_ops import device
from beam_influence.influence_ops.curvature import CURVATURES, curvature_by_name
from beam_influence.influence_ops.model.compiled import CompiledDerivatives
from beam_influence.influence_ops.reading.example_batch import ExampleBatch
from beam_influence.pipelines import launch
from beam_influence.pipelines.run_pipeline import RunFailedError
from beam_influence.pipelines.runners import choose_engine
from beam_influence.pipelines.runners.local import count_processes, refuse_more_than_gpus
from tests.pipelines.digits_job import DigitsJob, assert_same_rows, influence_model, read, run_quietly

ROOM = 20
# The same examples in other batches: rounding of sums (seen: 1e-14).
ROUNDING = 1e-9


def shrink(monkeypatch: pytest.MonkeyPatch, room: int, which: tuple[str, ...] = ()) -> list[int]:
    """From now on every evaluation, or those in `which`, fails that is of more examples; gives the sizes that failed."""
    failed: list[int] = []
    call = CompiledDerivatives._call

    def limited(self: CompiledDerivatives, key: str, name: str, batch: Any, *extra: Any) -> Any:
        if len(batch) > room and (not which or name in which):
            failed.append(len(batch))
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor with shape[1024,1024]")
        return call(self, key, name, batch, *extra)

    monkeypatch.setattr(CompiledDerivatives, "_call", limited)
    return failed


@pytest.mark.parametrize("options", [{}, {"curvature": "exact", "second_order_groups": True, "outputs": "group_influence,top_k"}])
def test_the_same_tables_in_halves(
    job: DigitsJob, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    config = job.config(tmp_path / "out", batch_size=64, **options)
    undisturbed = dataclasses.replace(config, output=str(tmp_path / "undisturbed"))
    run_quietly(undisturbed)
    results: list[Any] = []
    real = launch.run_pipeline
    monkeypatch.setattr(launch, "run_pipeline", lambda *args: results.append(real(*args)) or results[-1])
    failed = shrink(monkeypatch, ROOM)
    summary = run_quietly(config)
    assert failed
    for table in config.output_tables:
        assert_same_rows(read(tmp_path / "out", table), read(undisturbed.output, table), ROUNDING)
    counts = summary.manifest["counts"]
    assert counts["score"]["halved_batches"] > 0 and counts["score"]["examples"] == 300
    found = results[0].metrics().query(MetricsFilter().with_name("score_halved_batches"))["counters"]
    assert sum(counter.committed for counter in found) == counts["score"]["halved_batches"]


def test_a_run_that_fits_counts_nothing(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    assert "halved_batches" not in run_quietly(job.config(tmp_path / "out", outputs="top_k")).manifest["counts"]["score"]


def test_one_example_too_many_ends_the_run(job: DigitsJob, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = job.config(tmp_path / "out", outputs="top_k")
    shrink(monkeypatch, 0, ("losses_and_hessian_terms", "output_curvature_root"))
    with pytest.raises(RunFailedError, match=r"^MemoryError: example part-\S+ alone is too large for the device's memory; watch fewer"):
        run_quietly(config)
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize("name", sorted(name for name, kind in CURVATURES.items() if kind.passes))
def test_a_failed_batch_leaves_no_trace_in_a_statistic(job: DigitsJob, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each evaluation that `add` makes fails once: the statistic is then what it was, to the bit."""
    model, split = influence_model(str(job.model), "last"), job.splits["train"]
    ids = np.array([f"a:{row}" for row in range(30)], dtype=object)
    batch = ExampleBatch(ids, split.images[:30], split.labels[:30])
    of_source = {"segment_rates": "0.1", "segment_steps": "50"} if name.startswith("source") else None
    curvature = curvature_by_name(name, settings=of_source)
    monkeypatch.setattr(model.network.original, "optimizer", None)  # SOURCE refuses Adam
    call, fail_at = CompiledDerivatives._call, [10**9]

    def limited(self: CompiledDerivatives, *args: Any) -> Any:
        fail_at[0] -= 1
        if fail_at[0] < 0:
            raise tf.errors.ResourceExhaustedError(None, None, "OOM")
        return call(self, *args)

    monkeypatch.setattr(CompiledDerivatives, "_call", limited)
    statistic = curvature.add(model, curvature.create(model), batch.select(np.arange(10)))
    calls = 10**9 - fail_at[0]
    before = {key: np.array(part) for key, part in statistic.items() if isinstance(part, np.ndarray)}
    rest = batch.select(np.arange(10, 30))
    for number in range(calls):
        fail_at[0] = number
        with pytest.raises(tf.errors.ResourceExhaustedError):
            curvature.add(model, statistic, rest)
        assert all(np.array_equal(statistic[key], part) for key, part in before.items()), number
    fail_at[0] = 10**9
    curvature.add(model, statistic, rest)


def test_more_processes_than_gpus_are_refused(job: DigitsJob, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "count_gpus", lambda: 1)
    message = r"--workers 3: a GPU is used by one process, and this machine has 1; use --workers 1, or hide"
    with pytest.raises(ValueError, match=message):
        run_quietly(job.config(tmp_path / "out"), "--direct_running_mode=multi_processing", "--direct_num_workers=3")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(device, "count_gpus", lambda: 4)
    refuse_more_than_gpus(count_processes(choose_engine(["--workers=3"])))


