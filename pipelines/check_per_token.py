"""Whether influence can be told by position, and what it takes."""

from __future__ import annotations

import typing
from collections.abc import Sequence

import numpy as np

from beam_influence.pipelines.machine_memory import size_text

if typing.TYPE_CHECKING:  # when it is needed, it is imported: --help need not wait for TensorFlow
    from beam_influence.influence_ops.model.explained_model import ExplainedModel
    from beam_influence.influence_ops.reading.features import FeatureSpec
    from beam_influence.pipelines.config import InfluenceConfig
    from beam_influence.pipelines.query_plan import QueryPlan
    from beam_influence.transforms.elements import Shard


def check_per_token(config: InfluenceConfig) -> None:
    """Whether the other options leave scores that fall into positions, where these are asked for.

    Raises:
      ValueError: one does not.
    """
    if not config.per_token:
        return
    from beam_influence.influence_ops.scoring.outputs.table import refuse_for_tokens

    other = next((name for name in ("index", "influence_vectors_path") if getattr(config, name)), None)
    if other is not None:
        raise ValueError(f"--per_token needs the examples' gradients layer by layer, which --{other} has not kept; give --train instead")
    if config.query_rank is not None:
        raise ValueError(f"--per_token splits whole scores, and --query_rank {config.query_rank} leaves part of them out; leave one out")
    if len(config.checkpoint_paths) > 1:
        raise ValueError("--per_token is of one network, not of several --checkpoints; leave one of them out")
    try:
        refuse_for_tokens(config.output_options(), config.curvature_kind.name, config.solver_passes)
    except ValueError as error:
        raise ValueError(f"--{error}") from error


def plan_tokens(
    config: InfluenceConfig, model: ExplainedModel, plan: QueryPlan, splits: Sequence[tuple[FeatureSpec, Sequence[Shard]]]
) -> QueryPlan:
    """The plan, with as many test points in a block as keep their gradients by position in bounds.

    Raises:
      ValueError: the model follows no sequence, or the pairs of a test point take too much.
    """
    import dataclasses

    from beam_influence.influence_ops.scoring.token_scores import token_bytes
    from beam_influence.influence_ops.scoring.top_k import LIMIT
    from beam_influence.pipelines.check_model import first_batch

    batches = [batch for features, shards in splits if (batch := first_batch(features, shards)) is not None]
    try:
        placed = [model.placed_gradients(batch.select(np.arange(1))) for batch in batches]
    except ValueError as error:
        raise ValueError(f"--per_token needs positions; {error}") from error
    if not placed:
        return plan  # all examples are bad: the run will say so
    numbers = max(each.numbers for each in placed)
    bytes_each = token_bytes(placed[0], placed[-1], config.top_k)
    if bytes_each > LIMIT:
        raise ValueError(
            f"--per_token: the scores by position of one test point take {size_text(bytes_each)}, more than {size_text(LIMIT)}; use a "
            "smaller --top_k"
        )
    most = max(1, min(LIMIT // bytes_each, plan.gradient_bytes // (8 * numbers)))
    gradient_bytes = max(1, plan.gradient_bytes * model.size // (model.size + numbers))
    return dataclasses.replace(plan, block_size=min(plan.block_size, most), gradient_bytes=gradient_bytes)
