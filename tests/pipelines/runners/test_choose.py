"""The presets of engines: which options of Beam each becomes, and what is refused before anything starts."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import pathlib
import socket
import sys
from collections.abc import Iterator

import pytest

from beam_influence.pipelines import runners
from beam_influence.pipelines.config import InfluenceConfig
from beam_influence.pipelines.launch import run
from beam_influence.pipelines.runners import Engine, choose_engine, flink
from beam_influence.pipelines.runners.prism import prism_folder

CONFIG = InfluenceConfig(model="gs://b/model.keras", train="gs://b/train-*", test="gs://b/test-*", output="gs://b/out")
DATAFLOW = ("--runner=dataflow", "--project=p", "--region=us-central1", "--temp_location=gs://b/temp", "--sdk_container_image=i")


@contextlib.contextmanager
def listener() -> Iterator[str]:
    """An address at which somebody answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"localhost:{server.getsockname()[1]}"


@pytest.fixture
def address() -> Iterator[str]:
    with listener() as found:
        yield found


def silent_address() -> str:
    """An address at which nobody answers."""
    with listener() as found:
        return found


def words(engine: Engine) -> set[str]:
    """Beam's options but for the name that a job on Flink is given."""
    return {word for word in engine.arguments if not word.startswith("--job_name=beam-influence-")}


def program(folder: pathlib.Path, name: str) -> pathlib.Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], {"--runner=FnApiRunner"}),
        (["--runner", "local"], {"--runner=FnApiRunner"}),
        (["--workers=1"], {"--runner=FnApiRunner"}),
        (["--workers=3"], {"--runner=FnApiRunner", "--direct_running_mode=multi_processing", "--direct_num_workers=3"}),
        (["--workers", "0"], {"--runner=FnApiRunner", "--direct_running_mode=multi_processing", "--direct_num_workers=0"}),
        (["--direct_runner_bundle_repeat=1"], {"--runner=FnApiRunner", "--direct_runner_bundle_repeat=1"}),
    ],
)
def test_local(given: list[str], expected: set[str]) -> None:
    engine = choose_engine(given, CONFIG)
    assert words(engine) == expected and engine.is_local


@pytest.mark.parametrize(
    ("given", "name", "is_local"),
    [
        ("FlinkRunner", "FlinkRunner", False),
        ("flinkrunner", "FlinkRunner", False),
        ("spark", "SparkRunner", False),
        ("DirectRunner", "DirectRunner", True),
        ("PrismRunner", "PrismRunner", True),
        ("my.module.Runner", "my.module.Runner", False),
    ],
)
def test_names_of_beam_pass(given: str, name: str, is_local: bool) -> None:
    engine = choose_engine([f"--runner={given}", "--flink_master=elsewhere:8081", "--environment_type=LOOPBACK"], CONFIG)
    assert words(engine) == {f"--runner={name}", "--flink_master=elsewhere:8081", "--environment_type=LOOPBACK"}
    assert engine.is_local == is_local


def test_prism_is_found(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PATH", "GOBIN", "GOPATH", "PRISM_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / name))
    with pytest.raises(ValueError, match=r"build it with Go: GOBIN=\S+ go install github.com/apache/beam/sdks/v2/go/cmd/prism@v2"):
        choose_engine(["--runner=prism"], CONFIG)
    # Each place goes before those that were made before it.
    for folder in ("GOPATH/bin", "GOBIN", "PATH"):
        path = program(tmp_path / folder, "prism")
        assert f"--prism_location={path}" in words(choose_engine(["--runner=prism"], CONFIG))
    path = program(prism_folder(), "prism")
    engine = choose_engine(["--runner=prism", "--time_limit=9"], CONFIG)
    assert words(engine) == {"--runner=PrismRunner", f"--prism_location={path}"} and engine.time_limit == 9
    given = ["--runner=prism", "--prism_location=https://elsewhere/prism.zip", "--environment=loopback"]
    assert words(choose_engine(given, CONFIG)) == {"--runner=PrismRunner", given[1], "--environment_type=LOOPBACK"}
    with pytest.raises(ValueError, match="--prism_location '/nowhere' is not a program"):
        choose_engine(["--runner=prism", "--prism_location=/nowhere"], CONFIG)


KEEP = "--environment_cache_millis=30000"


