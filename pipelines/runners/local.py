"""`--runner local`: Beam's in-memory runner, in this process or in several of this machine."""

from __future__ import annotations

import os

from beam_influence.pipelines.runners.runner import Engine, Option, Request, Runner

WORKERS = Option(
    "workers",
    "With --runner local: how many processes of this machine share the work; 0: one for each core (default: this process).",
    type=int,
    metavar="INT",
    refuse=lambda count: None if count >= 0 else f"--workers {count} must be at least 1, or 0 for one for each core",
)


class Local(Runner):
    """One process, or with `--workers` several."""

    name = "local"
    beam_prefix = "direct_"
    options = (WORKERS,)
    instead = {"time_limit": "the run ends with this process: leave it out"}

    def engine(self, request: Request) -> Engine:
        workers, beam = request.own.workers, request.beam
        clashing = [name for name in ("direct_num_workers", "direct_running_mode") if name in beam]
        if workers is not None and clashing:
            raise ValueError(f"--workers {workers} and --{clashing[0]} say the same; leave one of them out")
        if "job_endpoint" in beam:
            raise ValueError(f"--job_endpoint {beam['job_endpoint']} has no effect with --runner local; add --runner flink")
        several = [] if workers in (None, 1) else ["--direct_running_mode=multi_processing", f"--direct_num_workers={workers}"]
        return Engine(["--runner=FnApiRunner", *several], True)


def count_processes(engine: Engine) -> int:
    """How many processes of this machine Beam's in-memory runner works in."""
    options = engine.options().get_all_options()
    if options["direct_running_mode"] != "multi_processing":
        return 1
    return int(options["direct_num_workers"]) or os.cpu_count() or 1


def refuse_more_than_gpus(processes: int) -> None:
    """Refuses more processes than GPUs on a machine that has some.

    Raises:
      ValueError: there are more.
    """
    from beam_influence.influence_ops.device import count_gpus  # TensorFlow: seconds that --help need not wait

    gpus = count_gpus()
    if 0 < gpus < processes:
        raise ValueError(
            f"--workers {processes}: a GPU is used by one process, and this machine has {gpus}; use --workers {gpus}, or hide "
            "the GPUs (CUDA_VISIBLE_DEVICES= in the environment) to compute on the CPU"
        )
