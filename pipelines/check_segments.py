"""The options of a run that go with a curvature that unrolls training in segments of checkpoints."""

from __future__ import annotations

import typing

from beam_influence.influence_ops.settings import SegmentSettings

if typing.TYPE_CHECKING:
    from beam_influence.pipelines.config import InfluenceConfig

_VECTORS = ("influence_vectors", "group_vectors")


def check_segments(config: InfluenceConfig) -> None:
    """Refuses what does not go with `source` and its like.

    Raises:
      ValueError: the segments are not of the checkpoints, or influence vectors are asked for, of which there are none, or what is left to
        solve has no test points.
    """
    if not config.curvature_kind.weighs_checkpoints:
        return
    if config.only_curvature and config.curvature_kind.systems is not None:
        raise ValueError(f"--curvature {config.curvature} solves test points, and fit has none; fit --curvature source in its place")
    if config.n_samples is not None:
        raise ValueError(f"--n_samples {config.n_samples}: --curvature {config.curvature} takes all training examples; leave it out")
    settings = config.make_curvature().settings
    assert isinstance(settings, SegmentSettings)
    count, wanted = len(config.checkpoint_paths) or 1, sum(settings.counts)
    if count != wanted and config.curvature_path is None:
        raise ValueError(
            f"--checkpoints names {count} and --segments {settings.segments or ','.join(['1'] * wanted)} are of {wanted}; name those of "
            "each segment in the order of training, the trained model itself last"
        )
    if config.checkpoint_weights is not None:
        raise ValueError(f"--checkpoint_weights {config.checkpoint_weights}: --curvature {config.curvature} weighs them; leave it out")
    vectors = next((name for name in config.output_tables if name in _VECTORS), None)
    if vectors is not None or config.normalize != "none":
        what = f"--outputs {vectors}" if vectors else f"--normalize {config.normalize}"
        raise ValueError(f"{what} needs influence vectors, and --curvature {config.curvature} gives none; leave it out")
