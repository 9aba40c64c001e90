"""Whether the options of candidates, which are scored and were not trained on, fit each other."""

from __future__ import annotations

import typing

if typing.TYPE_CHECKING:
    from beam_influence.pipelines.config import InfluenceConfig


def check_candidates(config: InfluenceConfig) -> None:
    """Whether candidates can be scored as the other options say.

    Raises:
      ValueError: what is asked for is only of training examples, or the training set is missing, or would not be read.
    """
    from beam_influence.influence_ops.scoring.outputs.table import refuse_for_candidates

    if config.only_curvature or config.only_index:
        raise ValueError("--candidates are scored against test points: of the commands run and query; leave them out")
    if config.influence_vectors_path is not None:
        raise ValueError("--influence_vectors_path has vectors of training examples; leave it or --candidates out")
    if config.search != "linear":
        raise ValueError(f"--search {config.search} is of an index's rows; with --candidates leave it out")
    try:
        refuse_for_candidates(config.output_tables, config.score_options(), config.second_order_groups)
    except ValueError as error:
        raise ValueError(f"--candidates: {error}") from error
    saved = next((name for name in ("index", "curvature_path") if getattr(config, name) is not None), None)
    is_read = bool(config.solver_passes) or (saved is None and config.curvature_kind.passes > 0)
    if is_read and config.train is None:
        what = "its passes solve the test points" if config.solver_passes else "the curvature is made from it; or give --curvature_path"
        raise ValueError(f"--train is needed beside --candidates: {what}")
    if not is_read and config.train is not None:
        why = f"--{saved} has the curvature" if saved else f"--curvature {config.curvature} needs no data"
        raise ValueError(f"--train would not be read: {why}, and --candidates are scored in its place; leave --train out")
