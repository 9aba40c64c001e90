"""What came of a run: its manifest, its seconds, and the closing table on the terminal."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from apache_beam.metrics.metric import MetricsFilter
from apache_beam.runners.runner import PipelineResult

from beam_influence.pipelines.build import STAGES
from beam_influence.pipelines.unrolled_words import training_lines
from beam_influence.transforms.read_shards import NAMESPACE

OF_UNROLLED = ("replay", "unroll")
"""The stages of `beam-influence unrolled`."""


@dataclasses.dataclass(frozen=True)
class RunSummary:
    """A finished run.

    Attributes:
      output: the folder of the results.
      manifest: the content of its manifest.
      milliseconds: work in each stage, summed over workers; empty where the runner reports none.
      seconds: wall time of the whole run.
    """

    output: str
    manifest: dict[str, Any]
    milliseconds: dict[str, int]
    seconds: float


def stage_milliseconds(result: PipelineResult) -> dict[str, int]:
    """Work in each stage, summed over workers; empty where the runner reports none."""
    return stage_counters(result, "milliseconds")


def stage_counters(result: PipelineResult, what: str) -> dict[str, int]:
    """The counters `<stage>_<what>` by stage, such as `examples`, of a job that has ended or still runs; empty where there are none."""
    try:
        counters = result.metrics().query(MetricsFilter().with_namespace(NAMESPACE))["counters"]
    except Exception:  # a runner without metrics: the table then shows no seconds
        return {}
    found: dict[str, int] = {}
    for counter in counters:
        name = counter.key.metric.name
        if name.endswith(f"_{what}"):
            stage = name.removesuffix(f"_{what}")
            found[stage] = found.get(stage, 0) + int(counter.committed or counter.attempted or 0)
    return found


def summary_text(summary: RunSummary) -> str:
    """The closing table of a run."""
    closing = f"{summary.seconds:.1f} s in all; results in {summary.output}"
    return "\n".join([*_of_stages(summary), "", *curvature_lines(summary.manifest), *_of_tables(summary.manifest), "", closing])


def _of_stages(summary: RunSummary) -> Iterator[str]:
    yield f"{'stage':<12}{'shards':>7}{'examples':>12}{'rejected':>10}{'seconds':>9}{'examples/s':>12}"
    for stage in (*STAGES, *OF_UNROLLED):
        if stage not in summary.manifest["counts"]:
            continue
        count = summary.manifest["counts"][stage]
        seconds = summary.milliseconds.get(stage, 0) / 1000
        rate = f"{count['examples'] / seconds:,.0f}" if seconds else "–"
        shown = f"{seconds:.1f}" if stage in summary.milliseconds else "–"
        yield f"{stage:<12}{count['shards']:>7,}{count['examples']:>12,}{count['rejected']:>10,}{shown:>9}{rate:>12}"


def curvature_lines(manifest: Mapping[str, Any]) -> Iterator[str]:
    """The curvature, how test points were solved, and the weights, in some lines."""
    curvature, model, solver = manifest["curvature"], manifest["model"], manifest.get("solver")
    spectrum = ""
    if "smallest_eigenvalue" in curvature:
        ends = f"{curvature['smallest_eigenvalue']:.3g} to {curvature['largest_eigenvalue']:.3g}"
        spectrum = f", rank {curvature['rank']:,} of {curvature['size']:,}, eigenvalues {ends}"
    if "unrolled" in manifest:
        yield from training_lines(manifest)
    else:
        yield f"curvature   {curvature['curvature']}, damping {curvature['damping']:.4g}{spectrum}"
    if "chosen" in manifest:
        yield f"            chosen by --curvature auto: {manifest['chosen']['why'][0]}"
    if (factor := manifest.get("interval_factor")) is not None:
        yield f"how sure    90 % intervals are scores ± {factor:.2f} standard errors"
    if solver is not None:
        residuals = f"{solver['mean_residual']:.2g} in the mean, {solver['largest_residual']:.2g} at most"
        yield f"solver      relative residuals {residuals}; {solver['unsolved']:,} test points above the tolerance"
    yield f"weights     {model['watched']:,} of {model['total']:,} watched, in {model['dtype']}: {_first_names(model['weights'])}"
    if model["without_factors"]:
        yield f"            gradients built example by example: {_first_names(model['without_factors'])}"


def _of_tables(manifest: Mapping[str, Any]) -> Iterator[str]:
    for table, of in sorted(manifest["tables"].items()):
        yield f"{table:<19}{of['rows']:>12,} rows {of['files']:>5,} files {of['bytes'] / 1024:>11,.1f} KiB"


def _first_names(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4:,} more" if len(names) > 4 else "")
