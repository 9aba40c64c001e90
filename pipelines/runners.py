"""One flag for each engine: `--runner` and its companions become Beam's own options, or are refused before anything starts.

    local      in this process (the default); with --workers N in N processes of this machine
    prism      Beam's portable runner, one program beside this one
    flink      a Flink cluster, through Beam's job server (--job_endpoint) or by --flink_master
    dataflow   Google Cloud Dataflow

Any other name is a runner of Beam, such as `FlinkRunner`, whose options are passed on without a check.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import pathlib
import shutil
import socket
import sys
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from beam_influence.pipelines.config import InfluenceConfig, own_options
from beam_influence.pipelines.unknown_options import refuse_unknown

PRESETS = ("local", "prism", "flink", "dataflow")
ENVIRONMENTS = ("LOOPBACK", "EXTERNAL", "PROCESS", "DOCKER")
WORKER_COMMAND = "beam-influence-worker"
POOL_ADDRESS = "localhost:50000"
DEFAULT_GPU = "nvidia-l4"

# A worker process needs some ten seconds to import TensorFlow; without this, Flink would end it after each stage. It
# can't be long: a worker that has died is kept as well, and what is tried on it fails, until the cluster gives up.
_KEEP_WORKERS_MILLISECONDS = 30_000
_CONNECT_SECONDS = 5.0
_THIS_MACHINE = ("localhost", "127.0.0.1", "::1", "[local]", "[auto]", "")
_SHOW_PROGRESS = ("FnApiRunner", "DirectRunner", "BundleBasedDirectRunner", "PrismRunner")
_PATHS = (
    "model", "model_weights", "checkpoints", "train", "test", "schema", "curvature_path", "influence_vectors_path", "index", "output",
    "work_dir",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Engine:
    """Where a run goes.

    Attributes:
      arguments: Beam's options, all of them.
      is_local: whether the workers are on this machine, so that they can report progress to the launcher.
      accelerator: the resource hint of the scoring step (`fit`, `index`: of those that differentiate the training set), or None.
      time_limit: after how many seconds the job is cancelled, or None.
      flink: where a Flink cluster's REST interface is and the job's name on it, for cancelling; or None.
    """

    arguments: list[str]
    is_local: bool
    accelerator: str | None = None
    time_limit: float | None = None
    flink: tuple[str, str] | None = None


def add_options(parser: Any) -> None:
    """Adds the options of this module to a parser or to a group of one."""
    parser.add_argument(
        "--runner",
        default="local",
        metavar="NAME",
        help="The engine: local, prism, flink, dataflow, or a runner's name of Beam's, such as SparkRunner (default: local).",
    )
    parser.add_argument(
        "--workers",
        type=int,
        metavar="INT",
        help="With --runner local: how many processes of this machine share the work; 0: one for each core (default: this process).",
    )
    parser.add_argument(
        "--environment",
        type=str.upper,
        choices=ENVIRONMENTS,
        help="With --runner flink or prism, where the Python workers come from: LOOPBACK, this process, for a cluster on this "
        f"machine (default there); EXTERNAL, a pool beside each task manager ({WORKER_COMMAND} --worker_pool), at {POOL_ADDRESS} "
        f"or --environment_config HOST:PORT; PROCESS, started by the task managers ({WORKER_COMMAND}, or --environment_config); "
        "DOCKER, the image --environment_config.",
    )
    parser.add_argument(
        "--gpu",
        nargs="?",
        const=DEFAULT_GPU,
        metavar="TYPE",
        help="With --runner dataflow: a GPU for each worker of the scoring step (fit and index: of the steps that differentiate the "
        f"training examples), of this type (default: {DEFAULT_GPU}).",
    )
    parser.add_argument(
        "--time_limit",
        type=float,
        metavar="SECONDS",
        help="With --runner prism, flink or dataflow: cancel the job when it has not finished by then.",
    )


def as_arguments(chosen: argparse.Namespace) -> list[str]:
    """The options of this module that a parser has found, as arguments again."""
    names = ("runner", "workers", "environment", "gpu", "time_limit")
    return [f"--{name}={getattr(chosen, name)}" for name in names if getattr(chosen, name, None) is not None]


def choose_engine(arguments: Iterable[str], config: InfluenceConfig | None = None) -> Engine:
    """The engine that `arguments` name, with Beam's own options among them; `config` has the paths that it must reach.

    Raises:
      ValueError: the options don't go together, or the engine is not there; the message says what to write instead.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    add_options(parser)
    try:
        chosen, beam_arguments = parser.parse_known_args(list(arguments))
    except argparse.ArgumentError as error:
        raise ValueError(str(error)) from error
    preset = chosen.runner.lower()
    _check_companions(chosen)
    beam = _beam_options(beam_arguments)
    own = () if config is None else own_options(config.curvature_kind)
    refuse_unknown(beam_arguments, _has_server_options(preset, beam), beam.get("job_endpoint"), own)
    if chosen.gpu is not None and config is not None and (config.index or config.influence_vectors_path):
        raise ValueError("--gpu is for steps that differentiate training examples, and there is none to differentiate; leave it out")
    if preset == "local":
        return Engine([*beam_arguments, *_local(chosen, beam)], True)
    if preset == "prism":
        more = [*_prism(beam), *_environment(chosen, beam, True)]
        return Engine([*beam_arguments, *more], True, time_limit=chosen.time_limit)
    if preset == "flink":
        more, is_local = _flink(chosen, beam)
        name = beam.get("job_name") or f"beam-influence-{uuid.uuid4().hex[:12]}"
        if "job_name" not in beam:
            more.append(f"--job_name={name}")
        master = str(beam.get("flink_master") or "[auto]")
        job = None if master.startswith("[") else (master, name)
        shows_progress = is_local and chosen.environment == "LOOPBACK"
        return Engine([*beam_arguments, *more], shows_progress, time_limit=chosen.time_limit, flink=job)
    if preset == "dataflow":
        accelerator = f"type:{chosen.gpu};count:1;install-nvidia-driver" if chosen.gpu else None
        return Engine([*beam_arguments, *_dataflow(chosen, beam, config)], False, accelerator, chosen.time_limit)
    name = _runner_of_beam(chosen.runner)
    return Engine([*beam_arguments, f"--runner={name}"], name in _SHOW_PROGRESS, time_limit=chosen.time_limit)


