"""The cheapest change of a run's options with which it fits a worker's memory, shown to do so by its own plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from beam_influence.pipelines.machine_memory import size_text
from beam_influence.pipelines.planning.run_plan import RunPlan, time_text

_SMALLER = 8
_RANK = 8
_WITHOUT_MATRIX = "ekfac"


def cheapest_change(plan: RunPlan, start_bytes: int, options: Mapping[str, Any], plan_with: Callable[[dict[str, Any]], RunPlan]) -> str:
    """In words, the first change that fits; empty where the run fits as it is.

    Args:
      plan: of the run as it is.
      start_bytes: what a process takes before it reads the first file.
      options: of the run.
      plan_with: the plan of other options.

    Raises:
      RunFailedError: as of `plan`.
    """
    if plan.fits:
        return ""
    if start_bytes >= plan.memory_bytes:
        return (
            f"TensorFlow, Beam and the model alone take {size_text(start_bytes)}: no option changes that; use workers of "
            f"{size_text(plan.peak_bytes)} or more"
        )
    for change in _changes(options):
        try:
            other = plan_with({**options, **change})
        except ValueError:
            continue  # it does not go with the other options
        if other.fits:
            said = " ".join(f"--{name} {value}" for name, value in change.items())
            return f"with {said} it fits: {size_text(other.peak_bytes)} a worker, {time_text(other.total.wall)} with one process"
    return f"no change of --batch_size, --query_rank or --curvature fits; use workers of {size_text(plan.peak_bytes)} or more"


def _changes(options: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Options in place of those of the run, those first that change the result and the seconds least."""
    batch = {"batch_size": max(1, int(options["batch_size"]) // _SMALLER)}
    if batch["batch_size"] < int(options["batch_size"]):
        yield batch
    if options.get("test") and options.get("query_rank") is None:
        yield {"query_rank": _RANK}
        yield {**batch, "query_rank": _RANK}
    if options["curvature"] in ("exact", "gauss_newton"):
        yield {"curvature": _WITHOUT_MATRIX}
