"""The table of outputs: another one is a file, and a line here."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import pyarrow as pa

from beam_influence.influence_ops.curvature import CURVATURES, Curvature, Preconditioner
from beam_influence.influence_ops.results import schemas
from beam_influence.influence_ops.scoring.outputs.base import CombinedOutput, Output, OutputOptions
from beam_influence.influence_ops.scoring.outputs.best import BestBySelfInfluence, BestByTestPoint
from beam_influence.influence_ops.scoring.outputs.groups import Groups
from beam_influence.influence_ops.scoring.outputs.rows import InfluenceVectors, Scores, SelfInfluence
from beam_influence.influence_ops.scoring.scores import ScoreOptions
from beam_influence.influence_ops.settings import IterativeSettings

OUTPUTS: dict[str, Output] = {
    table: output
    for output in (BestByTestPoint(), SelfInfluence(), BestBySelfInfluence(), Groups(), Scores(), InfluenceVectors())
    for table in output.tables
}
"""What makes each table that can be asked for, by the table's name."""

TABLES: dict[str, pa.Schema] = {
    **{table: output.tables[table] for table, output in OUTPUTS.items()},
    "residuals": schemas.RESIDUALS,
    "rejected": schemas.REJECTED,
}
"""The schema of each table: `rejected` is always written, `residuals` where passes over the data solve the test points."""


def outputs_of(tables: Iterable[str]) -> list[Output]:
    """What makes the tables: each output once, whichever of its tables are asked for."""
    return list(dict.fromkeys(OUTPUTS[table] for table in tables))


def combined_outputs(tables: Iterable[str]) -> list[CombinedOutput]:
    """Those of `outputs_of` whose parts are combined over the workers."""
    return [output for output in outputs_of(tables) if isinstance(output, CombinedOutput)]


def refuse_for_candidates(tables: Iterable[str], options: ScoreOptions, second_order_groups: bool) -> None:
    """Refuses what is asked of candidates and is only of training examples.

    Raises:
      ValueError: a table that is not of test points, or a removal's own Newton step or second order.
    """
    others = [table for table in tables if table not in tables_of_test_points()]
    if others:
        raise ValueError(f"candidates are scored against test points: outputs {', '.join(tables_of_test_points())}, not {others[0]}")
    if options.removal != "first_order" or second_order_groups:
        what = "second_order_groups" if second_order_groups else f"removal {options.removal}"
        raise ValueError(f"candidates are added, to first order; {what} is of the removal of training examples: leave it out")


def refuse_for_tokens(options: OutputOptions, curvature: str, passes: int) -> None:
    """Refuses what has no scores by position.

    Args:
      curvature: its name; one that solves by steps has another error for a training example than for a test point.
      passes: over the training data that solve test points.

    Raises:
      ValueError: no table of the best is asked for, or scores are of another kind.
    """
    if "top_k" not in options.tables:
        raise ValueError(f"per_token is of the table top_k; ask for it in outputs, beside {', '.join(options.tables) or 'nothing'}")
    if options.score.removal != "first_order":
        raise ValueError(f"per_token splits scores of first order; removal {options.score.removal} has no positions: leave one out")
    kind = CURVATURES.get(curvature)
    if passes or (kind is not None and issubclass(kind.Settings, IterativeSettings)):
        raise ValueError(
            f"per_token needs a curvature that solves test points and training examples alike, in one step, not {curvature}"
            f"{' with passes' * bool(passes)}; use ekfac"
        )


def with_errors(options: OutputOptions, curvature: Curvature | Preconditioner, passes: int) -> OutputOptions:
    """The options with the standard error of each score.

    Args:
      passes: over the training data that solve test points.

    Raises:
      ValueError: a curvature, a table or a kind of score whose error is not known.
    """
    able = tables_of_scores()
    other = next((table for table in options.tables if table not in able), None)
    if other is not None or not options.tables:
        what = other or "a curvature or an index alone"
        raise ValueError(f"uncertainty is of single scores, in the tables {' and '.join(able)}, not of {what}; leave one out")
    kinds = {"normalize": options.score.normalize, "removal": options.score.removal, "per_token": options.per_token}
    what = next((name for name, kind in kinds.items() if kind not in ("none", "first_order", False)), None)
    if what is not None:
        raise ValueError(f"uncertainty is of scores of first order as they are, and the error of {what} is not known; leave one out")
    if isinstance(curvature, Preconditioner):
        raise ValueError("uncertainty needs a curvature that this run fits, not one that was fitted before; give its name")
    curvature.refuse_errors(passes)
    return complete_options(dataclasses.replace(options, error_draws=curvature.error_draws))


def tables_of_test_points() -> tuple[str, ...]:
    """The tables that need test points."""
    return tuple(table for table, output in OUTPUTS.items() if table in output.of_test_points)


def tables_of_scores() -> tuple[str, ...]:
    """Those of them that need nothing but the influence of each training example: saved vectors, or an index, are enough."""
    return tuple(table for table in tables_of_test_points() if not OUTPUTS[table].needs_groups)


def later_round(options: OutputOptions) -> OutputOptions:
    """What is left to do for more test points, once a round over the training set has made what is not of test points."""
    of_tests = tuple(table for table in options.tables if table in tables_of_test_points())
    score = dataclasses.replace(options.score, self_influence=False, vectors=False, gradients=False)
    return dataclasses.replace(options, tables=of_tests, score=score)


def complete_options(options: OutputOptions) -> OutputOptions:
    """The options with just those quantities switched on that the tables need."""
    needed = {quantity: False for quantity in ("self_influence", "vectors", "gradients")}
    needed["errors"] = options.error_draws > 0
    needed.update({quantity: True for output in outputs_of(options.tables) for quantity in output.needs(options)})
    return dataclasses.replace(options, score=dataclasses.replace(options.score, **needed))
