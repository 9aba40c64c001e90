"""`gauss_newton_cg`: the whole Gauss–Newton matrix, solved for the queries by conjugate gradients over all the data.

The operator that is fitted, EK-FAC, is the preconditioner: each pass over the data is one step for all queries at once, and
no P × P matrix is ever held. With no pass the answer is EK-FAC's. See `query_solver`.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from beam_influence.influence_ops.curvature.ekfac import Ekfac


class GaussNewtonCg(Ekfac):
    """EK-FAC, for the system (H + λI) v = g with H the Gauss–Newton matrix over all data and the regulariser's part.

    Args:
      fisher, seed: of the preconditioner; see `fisher`. They change how fast the solution is reached, not the solution.
    """

    name: ClassVar[str] = "gauss_newton_cg"
    systems: ClassVar[Literal["hessian", "gauss_newton"] | None] = "gauss_newton"
