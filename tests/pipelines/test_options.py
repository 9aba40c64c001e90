"""No option is ignored: what a command takes arrives, what it doesn't take and what nobody knows is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from beam_influence.pipelines import launch, run_summary
from beam_influence.pipelines.cli import main, parser
from beam_influence.pipelines.config import InfluenceConfig
from beam_influence.pipelines.evaluate_config import MEASURES, RETRAINING, EvaluateConfig
from beam_influence.pipelines.options.option import COMMANDS, option_type
from beam_influence.pipelines.runners import choose_engine
from beam_influence.pipelines.unknown_options import options_of_commands, refuse_unknown

NEEDED = {
    "run": {"model": "m", "train": "a", "output": "o"},
    "fit": {"model": "m", "train": "a", "output": "o"},
    "index": {"model": "m", "train": "a", "output": "o"},
    "query": {"model": "m", "index": "i", "test": "b", "output": "o"},
}
# A value of its own, where the type does not give one, and what the option goes with.
VALUES: dict[str, str] = {
    "default": "given=0", "budget_seconds": "60", "decoded_cache": "5MB",
    "model": "other", "output": "other", "damping": "0.5", "curvature": "ekfac", "rcond": "0.5", "tolerance": "0.5", "weights": "all",
    "outputs": "scores", "checkpoint_weights": "0.5", "preprocess": "module:function", "weight_decay": "0.5", "fisher": "true",
    "removal": "newton", "order": "ascending", "projection_dim": "8", "normalize": "theta", "index_dtype": "float16", "search": "faiss",
    "curvature_settings": "cut=0.5", "segment_rates": "0.5", "segment_steps": "7", "segments": "2",
}  # fmt: skip
GOES_WITH: dict[str, dict[str, str]] = {
    "influence_vectors_path": {"train": "", "test": "b"},
    "index": {"train": "", "test": "b"},
    "candidates": {"outputs": "scores", "test": "b"},
    "fisher": {"curvature": "ekfac"},
    "rcond": {"damping": "0"},
    "budget_seconds": {"curvature": "auto"},
    "passes": {"curvature": "arnoldi"},
    "tolerance": {"curvature": "lissa"},
    "max_iterations": {"curvature": "lissa"},
    "matrix": {"curvature": "arnoldi"},
    "block_size": {"curvature": "arnoldi"},
    "curvature_settings": {"curvature": "tests.pipelines.test_own_curvature:CutDiagonal"},
    "segment_rates": {"curvature": "source", "segment_steps": "5"},
    "segment_steps": {"curvature": "source", "segment_rates": "0.5"},
    "segments": {"curvature": "source", "segment_rates": "0.5", "segment_steps": "5", "checkpoints": "a,b"},
    "projection": {"curvature": "random_projection"},
    "projection_dim": {"curvature": "random_projection"},
    "checkpoint_weights": {"checkpoints": "c"},
    "second_order_groups": {"outputs": "group_influence", "group_feature": "g", "test": "b", "curvature": "exact"},
    "per_token": {"outputs": "top_k", "test": "b"},
    "uncertainty": {"curvature": "random_projection"},
    "update": {"outputs": "index"},
    "index_dtype": {"outputs": "index", "curvature": "arnoldi"},
    "search": {"train": "", "index": "i", "test": "b"},
    "test_group_feature": {"outputs": "group_influence", "group_feature": "g", "test": "b"},
    "outputs": {"test": "b"},
    "last_layer": {"start_layer": "0"},
    "seed": {"curvature": "ekfac"},
}


def value_of(field: dataclasses.Field, config: type = InfluenceConfig) -> str:
    kind, choices = option_type(field, config), field.metadata["choices"]
    if field.name in VALUES:
        return VALUES[field.name]
    if choices:
        return next(choice for choice in choices if choice != field.default)
    return {int: "7", float: "0.25", str: "4GB" if field.name in ("max_worker_memory", "decoded_cache") else "given"}[kind]


def words_for(command: str, field: dataclasses.Field) -> list[str]:
    options = dict(NEEDED[command])
    if command == "run":
        options["outputs"] = "self_influence"
    of_command = {other.name for other in dataclasses.fields(InfluenceConfig) if command in other.metadata["commands"]}
    options |= {name: value for name, value in GOES_WITH.get(field.name, {}).items() if name in of_command}
    of_tests = ("influence_vectors_path", "index", "search", "test", "top_k", "order", "per_token", "uncertainty")
    of_memory = ("score_tolerance", "query_rank", "max_worker_memory")
    if field.name in of_tests + of_memory and command == "run":
        options |= {"outputs": "top_k", "test": "b"}
    if option_type(field, InfluenceConfig) is bool:
        return [*words(options), f"--no-{field.name}" if field.default else f"--{field.name}"]
    return words(options | {field.name: value_of(field)})


def words(options: dict[str, str]) -> list[str]:
    return [f"--{name}={value}" for name, value in options.items() if value]


OWN = [(command, field) for field in dataclasses.fields(InfluenceConfig) for command in field.metadata["commands"]]


@pytest.mark.parametrize(("command", "field"), OWN, ids=[f"{command}-{field.name}" for command, field in OWN])
def test_every_option_of_a_command_arrives(command: str, field: dataclasses.Field, monkeypatch: pytest.MonkeyPatch) -> None:
    arrived: list[InfluenceConfig] = []

    def run(config: InfluenceConfig, beam_arguments: list[str]) -> None:
        assert beam_arguments == ["--runner=local"]
        arrived.append(config)

    monkeypatch.setattr(launch, "run", run)
    monkeypatch.setattr(run_summary, "summary_text", lambda summary: "")
    assert main([command, *words_for(command, field)]) == 0
    (config,) = arrived
    kind = option_type(field, InfluenceConfig)
    expected: Any = (not field.default) if kind is bool else kind(value_of(field))
    assert getattr(config, field.name) == expected != field.default


def test_every_option_is_of_a_command() -> None:
    for field in dataclasses.fields(InfluenceConfig):
        assert field.metadata["commands"] and set(field.metadata["commands"]) <= set(COMMANDS), field.name
    # The template has those of `run`: all.
    assert all("run" in field.metadata["commands"] for field in dataclasses.fields(InfluenceConfig))


@pytest.mark.parametrize("measure", MEASURES)
def test_every_option_of_a_measure_arrives(measure: str) -> None:
    fields = [field for field in dataclasses.fields(EvaluateConfig) if measure in field.metadata.get("measures", ())]
    for field in fields:
        kind = option_type(field, EvaluateConfig)
        word = f"--{field.name}" if kind is bool else f"--{field.name}={value_of(field, EvaluateConfig)}"
        needed = [f"--{name}=x" for name in ("scores", "output") if name != field.name]
        known, rest = parser().parse_known_args(["evaluate", measure, *needed, word])
        assert not rest
        assert getattr(known, field.name) == (True if kind is bool else kind(value_of(field, EvaluateConfig)))


@pytest.mark.parametrize(
    ("command", "name"),
    [(command, name) for name, commands in options_of_commands().items() for command in COMMANDS if commands and command not in commands],
)
def test_an_option_of_another_command_is_refused(command: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Also those that Beam has under the same name, such as Dataflow's own --update."""
    assert main([command, *words(NEEDED[command]), f"--{name}=1"]) == 2
    error = capsys.readouterr().err
    assert f"--{name} is not an option of {command}, but of {options_of_commands()[name][0]}" in error


