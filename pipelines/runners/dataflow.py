"""`--runner dataflow`: Google Cloud Dataflow, with a GPU for the steps that can use one."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

from beam_influence.pipelines.config import InfluenceConfig
from beam_influence.pipelines.runners.runner import TIME_LIMIT, Engine, Option, Request, Runner

DEFAULT_GPU = "nvidia-l4"

_NEEDED = {"project": "MY-PROJECT", "region": "us-central1", "temp_location": "gs://BUCKET/temp"}
_PACKAGES = ("sdk_container_image", "setup_file", "extra_packages", "requirements_file")
_PATHS = (
    "model", "model_weights", "checkpoints", "train", "test", "schema", "curvature_path", "influence_vectors_path", "index", "output",
    "work_dir",
)  # fmt: skip

GPU = Option(
    "gpu",
    "With --runner dataflow: a GPU for each worker of the steps that differentiate examples (the curvature's passes, test points, "
    f"scoring, an index), of this type (default: {DEFAULT_GPU}).",
    metavar="TYPE",
    without_value=DEFAULT_GPU,
    elsewhere="elsewhere a GPU that a worker finds is used: leave it out",
)


class Dataflow(Runner):
    """A project on Google Cloud, whose workers need this package and paths that they can reach."""

    name = "dataflow"
    options = (TIME_LIMIT, GPU)
    instead = {"workers": "give --max_num_workers N", "environment": "Dataflow's workers run --sdk_container_image"}

    def engine(self, request: Request) -> Engine:
        gpu, beam, config = request.own.gpu, request.beam, request.config
        if gpu is not None and config is not None and (config.index or config.influence_vectors_path):
            raise ValueError("--gpu is for steps that differentiate training examples, and there is none to differentiate; leave it out")
        if importlib.util.find_spec("google.cloud.storage") is None:
            raise ValueError("--runner dataflow needs Beam's Google Cloud parts; install them: pip install 'beam-influence[gcp]'")
        _check_options(beam)
        if config is not None:
            _check_paths(config)
        if not any(beam.get(name) for name in _PACKAGES):
            raise ValueError(
                "Dataflow's workers need this package: give --sdk_container_image IMAGE with it inside, or --extra_package its sdist"
            )
        if gpu is None:
            return Engine(["--runner=DataflowRunner"], False)
        if any("worker_accelerator" in option for option in beam.get("dataflow_service_options") or []):
            raise ValueError(
                "--gpu asks for a GPU for some of the steps, --dataflow_service_options worker_accelerator for every worker; give one"
            )
        # One process for each GPU, not one for each core.
        arguments = ["--runner=DataflowRunner", "--experiments=no_use_multiple_sdk_containers"]
        return Engine(arguments, False, accelerator=f"type:{gpu};count:1;install-nvidia-driver")


def _check_options(beam: Mapping[str, Any]) -> None:
    for name, example in _NEEDED.items():
        if not beam.get(name):
            raise ValueError(f"--runner dataflow needs --{name}, such as --{name} {example}")
    if not str(beam["temp_location"]).startswith("gs://"):
        raise ValueError(f"--temp_location {beam['temp_location']!r} must be on Google Cloud Storage: gs://BUCKET/temp")


def _check_paths(config: InfluenceConfig) -> None:
    for name in _PATHS:
        for path in (getattr(config, name) or "").split(","):
            is_function = name == "model" and ":" in path and "/" not in path
            if path.strip() and "://" not in path and not is_function:
                raise ValueError(f"--{name} {path.strip()!r} is on this machine, where Dataflow's workers can't reach it; use gs://BUCKET/…")