def open_file_systems(arguments: Sequence[str]) -> None:
    """Gives Beam's file systems the options among `arguments`, such as `--s3_endpoint_url`, before a pipeline does, which is later."""
    from apache_beam.io.filesystems import FileSystems
    from apache_beam.options.pipeline_options import PipelineOptions

    FileSystems.set_options(PipelineOptions(list(arguments), save_main_session=False))


def _check_companions(chosen: argparse.Namespace) -> None:
    """Options that go with another runner."""
    runner = chosen.runner
    preset = runner.lower()
    if chosen.workers is not None and preset != "local":
        others = {"flink": "--parallelism N", "dataflow": "--max_num_workers N"}
        mend = f"; give {others[preset]}" if preset in others else "; leave it out"
        raise ValueError(f"--workers {chosen.workers} is of --runner local, not {runner}{mend}")
    if chosen.workers is not None and chosen.workers < 0:
        raise ValueError(f"--workers {chosen.workers} must be at least 1, or 0 for one for each core")
    if chosen.environment is not None and preset not in ("prism", "flink"):
        mend = "; Dataflow's workers run --sdk_container_image" if preset == "dataflow" else "; leave it out"
        raise ValueError(f"--environment {chosen.environment} is of --runner flink and prism, not {runner}{mend}")
    if chosen.gpu is not None and preset != "dataflow":
        raise ValueError(f"--gpu is of --runner dataflow, not {runner}; elsewhere a GPU that a worker finds is used: leave it out")
    if chosen.time_limit is not None and preset in ("local", "fnapirunner", "directrunner"):
        raise ValueError(f"--time_limit is of --runner prism, flink and dataflow; a {runner} run ends with this process: leave it out")
    if chosen.time_limit is not None and not chosen.time_limit > 0:
        raise ValueError(f"--time_limit {chosen.time_limit:g} must be above 0")


def _has_server_options(preset: str, beam: Mapping[str, Any]) -> bool:
    """Whether a job server has options of its own, which Beam's Python does not know."""
    return preset not in ("local", "prism", "dataflow", *(name.lower() for name in _SHOW_PROGRESS)) or "job_endpoint" in beam


def _beam_options(arguments: Sequence[str]) -> dict[str, Any]:
    """Those of Beam's options that were given."""
    from apache_beam.options.pipeline_options import PipelineOptions

    return PipelineOptions(list(arguments)).get_all_options(drop_default=True)


