"""The graph as a Dataflow job, translated here without credentials or network; and the template's program on the local runner."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions

from beam_influence.pipelines import template
from beam_influence.pipelines.build import build
from beam_influence.pipelines.runners import choose_engine
from beam_influence.transforms.files import BeamFiles
from tests.environments import install_command
from tests.pipelines.digits_job import DigitsJob, assert_same_tables

ROOT = pathlib.Path(__file__).parents[2]
ON_DATAFLOW = ("--runner=dataflow", "--project=project-a", "--region=us-central1", "--temp_location=gs://bucket-a/temp")
IMAGE = "--sdk_container_image=us-docker.pkg.dev/project-a/r/beam-influence:1"
ACCELERATOR = "beam:resources:accelerator:v1"

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="session")
def job(tmp_path_factory: pytest.TempPathFactory) -> DigitsJob:
    return DigitsJob(tmp_path_factory.mktemp("digits"))


def translated(job: DigitsJob, output: pathlib.Path, *arguments: str, **options: Any) -> Any:
    """The job that Dataflow would get; no request is made."""
    pytest.importorskip("google.cloud.storage")
    engine = choose_engine([*ON_DATAFLOW, IMAGE, *arguments])
    pipeline = beam.Pipeline(options=PipelineOptions([*engine.arguments, "--dry_run=True"], save_main_session=False))
    build(pipeline, job.config(output, **options), accelerator=engine.accelerator)
    result: Any = pipeline.run()
    return result.job


def hinted(proto: Any) -> dict[str, bytes]:
    """The steps, without those that only contain others, that ask for an accelerator."""
    environments = proto.components.environments
    found = {}
    for step in proto.components.transforms.values():
        hints = environments[step.environment_id].resource_hints if step.environment_id else {}
        if ACCELERATOR in hints and not step.subtransforms:
            found[step.unique_name] = hints[ACCELERATOR]
    return found


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"outputs": "top_k", "group_feature": None, "curvature": "arnoldi", "passes": 3},
        {"outputs": "top_k,group_influence", "second_order_groups": True},
    ],
    ids=["all-outputs", "passes", "second-order"],
)
def test_the_graph_translates_and_what_differentiates_has_a_gpu(job: DigitsJob, tmp_path: pathlib.Path, options: dict[str, Any]) -> None:
    found = translated(job, tmp_path / "out", "--gpu=nvidia-l4", **options)
    steps = hinted(found.proto_pipeline)
    assert set(steps.values()) == {b"type:nvidia-l4;count:1;install-nvidia-driver"}
    passes = options.get("passes", 1)
    later = {f"AccumulateCurvature[{number}]" for number in range(2, passes + 1)}
    wanted = {"EmbedQueries", "ScoreExamples", "AccumulateCurvature", *later}
    assert {name.split("/")[0] for name in steps} == wanted and any("/Score/" in name for name in steps)
    assert not any(tmp_path.rglob("out/*"))  # nothing was run


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"outputs": "curvature", "curvature": "ekfac"}, {"AccumulateCurvature", "AccumulateCurvature[2]"}),
        ({"outputs": "index", "curvature": "random_projection"}, {"AccumulateCurvature", "IndexExamples"}),
    ],
    ids=["fit", "index"],
)
def test_fit_and_index_have_a_gpu_where_they_differentiate(
    job: DigitsJob, tmp_path: pathlib.Path, options: dict[str, Any], steps: set[str]
) -> None:
    found = translated(job, tmp_path / "out", "--gpu=nvidia-l4", test=None, group_feature=None, **options)
    assert {name.split("/")[0] for name in hinted(found.proto_pipeline)} == steps
    without = translated(job, tmp_path / "out", test=None, group_feature=None, **options)
    assert not hinted(without.proto_pipeline)


def test_the_whole_job(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    """The job file that the launcher hands to Dataflow: runner v2, the image for every worker, one process for each GPU."""
    pytest.importorskip("google.cloud.storage")
    from apache_beam.runners.dataflow.dataflow_runner import DataflowRunner

    engine = choose_engine([*ON_DATAFLOW, IMAGE, "--gpu=nvidia-l4"])
    kept = [argument for argument in engine.arguments if not argument.startswith(("--runner", "--temp_location"))]
    folders = {name: tmp_path / name for name in ("temp", "staging")}
    for folder in folders.values():
        folder.mkdir()
    places = [f"--temp_location={folders['temp']}", f"--staging_location={folders['staging']}", f"--template_location={tmp_path}/job"]
    options = PipelineOptions([*kept, *places, "--no_auth"], save_main_session=False)
    pipeline = beam.Pipeline(options=options)  # with the runner among its options it would look for the folders on the network
    build(pipeline, job.config(tmp_path / "out"), accelerator=engine.accelerator)
    DataflowRunner().run_pipeline(pipeline, options)
    environment = json.loads((tmp_path / "job").read_text())["environment"]
    assert {"use_unified_worker", "use_runner_v2", "no_use_multiple_sdk_containers"} <= set(environment["experiments"])
    images = [image["containerImage"] for pool in environment["workerPools"] for image in pool["sdkHarnessContainerImages"]]
    assert images and set(images) == {IMAGE.split("=")[1]}


def test_without_gpu_no_step_asks_for_one(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    found = translated(job, tmp_path / "out")
    assert not hinted(found.proto_pipeline)
    images = {environment.payload for environment in found.proto_pipeline.components.environments.values()}
    assert all(b"beam-influence:1" in payload for payload in images)


def parameters(job: DigitsJob, output: pathlib.Path) -> list[str]:
    names = ("model", "train", "test", "output", "top_k", "batch_size", "threads")
    config = job.config(output)
    return [*(f"--{name}={getattr(config, name)}" for name in names), "--outputs=top_k", "--overwrite=false", "--schema="]


def test_the_main_is_three_lines() -> None:
    """The template's file only calls: `main` → `template.main` → `launch.submit` → `build`."""
    tree = ast.parse((ROOT / "dataflow_templates" / "influence.py").read_text())
    statements = [node for node in tree.body if not isinstance(node, (ast.Import, ast.ImportFrom, ast.Expr))]
    assert [type(node) for node in statements] == [ast.If]


