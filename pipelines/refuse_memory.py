"""A run whose memory can't be enough, by arithmetic alone, is refused before it starts."""

from __future__ import annotations

from beam_influence.influence_ops.curvature.dense import DenseCurvature, finds_spectrum
from beam_influence.influence_ops.model.explained_model import ExplainedModel
from beam_influence.pipelines.config import InfluenceConfig
from beam_influence.pipelines.machine_memory import machine_memory, parse_bytes, size_text

_SMALL = 1 << 30  # what is below is never refused: TensorFlow itself takes as much
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
    memory = machine_memory() if config.max_worker_memory is None else parse_bytes(config.max_worker_memory)
    if needed > max(memory, _SMALL):
        of = "this machine has" if config.max_worker_memory is None else "--max_worker_memory,"
        raise ValueError(
            f"--curvature {config.curvature} of {model.size:,} weights takes {size_text(needed)} in the worker that inverts it, more than "
            f"{of} {size_text(memory)}; watch fewer weights (--weights), use --curvature ekfac, or more memory"
        )