def _local(chosen: argparse.Namespace, beam: Mapping[str, Any]) -> Iterator[str]:
    clashing = [name for name in ("direct_num_workers", "direct_running_mode") if name in beam]
    if chosen.workers is not None and clashing:
        raise ValueError(f"--workers {chosen.workers} and --{clashing[0]} say the same; leave one of them out")
    for name in ("flink_master", "job_endpoint"):
        if name in beam:
            raise ValueError(f"--{name} {beam[name]} has no effect with --runner local; add --runner flink")
    yield "--runner=FnApiRunner"
    if chosen.workers is not None and chosen.workers != 1:
        yield "--direct_running_mode=multi_processing"
        yield f"--direct_num_workers={chosen.workers}"


def _prism(beam: Mapping[str, Any]) -> Iterator[str]:
    yield "--runner=PrismRunner"
    given = beam.get("prism_location")
    if given is None:
        yield f"--prism_location={find_prism()}"
    elif "://" not in given and shutil.which(given) is None:
        raise ValueError(f"--prism_location {given!r} is not a program; {_get_prism()}")


def prism_folder() -> pathlib.Path:
    """Where `engines/prism/get_prism.sh` puts the program: a folder for each version of Beam."""
    from apache_beam.version import __version__ as version

    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return pathlib.Path(os.environ.get("PRISM_CACHE") or f"{cache}/beam-influence/prism") / f"v{version}"


def _get_prism() -> str:
    module = f"github.com/apache/beam/sdks/v2/go/cmd/prism@{prism_folder().name}"
    return f"build it with Go: GOBIN={prism_folder()} go install {module}"


def find_prism() -> str:
    """The Prism program: in our cache, on the PATH, or where `go install` or Beam put it.

    Raises:
      ValueError: there is none; the message says how to get one.
    """
    go_path = os.environ.get("GOPATH") or os.path.expanduser("~/go")
    folders = [str(prism_folder()), os.environ.get("PATH", ""), os.environ.get("GOBIN", ""), f"{go_path}/bin"]
    found = shutil.which("prism", path=os.pathsep.join(folder for folder in folders if folder))
    if found is None:
        raise ValueError(
            f"--runner prism: there is no program prism; {_get_prism()}, or give --prism_location PATH, or --runner PrismRunner, "
            "with which Beam downloads it"
        )
    return found


def _flink(chosen: argparse.Namespace, beam: Mapping[str, Any]) -> tuple[list[str], bool]:
    """Beam's options for a Flink cluster, and whether it is on this machine."""
    endpoint, master = beam.get("job_endpoint"), beam.get("flink_master") or ""
    if not endpoint and not master:
        raise ValueError(
            "--runner flink needs a cluster: --job_endpoint HOST:8099, where Beam's job server listens (engines/flink/flink.sh cluster "
            "starts a cluster and a job server on this machine), or --flink_master HOST:8081"
        )
    address: str = endpoint or master
    is_local = _host(address) in _THIS_MACHINE
    if not endpoint and not master.startswith("[") and not (beam.get("flink_submit_uber_jar") or shutil.which("java")):
        raise ValueError(
            f"--flink_master {master}: Beam starts a job server of its own for it, which needs Java; install it, or give "
            "--job_endpoint HOST:8099 of a job server that runs"
        )
    chosen.environment = chosen.environment or ("LOOPBACK" if is_local and "environment_type" not in beam else None)
    more = list(_environment(chosen, beam, is_local))  # before any connection: what is wrong in itself is told first
    if not address.startswith("["):
        option = "--job_endpoint" if endpoint else "--flink_master"
        _connect(option, address, "start it (engines/flink/flink.sh cluster), or give its address")
    if "environment_cache_millis" not in beam:
        more.append(f"--environment_cache_millis={_KEEP_WORKERS_MILLISECONDS}")
    # FlinkRunner starts a job server; PortableRunner uses the one that runs.
    return [f"--runner={'PortableRunner' if endpoint else 'FlinkRunner'}", *more], is_local


def _environment(chosen: argparse.Namespace, beam: Mapping[str, Any], is_local: bool) -> Iterator[str]:
    kind, config = chosen.environment, beam.get("environment_config")
    if "environment_type" in beam:
        if kind is not None:
            raise ValueError(f"--environment {kind} and --environment_type {beam['environment_type']} say the same; leave one out")
        return
    if kind is None:
        if chosen.runner.lower() == "flink":
            raise ValueError(
                f"say where the workers of a cluster elsewhere come from: --environment EXTERNAL (a pool beside each task manager: "
                f"{WORKER_COMMAND} --worker_pool), PROCESS, or DOCKER with --environment_config IMAGE"
            )
        return
    if kind == "LOOPBACK":
        if not is_local:
            raise ValueError(
                "--environment LOOPBACK runs the workers in this process, which a cluster on other machines can't reach; "
                "use --environment EXTERNAL or PROCESS"
            )
        if config is not None:
            raise ValueError("--environment LOOPBACK takes no --environment_config; leave it out, or use --environment EXTERNAL")
    if kind == "DOCKER" and config is None:
        raise ValueError("--environment DOCKER needs --environment_config IMAGE, an image in which this package is installed")
    yield f"--environment_type={kind}"
    if kind == "EXTERNAL":
        if config is None:
            yield f"--environment_config={POOL_ADDRESS}"
        if is_local:
            _connect("--environment EXTERNAL", config or POOL_ADDRESS, f"start {WORKER_COMMAND} --worker_pool, or give its address")
    if kind == "PROCESS":
        if config is None:
            yield f"--environment_config={json.dumps({'command': _worker_command()})}"
        else:
            _check_process(config, is_local)