def test_the_program_on_the_local_runner(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    output = tmp_path / "out"
    assert template.main([*parameters(job, output), "--runner=local"]) == 0
    config = job.config(output, outputs="top_k", group_feature=None)
    assert_same_tables(output, job.oracle(config, job.shards("train", 3).ids(), job.shards("test", 1).ids()))


def test_wrong_parameters_end_the_launch(job: DigitsJob, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    given = parameters(job, tmp_path / "out")
    assert template.main([*given, "--damping=none", "--runner=local"]) == 2
    assert "damping" in capsys.readouterr().err
    # As the launcher calls it, with a path of this machine.
    launched = ["--runner=DataflowRunner", *ON_DATAFLOW[1:], IMAGE, "--job_name=a", "--template_location=gs://bucket-a/job"]
    if importlib.util.find_spec("google.cloud.storage"):
        assert template.main([*given, *launched]) == 2
        assert "where Dataflow's workers can't reach it" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_launcher_gets_a_job_and_does_not_wait(job: DigitsJob, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the launcher calls the program, but with a result that would hang when it is waited for."""
    pytest.importorskip("google.cloud.storage")
    submitted = []

    class _Result:
        def wait_until_finish(self, duration: int | None = None) -> None:
            raise AssertionError("the launcher must not wait")

    def run(pipeline: beam.Pipeline) -> _Result:
        submitted.append(pipeline)
        return _Result()

    remote: dict[str, str] = {f"gs://bucket-a/{name}": str(getattr(job.config(tmp_path), name)) for name in ("model", "train", "test")}
    _map_paths(monkeypatch, {**remote, "gs://bucket-a/out": str(tmp_path / "out")})
    monkeypatch.setattr(beam.Pipeline, "run", run)
    # Beam asks Google for the bucket's policy, to warn of it; without a network that takes two minutes.
    monkeypatch.setattr(GoogleCloudOptions, "_warn_if_soft_delete_policy_enabled", lambda self, arg_name: None)
    given = [f"--{name}=gs://bucket-a/{name}" for name in ("model", "train", "test")]
    launched = ["--runner=DataflowRunner", *ON_DATAFLOW[1:], IMAGE, "--job_name=a", "--template_location=gs://bucket-a/job"]
    assert template.main([*given, "--output=gs://bucket-a/out", *launched]) == 0
    (pipeline,) = submitted
    options = pipeline._options.get_all_options()
    assert options["template_location"] == "gs://bucket-a/job" and options["sdk_container_image"] == IMAGE.split("=")[1]
    assert not options["save_main_session"]


def _map_paths(monkeypatch: pytest.MonkeyPatch, local: dict[str, str]) -> None:
    """What is planned is read from this machine; the addresses stay in the job."""
    from beam_influence.pipelines import launch, prepare
    from beam_influence.pipelines.choosing import choose

    real = prepare.prepare

    def prepared(config: Any, choice: Any = None) -> Any:
        here = {name: local.get(getattr(config, name), getattr(config, name)) for name in ("model", "train", "test", "output")}
        return real(type(config)(**{**config.as_json(), **here}), choice)

    monkeypatch.setattr(choose, "prepare", prepared)
    monkeypatch.setattr(launch, "clear_output", lambda *args: None)
    monkeypatch.setattr(BeamFiles, "exists", lambda self, path: os.path.exists(local[path] if path in local else path))


def commands_of_the_image(unpacked: pathlib.Path, sdist: pathlib.Path) -> list[list[str]]:
    """What pip does in the image, with the paths of this machine. Here uv does it, in a fifth of the CPU time; most of what is installed is
    not imported here, so it is not compiled."""
    places = {
        "/template/requirements-build.txt": unpacked / "requirements-build.txt",
        "/template/requirements.txt": unpacked / "dataflow_templates" / "requirements.txt",
        "/template/source": sdist,
    }
    text = re.sub(r"\\\n\s*", " ", (unpacked / "dataflow_templates" / "Dockerfile").read_text())
    commands = [command.split()[1:] for line in re.findall(r"^RUN (.*)$", text, re.MULTILINE) for command in line.split("&&")]
    assert [command[0] for command in commands] == ["install", "install", "check", "install", "check"]
    return [[str(places.get(word, word)) for word in command if word not in ("--compile", "--no-cache-dir")] for command in commands]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_sdist_in_an_empty_environment(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    """`setup.py sdist`, then the `pip` commands of the image, one by one, the template's program and the command; a user's own folders
    of the names of our rooms, on the path, are in nobody's way."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    environment["PYTHONPATH"] = str(tmp_path / "users")
    for name in ("pipelines", "report", "transforms", "influence_ops", "tests"):
        (tmp_path / "users" / name).mkdir(parents=True)
        (tmp_path / "users" / name / "__init__.py").write_text("raise ImportError('a folder of the user')")

    def run(*command: object, cwd: pathlib.Path = tmp_path) -> str:
        done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True, env=environment, timeout=1200)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return done.stdout

    source = tmp_path / "source"
    names = ("influence_ops", "transforms", "report", "pipelines", "dataflow_templates")
    for name in names:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "__init__.py", "py.typed", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "requirements-build.txt"):
        shutil.copy(ROOT / name, source / name)
    run(sys.executable, "setup.py", "-q", "sdist", "--dist-dir", tmp_path / "dist", cwd=source)
    (sdist,) = (tmp_path / "dist").iterdir()
    run("tar", "xzf", sdist)
    (unpacked,) = tmp_path.glob("beam_influence-*")
    assert (unpacked / "dataflow_templates" / "metadata.json").exists() and (unpacked / "dataflow_templates" / "Dockerfile").exists()

    python = tmp_path / "venv" / "bin" / "python"
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    before, after = install_command(python)
    for command in commands_of_the_image(unpacked, sdist):
        run(*before, *command, *after)
    listed = run(python, "-m", "pip", "show", "-f", "beam-influence").partition("Files:\n")[2].split()
    rooms = {"__init__.py", "py.typed", *names}
    assert {path.split("/")[1] for path in listed if path.startswith("beam_influence/")} - {"__pycache__"} == rooms
    assert {path.split("/")[0] for path in listed} - {".."} == {"beam_influence", "beam_influence-0.1.0.dist-info"}
    output = tmp_path / "out"
    main = tmp_path / "influence.py"
    shutil.copy(unpacked / "dataflow_templates" / "influence.py", main)
    run(python, main, *parameters(job, output), "--runner=local")
    config = job.config(output, outputs="top_k", group_feature=None)
    assert_same_tables(output, job.oracle(config, job.shards("train", 3).ids(), job.shards("test", 1).ids()))
    told = run(python.parent / "beam-influence", "run", *parameters(job, tmp_path / "by-command")[:-2], "--runner=FnApiRunner")
    assert "results in" in told
    assert_same_tables(tmp_path / "by-command", job.oracle(config, job.shards("train", 3).ids(), job.shards("test", 1).ids()))
