"""The table of curvatures. A new one is one file in this folder and one line here."""

from __future__ import annotations

from influence_ops.curvature.base import COUNT as COUNT
from influence_ops.curvature.base import Curvature as Curvature
from influence_ops.curvature.base import FinishOptions as FinishOptions
from influence_ops.curvature.base import Preconditioner as Preconditioner
from influence_ops.curvature.base import Statistic as Statistic
from influence_ops.curvature.base import load_preconditioner as load_preconditioner
from influence_ops.curvature.exact import Exact
from influence_ops.curvature.gauss_newton import GaussNewton
from influence_ops.curvature.identity import Identity
from influence_ops.import_path import load_object

CURVATURES: dict[str, type[Curvature]] = {kind.name: kind for kind in (Identity, Exact, GaussNewton)}


def curvature_by_name(name: str) -> Curvature:
    """The curvature called `name`, or the user's own named as `module:Class`.

    Raises:
      ValueError: there is none; the message lists the table.
    """
    if ":" in name:
        kind = load_object(name)
        if not (isinstance(kind, type) and issubclass(kind, Curvature)):
            raise ValueError(f"{name!r} is not a class derived from influence_ops.curvature.Curvature")
        return kind()
    if name not in CURVATURES:
        raise ValueError(f"no curvature is called {name!r}; use one of {', '.join(CURVATURES)}, or your own as module:Class")
    return CURVATURES[name]()