def _worker_command() -> str:
    beside = os.path.dirname(sys.executable)
    found = shutil.which(WORKER_COMMAND, path=os.pathsep.join([beside, os.environ.get("PATH", "")]))
    if found is None:
        raise ValueError(
            f"--environment PROCESS: there is no program {WORKER_COMMAND}; install this package (pip install), or give the path that it "
            'has on the task managers\' machines: --environment_config \'{"command": "/path/to/' + WORKER_COMMAND + "\"}'"
        )
    return os.path.abspath(found)


def _check_process(config: str, is_local: bool) -> None:
    shape = '{"command": "/path/to/' + WORKER_COMMAND + '"}'
    try:
        command = json.loads(config)["command"]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"--environment_config {config!r} must be JSON like {shape} with --environment PROCESS") from error
    if is_local and shutil.which(command) is None:
        raise ValueError(f"--environment_config: {command!r} is not a program on this machine")


def _host(address: str) -> str:
    host = address.partition("://")[2] or address
    return host if host.startswith("[") else host.rpartition(":")[0] or host


def _connect(option: str, address: str, mend: str) -> None:
    """Whether something listens; a client of Beam would wait for minutes, or for ever."""
    name = (address.partition("://")[2] or address).rstrip("/")
    host, _, port = name.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"{option} {address!r} must be HOST:PORT")
    try:
        socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
    except OSError as error:
        raise ValueError(f"{option}: nothing answers at {name} ({error}); {mend}") from error


def _dataflow(chosen: argparse.Namespace, beam: Mapping[str, Any], config: InfluenceConfig | None) -> Iterator[str]:
    if importlib.util.find_spec("google.cloud.storage") is None:
        raise ValueError("--runner dataflow needs Beam's Google Cloud parts; install them: pip install 'beam-influence[gcp]'")
    for name, example in (("project", "MY-PROJECT"), ("region", "us-central1"), ("temp_location", "gs://BUCKET/temp")):
        if not beam.get(name):
            raise ValueError(f"--runner dataflow needs --{name}, such as --{name} {example}")
    if not str(beam["temp_location"]).startswith("gs://"):
        raise ValueError(f"--temp_location {beam['temp_location']!r} must be on Google Cloud Storage: gs://BUCKET/temp")
    for name in _PATHS:
        for path in (getattr(config, name, None) or "").split(","):
            is_function = name == "model" and ":" in path and "/" not in path
            if path.strip() and "://" not in path and not is_function:
                raise ValueError(f"--{name} {path.strip()!r} is on this machine, where Dataflow's workers can't reach it; use gs://BUCKET/…")
    packages = ("sdk_container_image", "setup_file", "extra_packages", "requirements_file")
    if not any(beam.get(name) for name in packages):
        raise ValueError(
            "Dataflow's workers need this package: give --sdk_container_image IMAGE with it inside, or --extra_package its sdist"
        )
    yield "--runner=DataflowRunner"
    if chosen.gpu is not None:
        if any("worker_accelerator" in option for option in beam.get("dataflow_service_options") or []):
            raise ValueError(
                "--gpu asks for a GPU for the scoring step alone, --dataflow_service_options worker_accelerator for every worker; give one"
            )
        # One process for each GPU, not one for each core.
        yield "--experiments=no_use_multiple_sdk_containers"


def _runner_of_beam(name: str) -> str:
    from apache_beam.options.pipeline_options import StandardOptions

    if "." in name:
        return name
    names = {known.lower(): known for known in StandardOptions.KNOWN_RUNNER_NAMES}
    known = names.get(name.lower()) or names.get(f"{name.lower()}runner")
    if known is None:
        raise ValueError(f"--runner {name!r} must be one of {', '.join(PRESETS)}, or a runner of Beam: {', '.join(sorted(names.values()))}")
    return known
