"""A run whose memory can't be enough, by arithmetic alone, is refused before it starts."""

from __future__ import annotations

from beam_influence.influence_ops.curvature.dense import DenseCurvature, finds_spectrum
from beam_influence.influence_ops.model.explained_model import ExplainedModel
from beam_influence.influence_ops.scoring.outputs.table import combined_outputs, complete_options
from beam_influence.pipelines.config import InfluenceConfig
from beam_influence.pipelines.machine_memory import machine_memory, parse_bytes, size_text

_SMALL = 1 << 30  # what is below is never refused: TensorFlow itself takes as much
_GROUP_ARRAYS, _SECOND_ORDER_ARRAYS = 5, 9  # of one group: its sums as they are opened and in order, what solves them, and what is written
_MATRICES_OF_EIGH = 4  # LAPACK's syevd: H, the copy that becomes its eigenvectors, and a workspace of 2 P² numbers


def matrix_bytes(config: InfluenceConfig, size: int) -> int:
    """What the worker that decomposes a P × P matrix holds at least."""
    return 8 * size * size * (_MATRICES_OF_EIGH if finds_spectrum(config.finish_options(), size) else 1)


def refuse_memory(config: InfluenceConfig, model: ExplainedModel) -> None:
    """Refuses a curvature whose P × P matrix does not fit `--max_worker_memory`, or this machine where that is not given.

    Raises:
      ValueError: the message has both numbers and what to write instead.
    """
    curvature = config.make_curvature()
    if not isinstance(curvature, DenseCurvature):
        return
    curvature.create(model)  # refuses more weights than it can hold; its zeros take no memory until they are written
    needed = matrix_bytes(config, model.size)
    if there := _too_little(config, needed):
        raise ValueError(
            f"--curvature {config.curvature} of {model.size:,} weights takes {size_text(needed)} in the worker that inverts it, more than "
            f"{there}; watch fewer weights (--weights), use --curvature ekfac, or more memory"
        )


def refuse_groups(config: InfluenceConfig, model: ExplainedModel, points: int) -> None:
    """Refuses sums over groups of which one alone does not fit that memory.

    Args:
      points: test points.

    Raises:
      ValueError: the message has both numbers and what to write instead.
    """
    options = complete_options(config.output_options())
    if not any(output.by_group for output in combined_outputs(options.tables)):
        return
    numbers = points + model.size * options.score.gradients
    needed = 8 * numbers * (_SECOND_ORDER_ARRAYS if config.second_order_groups else _GROUP_ARRAYS)
    if there := _too_little(config, needed):
        of = f"{points:,} test points" + f" and {model.size:,} weights" * options.score.gradients
        raise ValueError(
            f"the sums over one group, of {of}, take {size_text(needed)} in the worker that adds them up, more than {there}; watch fewer "
            "weights (--weights), ask for --outputs group_influence alone, without --normalize or --second_order_groups, or use more memory"
        )


def _too_little(config: InfluenceConfig, needed: int) -> str:
    """The memory that there is, in words, where `needed` bytes are more; else nothing."""
    memory = machine_memory() if config.max_worker_memory is None else parse_bytes(config.max_worker_memory)
    if needed <= max(memory, _SMALL):
        return ""
    return f"{'this machine has' if config.max_worker_memory is None else '--max_worker_memory,'} {size_text(memory)}"