@pytest.mark.parametrize("measure", [measure for measure in MEASURES if measure not in RETRAINING])
def test_a_measure_without_retraining_takes_no_engine(measure: str, capsys: pytest.CaptureFixture[str]) -> None:
    needed = ["--scores=s", "--output=o", *(["--mislabelled=m"] if measure == "mislabelled" else [])]
    assert main(["evaluate", measure, *needed, "--workers=2"]) == 2
    assert "--workers is not an option" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dampng", "0.5"], "--dampng is not an option, of this command nor of Beam; did you mean --damping?"),
        (["--dampng=0.5"], "did you mean --damping?"),
        (["--max_reject=3"], "did you mean --max_rejected?"),
        (["--job-name=a"], "did you mean --job_name?"),
        (["--qqq"], "--qqq is not an option, of this command nor of Beam; leave it out"),
        (["train-00001.gz"], "'train-00001.gz' belongs to no option; quote patterns"),
        (["--temp_location", "gs://b/t", "more"], "'more' belongs to no option"),
    ],
)
@pytest.mark.parametrize("command", ["run", "fit"])
def test_a_slip_of_the_pen_is_refused(words: list[str], message: str, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = ["--outputs=self_influence"] if command == "run" else []
    assert main([command, "--model=m", "--train=a", "--output=o", *outputs, *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "given",
    [
        ["--parallelism=8"],
        ["--experiments=a", "--experiments", "b"],
        ["--s3_endpoint_url", "http://localhost:1"],
        ["--hdfs_host=h", "--hdfs_port=1", "--hdfs_user=u"],
        ["--direct_num_workers=2", "--direct_running_mode=multi_threading"],
        ["--environment_options=process_command=/a"],
        ["--no_auth", "--streaming"],
    ],
    ids=lambda given: given[0],
)
def test_beam_s_own_options_go_to_beam(given: list[str]) -> None:
    refuse_unknown(given)


def test_what_only_a_job_server_can_know(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked; where it can't be, all but a slip of the pen is passed on."""
    from concurrent.futures import ThreadPoolExecutor

    import grpc
    from apache_beam.portability.api import beam_job_api_pb2 as api
    from apache_beam.portability.api import beam_job_api_pb2_grpc

    class _Server(beam_job_api_pb2_grpc.JobServiceServicer):
        def DescribePipelineOptions(self, request: Any, context: Any) -> Any:
            return api.DescribePipelineOptionsResponse(options=[api.PipelineOptionDescriptor(name="checkpointing_interval")])

    server = grpc.server(ThreadPoolExecutor(1))
    beam_job_api_pb2_grpc.add_JobServiceServicer_to_server(_Server(), server)
    address = f"localhost:{server.add_insecure_port('localhost:0')}"
    server.start()
    try:
        refuse_unknown(["--checkpointing_interval=3"], True, address)
        refuse_unknown(["--checkpointing_interval", "3"], True, address)
        with pytest.raises(ValueError, match="did you mean --checkpointing_interval"):
            refuse_unknown(["--checkpoint_interval=3"], True, address)
    finally:
        server.stop(None).wait()
    refuse_unknown(["--state_backend=rocksdb", "--object_reuse", "3"], True)
    with pytest.raises(ValueError, match="did you mean --parallelism"):
        refuse_unknown(["--paralelism=3"], True)


@pytest.mark.parametrize(
    ("more", "name"),
    [
        ({"damping": "0.5"}, "damping"),
        ({"n_samples": 5}, "n_samples"),
        ({"seed": 3}, "seed"),
        ({"rank": 3}, "rank"),
        ({"curvature": "ekfac", "fisher": "true"}, "fisher"),
        ({"curvature": "arnoldi", "passes": 3}, "passes"),
        ({"curvature": "lissa", "tolerance": 0.5}, "tolerance"),
        ({"curvature": "lissa", "max_iterations": 5}, "max_iterations"),
    ],
)
def test_a_saved_curvature_is_not_fitted_again(more: dict[str, Any], name: str) -> None:
    """Its damping and the rest are its own; another value would have no effect."""
    with pytest.raises(ValueError, match=f"--{name} .* decides how a curvature is fitted, and --curvature_path uses one that was"):
        InfluenceConfig(model="m", output="o", train="a", test="b", curvature_path="c", **more)
    InfluenceConfig(model="m", output="o", train="a", test="b", curvature_path="c")
    InfluenceConfig(model="m", output="o", train="a", test="b", curvature_path="c", curvature="gauss_newton_cg", passes=0)
    InfluenceConfig(model="m", output="o", train="a", test="b", curvature_path="c", curvature="gauss_newton_cg", tolerance=0.5)


def test_a_gpu_without_gradients_is_refused() -> None:
    dataflow = ["--runner=dataflow", "--project=p", "--region=r", "--temp_location=gs://b/t", "--sdk_container_image=i", "--gpu"]
    config = InfluenceConfig(model="gs://b/m", output="gs://b/o", index="gs://b/i", test="gs://b/t")
    with pytest.raises(ValueError, match="--gpu is for steps that differentiate training examples"):
        choose_engine(dataflow, config)
    pytest.importorskip("google.cloud.storage")
    assert choose_engine(dataflow, InfluenceConfig(model="gs://b/m", output="gs://b/o", train="gs://b/t", outputs="curvature")).accelerator


def test_the_execution_options_are_said_to_change_nothing() -> None:
    """What changes numbers, such as the tolerance of the low-rank way, is of the method."""
    of_execution = {field.name for field in dataclasses.fields(InfluenceConfig) if field.metadata["group"] == "execution"}
    assert of_execution == {
        "verbose", "resume", "batch_size", "query_block_size", "shard_size", "max_worker_memory", "threads", "work_dir",
        "decoded_cache",
    }  # fmt: skip
