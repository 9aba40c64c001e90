"""Whether a run has what its precision is of."""

from __future__ import annotations

import typing

if typing.TYPE_CHECKING:  # when it is needed, it is imported: --help need not wait for TensorFlow
    from beam_influence.pipelines.config import InfluenceConfig


def check_precision(config: InfluenceConfig) -> None:
    """Whether solved test points are multiplied with training gradients, where `--precision bfloat16` says how they are held.

    Raises:
      ValueError: there are none, or they are used in another way.
    """
    if config.precision != "bfloat16":
        return
    from beam_influence.influence_ops.scoring.outputs.table import tables_of_test_points

    said = "--precision bfloat16 is of solved test points that training gradients are multiplied with"
    if "solved" not in config.query_arrays or not set(config.output_tables) & set(tables_of_test_points()):
        raise ValueError(f"{said}, and there are none; use --precision native")
    if config.removal != "first_order":
        raise ValueError(f"{said}, and --removal {config.removal} takes them in float64; leave one of them out")
    if config.second_order_groups:
        raise ValueError(f"{said}, and --second_order_groups needs none; leave one of them out")
    if config.per_token:
        raise ValueError(f"{said}, and --per_token splits scores in float64: its parts would not add up to them; leave one of them out")
