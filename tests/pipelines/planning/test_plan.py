"""`beam-influence plan` of a small job: the numbers that are known otherwise, and what it and `run` refuse."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import time
from typing import Any, cast

import pytest

from beam_influence.pipelines.cli import main
from beam_influence.pipelines.config import InfluenceConfig
from beam_influence.pipelines.planning import calibrate
from beam_influence.pipelines.planning.short_plan import short_plan
from beam_influence.pipelines.prepare import prepare
from beam_influence.pipelines.refuse_memory import refuse_groups, refuse_memory
from tests.pipelines.digits_job import SIZES, DigitsJob, run_quietly
from tests.pipelines.planning.test_estimate import FOUND


def test_the_plan_of_a_job(job: DigitsJob, tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Two passes of EK-FAC and one of scoring over every example, and nothing left in the output folder."""
    config = job.config(tmp_path / "out", files=3, outputs="top_k", curvature="ekfac", group_feature=None)
    options = {name: getattr(config, name) for name in ("model", "train", "test", "output", "outputs", "curvature", "batch_size")}
    assert main(["plan", "--json", "--plan_workers=2", *(f"--{name}={value}" for name, value in options.items())]) == 0
    plan = json.loads(capfd.readouterr().out)
    sizes = [sum(path.stat().st_size for path in _files(pattern)) for pattern in (config.train, config.test)]
    assert (plan["examples"], plan["is_exact"], plan["points"], plan["weights"]) == (SIZES["train"], True, SIZES["test"], 90)
    assert plan["passes"] == 3 and plan["bytes_read"] == 3 * sizes[0] + 2 * sizes[1]
    assert [(stage["name"], stage["examples"]) for stage in plan["stages"]] == [
        ("curvature", 300), ("curvature_2", 300), ("embed", 20), ("score", 300),
    ]  # fmt: skip
    # What a process with TensorFlow takes, at least, and what this machine surely has.
    assert 300 << 20 < plan["peak_bytes"] < 4 << 30 and plan["fits"] and plan["change"] == ""
    assert 0 < plan["worker_seconds"] <= plan["total"]["wall"] and plan["bytes_shuffled"] > 2 * 20 * 10 * 8
    assert not (tmp_path / "out").exists()


def _files(pattern: str | None) -> list[pathlib.Path]:
    assert pattern is not None
    path = pathlib.Path(pattern)
    return sorted(path.parent.glob(path.name))


