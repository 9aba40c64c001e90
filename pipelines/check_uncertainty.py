"""Whether a run knows how sure its scores are."""

from __future__ import annotations

import typing

if typing.TYPE_CHECKING:  # when it is needed, it is imported: --help need not wait for TensorFlow
    from beam_influence.pipelines.config import InfluenceConfig


def check_uncertainty(config: InfluenceConfig) -> None:
    """Whether the other options leave scores whose error is known, where it is asked for.

    Raises:
      ValueError: one does not.
    """
    if not config.uncertainty:
        return
    from beam_influence.influence_ops.scoring.outputs.table import with_errors

    other = next((name for name in ("index", "influence_vectors_path", "curvature_path") if getattr(config, name)), None)
    if other is not None:
        raise ValueError(f"--uncertainty is of a curvature that this run fits, and --{other} takes its place; leave one of them out")
    if config.n_samples is not None:
        raise ValueError(
            f"--n_samples {config.n_samples}: what a sample of the training set leaves out is not in the error that --uncertainty tells; "
            "leave one out, or make runs with several --seed, and beam-influence ensemble of them"
        )
    try:
        with_errors(config.output_options(), config.make_curvature(), config.solver_passes)
        if config.finish_options().damping == 0:
            raise ValueError("uncertainty needs an inverse without a pseudo-inverse: a --damping above 0")
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith("--") else f"--uncertainty: {error}") from error


def uncertainty_facts(config: InfluenceConfig) -> dict[str, float]:
    """What the manifest tells of standard errors; nothing where they are not asked for."""
    if not config.uncertainty:
        return {}
    from beam_influence.influence_ops.ensemble.intervals import CONFIDENCE, interval_factor

    return {"interval_factor": interval_factor(config.curvature_kind.error_draws), "confidence": CONFIDENCE}
