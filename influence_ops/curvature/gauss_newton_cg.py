"""`gauss_newton_cg`: the whole Gauss–Newton matrix, solved for the queries by conjugate gradients over all the data.

The operator that is fitted, EK-FAC, is the preconditioner: each pass over the data is one step for all queries at once, and
no P × P matrix is ever held. With no pass the answer is EK-FAC's. See `query_solver`.
"""

from __future__ import annotations

from typing import ClassVar

from beam_influence.influence_ops.curvature.conjugate_gradients import SOLVER_ERRORS
from beam_influence.influence_ops.curvature.ekfac import Ekfac
from beam_influence.influence_ops.settings import GaussNewtonCgSettings

_MOST_PASSES = 3


class GaussNewtonCg(Ekfac):
    """EK-FAC, for the system (H + λI) v = g with H the Gauss–Newton matrix over all data and the regulariser's part.

    The settings are the preconditioner's: they change how fast the solution is reached, not the solution.
    """

    name: ClassVar[str] = "gauss_newton_cg"
    Settings = GaussNewtonCgSettings
    systems = "gauss_newton"
    has_embedding = False  # EK-FAC's is not of the whole matrix
    error_draws = SOLVER_ERRORS + 1

    def refuse_errors(self, passes: int) -> None:
        if not passes:
            raise ValueError(f"--curvature {self.name} without passes is EK-FAC, whose error is not known; use --passes 1 or more")
        if passes > _MOST_PASSES:
            raise ValueError(
                f"after --passes {passes} what is left to solve is where EK-FAC is wrong, and its error is not known from one run: "
                f"uncertainty is of {_MOST_PASSES} passes at most; the table residuals tells how far solutions are"
            )

    def error_numbers(self, size: int) -> int:
        return SOLVER_ERRORS * size