def test_what_a_run_would_refuse_a_plan_refuses(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    config = job.config(tmp_path, outputs="top_k", group_feature=None)
    (tmp_path / "manifest.json").write_text("{}")
    asked = {"config": dataclasses.asdict(config), "beam_arguments": [], "started": 0.0}
    assert "already holds a finished run" in calibrate.answer(asked)["refused"]
    assert "must be at least 1" in calibrate.answer({**asked, "config": {**asked["config"], "top_k": 0}})["refused"]


def test_a_matrix_that_does_not_fit_is_refused_before_the_run() -> None:
    """12,000² numbers are 1.07 GiB; four such matrices where eigenvalues are found."""

    def config(**options: Any) -> InfluenceConfig:
        return InfluenceConfig(model="m", train="a", test="b", output="o", curvature="gauss_newton", **options)

    model = cast(Any, dataclasses.replace(FOUND))  # only its size is looked at
    object.__setattr__(model, "size", 12_000)
    with pytest.raises(ValueError, match=r"12,000 weights takes 1\.1 GiB .* more than --max_worker_memory, 1\.0 GiB; .*--curvature ekfac"):
        refuse_memory(config(max_worker_memory="1GiB"), model)
    with pytest.raises(ValueError, match=r"takes 4\.3 GiB"):
        refuse_memory(config(max_worker_memory="4GB", spectrum=True), model)
    refuse_memory(config(max_worker_memory="4GB"), model)


def test_a_group_that_does_not_fit_is_refused_before_the_run() -> None:
    """30,000,000 weights and 100 test points in float64 are 229 MiB: five such arrays, or nine; the sums of influence alone are small."""

    def config(**options: Any) -> InfluenceConfig:
        asked = {"curvature": "ekfac", "group_feature": "g", "outputs": "group_influence", "max_worker_memory": "1GiB", **options}
        return InfluenceConfig(model="m", train="a", test="b", output="o", **asked)

    model = cast(Any, dataclasses.replace(FOUND))  # only its size is looked at
    object.__setattr__(model, "size", 30_000_000)
    refuse_groups(config(), model, 100)
    message = r"of 100 test points and 30,000,000 weights, take 1\.1 GiB .* more than --max_worker_memory, 1\.0 GiB"
    for options in ({"normalize": "loss"}, {"outputs": "group_vectors,group_influence"}):
        with pytest.raises(ValueError, match=message):
            refuse_groups(config(**options), model, 100)
    refuse_groups(config(normalize="loss", max_worker_memory="2GB"), model, 100)
    with pytest.raises(ValueError, match=r"take 2\.0 GiB"):
        refuse_groups(config(curvature="gauss_newton", second_order_groups=True, max_worker_memory="2GB"), model, 100)


def test_the_plan_of_an_index_that_grows(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    """Every file counts as a new one, the one that is in the index too."""
    options: dict[str, Any] = {"curvature": "random_projection", "outputs": "index", "test": None, "group_feature": None}
    whole = job.config(tmp_path / "index", files=3, **options)
    run_quietly(dataclasses.replace(whole, train=whole.train.replace("*", "00000") if whole.train else None))
    found = calibrate.calibrate(dataclasses.replace(whole, update=True), [], time.time())
    assert found.examples == SIZES["train"] and {name: cost.examples for name, cost in found.stages.items()} == {"index": SIZES["train"]}


def test_the_plan_of_candidates(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    """They are counted and cut as the training set is; by an index there is no training set to read."""
    test = job.shards("test", 1).pattern
    config = job.config(tmp_path / "out", files=3, outputs="top_k", group_feature=None, candidates=test)
    found = calibrate.calibrate(config, [], time.time())
    assert (found.examples, found.candidates, found.candidate_bytes) == (SIZES["train"], SIZES["test"], found.test_bytes)
    assert {name: cost.examples for name, cost in found.stages.items()} == {"curvature": 300, "embed": 20, "candidates": 20}
    train = sum(path.stat().st_size for path in _files(config.train))
    sizes = [f"{size / 1024:.1f} KiB" for size in (train, found.test_bytes, train + 3 * found.test_bytes)]
    told = f"1 pass over 3 files of {sizes[0]}; 1 pass over 1 file of candidates, {sizes[1]}; {sizes[2]} to read"
    assert short_plan(config, prepare(config)) == told
    run_quietly(job.config(tmp_path / "fitted", files=3, outputs="curvature", group_feature=None, test=None))
    by_saved = dataclasses.replace(config, train=None, curvature_path=str(tmp_path / "fitted" / "curvature"))
    found = calibrate.calibrate(by_saved, [], time.time())
    assert (found.examples, found.train_shards, found.candidates) == (0, 0, SIZES["test"])
    assert list(found.stages) == ["embed", "candidates"]
    assert short_plan(by_saved, prepare(by_saved)).startswith("1 pass over 1 file of candidates, ")


def test_a_run_says_what_it_will_read(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    config = job.config(tmp_path / "out", files=6, outputs="top_k", group_feature=None, max_worker_memory="7200")
    prepared = prepare(config)
    first, second = short_plan(config, prepared).splitlines()
    read = 5 * sum(shard.size for shard in prepared.train) + 2 * sum(shard.size for shard in prepared.test)
    assert first.startswith("5 passes over 6 files") and first.endswith(f"; {read / 1024:.1f} KiB to read")
    assert "4 rounds over the training set at most, fewer where" in second