def test_flink_on_this_machine(address: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = f"--job_endpoint={address}"

    def chosen(*more: str) -> Engine:
        return choose_engine(["--runner=flink", endpoint, *more], CONFIG)

    expected = {endpoint, "--runner=PortableRunner", KEEP}
    assert words(chosen()) == expected | {"--environment_type=LOOPBACK"}
    assert chosen().is_local and not chosen("--environment=EXTERNAL", f"--environment_config={address}").is_local
    pool = f"--environment_config={address}"
    assert words(chosen("--environment=external", pool)) == expected | {"--environment_type=EXTERNAL", pool}
    monkeypatch.setattr(sys, "executable", str(program(tmp_path, "python")))
    worker = program(tmp_path, "beam-influence-worker")
    command = "--environment_config=" + json.dumps({"command": str(worker)})
    assert words(chosen("--environment=PROCESS")) == expected | {"--environment_type=PROCESS", command}
    assert words(chosen("--environment=PROCESS", command)) == expected | {"--environment_type=PROCESS", command}
    # Beam's own words for the same.
    assert words(chosen("--environment_type=DOCKER")) == expected | {"--environment_type=DOCKER"}
    assert KEEP not in words(chosen("--environment_cache_millis=5"))


def test_flink_jobs_can_be_cancelled(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job has a name of its own, by which the cluster that was named can be asked to cancel it."""
    given = ["--runner=flink", f"--job_endpoint={address}"]
    assert choose_engine(given, CONFIG).after_cancel is flink.tell_that_it_goes_on
    cancelled: list[tuple[str, str]] = []
    monkeypatch.setattr(flink, "cancel_job", lambda *job: cancelled.append(job) or True)
    given.append("--flink_master=cluster:8081")
    engines = [choose_engine([*given, *more], CONFIG) for more in ([], [], ["--job_name=mine"])]
    for engine in engines:
        assert engine.after_cancel is not None and engine.after_cancel() == ""
        assert [word for word in engine.arguments if word.startswith("--job_name=")] == [f"--job_name={cancelled[-1][1]}"]
    assert {master for master, _ in cancelled} == {"cluster:8081"} and cancelled[2][1] == "mine" and cancelled[0] != cancelled[1]


def test_flink_by_its_master(address: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "java")
    monkeypatch.setenv("PATH", str(tmp_path))
    for master in (address, f"http://{address}", "[local]"):
        expected = {f"--flink_master={master}", "--runner=FlinkRunner", "--environment_type=LOOPBACK", KEEP}
        assert words(choose_engine(["--runner=flink", f"--flink_master={master}"], CONFIG)) == expected
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match="Beam starts a job server of its own for it, which needs Java; install it, or give --job_end"):
        choose_engine(["--runner=flink", f"--flink_master={address}"], CONFIG)


def test_flink_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, int]] = []

    def connect(target: tuple[str, int], seconds: float) -> socket.socket:
        calls.append(target)
        return socket.socket()

    monkeypatch.setattr(socket, "create_connection", connect)
    given = ["--runner=flink", "--job_endpoint=cluster:8099"]
    with pytest.raises(ValueError, match="LOOPBACK runs the workers in this process, which a cluster on other machines can't reach; use"):
        choose_engine([*given, "--environment=LOOPBACK"], CONFIG)
    with pytest.raises(ValueError, match="say where the workers of a cluster elsewhere come from: --environment EXTERNAL"):
        choose_engine(given, CONFIG)
    assert calls == []
    engine = choose_engine([*given, "--environment=EXTERNAL"], CONFIG)
    pool = "--environment_config=localhost:50000"
    assert words(engine) == {given[1], "--runner=PortableRunner", "--environment_type=EXTERNAL", pool, KEEP}
    assert calls == [("cluster", 8099)]  # the pool is each task manager's own: it can't be asked from here
    assert not engine.is_local


def test_dataflow() -> None:
    engine = choose_engine([*DATAFLOW, "--max_num_workers=9"], CONFIG)
    assert words(engine) == {*DATAFLOW[1:], "--runner=DataflowRunner", "--max_num_workers=9"}
    assert not engine.is_local and engine.accelerator is None
    engine = choose_engine([*DATAFLOW, "--gpu"], CONFIG)
    assert engine.accelerator == "type:nvidia-l4;count:1;install-nvidia-driver"
    assert "--experiments=no_use_multiple_sdk_containers" in engine.arguments
    assert choose_engine([*DATAFLOW, "--gpu=nvidia-tesla-t4"], CONFIG).accelerator == "type:nvidia-tesla-t4;count:1;install-nvidia-driver"


def without(name: str) -> list[str]:
    return [word for word in DATAFLOW if not word.startswith(f"--{name}=")]


SILENT = silent_address()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--runner=flint"], "--runner 'flint' must be one of local, prism, flink, dataflow, or a runner of Beam: .*FlinkRunner"),
        (["--workers=-1"], "--workers -1 must be at least 1, or 0 for one for each core"),
        (["--workers=two"], "argument --workers: invalid int value: 'two'"),
        (["--workers=2", "--direct_num_workers=2"], "--workers 2 and --direct_num_workers say the same; leave one of them out"),
        (["--workers=2", "--runner=flink"], "--workers 2 is of --runner local, not flink; give --parallelism N"),
        (["--workers=2", "--runner=dataflow"], "--workers 2 is of --runner local, not dataflow; give --max_num_workers N"),
        (["--workers=2", "--runner=SparkRunner"], "--workers 2 is of --runner local, not SparkRunner; leave it out"),
        (["--environment=LOOPBACK"], "--environment LOOPBACK is of --runner prism and flink, not local; leave it out"),
        (["--environment=EMBEDDED"], "argument --environment: invalid choice: 'EMBEDDED'"),
        (["--gpu"], "--gpu nvidia-l4 is of --runner dataflow, not local; elsewhere a GPU that a worker finds is used"),
        (["--time_limit=9"], "--time_limit 9.0 is of --runner prism, flink and dataflow, not local; the run ends with this process"),
        (["--time_limit=0", "--runner=flink"], "--time_limit 0 must be above 0"),
        (["--flink_master=h:8081"], "--flink_master h:8081 has no effect with --runner local; add --runner flink"),
        (["--prism_location=p"], "--prism_location p has no effect with --runner local; add --runner prism"),
        (["--runner=prism", "--direct_num_workers=2"], "--direct_num_workers 2 has no effect with --runner prism; add --runner local"),
        (["--job_endpoint=h:8099"], "--job_endpoint h:8099 has no effect with --runner local; add --runner flink"),
        (["--runner=flink"], "--runner flink needs a cluster: --job_endpoint HOST:8099"),
        (["--runner=flink", f"--job_endpoint={SILENT}"], f"--job_endpoint: nothing answers at {SILENT} .*; start it"),
        (["--runner=flink", "--job_endpoint=localhost"], "--job_endpoint 'localhost' must be HOST:PORT"),
        (
            ["--runner=flink", "--job_endpoint=localhost:1", "--environment=EXTERNAL", f"--environment_config={SILENT}"],
            f"--environment EXTERNAL: nothing answers at {SILENT} .*; start beam-influence-worker --worker_pool",
        ),
        (
            ["--runner=flink", "--job_endpoint=localhost:1", "--environment=PROCESS", "--environment_config=/boot"],
            "--environment_config '/boot' must be JSON like {\"command\": ",
        ),
        (
            ["--runner=flink", "--job_endpoint=localhost:1", "--environment=PROCESS", '--environment_config={"command": "/boot"}'],
            "--environment_config: '/boot' is not a program on this machine",
        ),
        (["--runner=flink", "--job_endpoint=localhost:1", "--environment=DOCKER"], "--environment DOCKER needs --environment_config IMAGE"),
        (
            ["--runner=flink", "--job_endpoint=localhost:1", "--environment=LOOPBACK", "--environment_config=h:1"],
            "--environment LOOPBACK takes no --environment_config; leave it out",
        ),
        (
            ["--runner=flink", "--job_endpoint=localhost:1", "--environment=EXTERNAL", "--environment_type=DOCKER"],
            "--environment EXTERNAL and --environment_type DOCKER say the same; leave one out",
        ),
        ([*DATAFLOW, "--environment=LOOPBACK"], "--environment LOOPBACK is of --runner prism and flink, not dataflow; Dataflow's"),
        (without("project"), "--runner dataflow needs --project, such as --project MY-PROJECT"),
        (without("region"), "--runner dataflow needs --region, such as --region us-central1"),
        (without("temp_location"), "--runner dataflow needs --temp_location, such as --temp_location gs://BUCKET/temp"),
        ([*without("temp_location"), "--temp_location=/tmp"], "--temp_location '/tmp' must be on Google Cloud Storage: gs://BUCKET/temp"),
        (without("sdk_container_image"), "Dataflow's workers need this package: give --sdk_container_image IMAGE"),
        (
            [*DATAFLOW, "--gpu", "--dataflow_service_options=worker_accelerator=type:nvidia-l4"],
            "--gpu asks for a GPU for some of the steps, --dataflow_service_options worker_accelerator for every worker; give one",
        ),
    ],
    ids=lambda value: " ".join(value).replace(SILENT, "silent") if isinstance(value, list) else "",
)
def test_refused(given: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_engine(given, CONFIG)


@pytest.mark.parametrize("name", ["model", "train", "test", "output", "work_dir"])
def test_local_paths_are_refused_on_dataflow(name: str) -> None:
    config = dataclasses.replace(CONFIG, **{name: "gs://b/one,/here"})
    with pytest.raises(ValueError, match=f"--{name} '/here' is on this machine, where Dataflow's workers can't reach it; use gs://BUCKET/"):
        choose_engine(DATAFLOW, config)


def test_a_function_is_not_a_path() -> None:
    assert choose_engine(DATAFLOW, dataclasses.replace(CONFIG, model="package.module:function"))


def test_nothing_is_touched_when_refused(tmp_path: pathlib.Path) -> None:
    config = InfluenceConfig(model="/nowhere", train="/nowhere", test="/nowhere", output=str(tmp_path / "out"))
    with pytest.raises(ValueError, match="--runner flink needs a cluster"):
        run(config, ["--runner=flink"])
    assert not (tmp_path / "out").exists()


def test_options_become_arguments_again() -> None:
    parser = argparse.ArgumentParser()
    runners.add_options(parser)
    given = ["--runner=dataflow", "--time_limit=9.5", "--gpu=nvidia-l4"]
    assert runners.as_arguments(parser.parse_args(given)) == given
    assert runners.as_arguments(parser.parse_args([])) == ["--runner=local"]
