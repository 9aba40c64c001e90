"""In: gradients of training examples. Out: a preconditioner, which multiplies a gradient by the inverse curvature.

The table of curvatures: a new one is one file in this folder and one line here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from beam_influence.influence_ops import device as device  # sets TensorFlow's log level before it is imported
from beam_influence.influence_ops.curvature.arnoldi import Arnoldi
from beam_influence.influence_ops.curvature.base import COUNT as COUNT
from beam_influence.influence_ops.curvature.base import Curvature as Curvature
from beam_influence.influence_ops.curvature.base import FinishOptions as FinishOptions
from beam_influence.influence_ops.curvature.base import Preconditioner as Preconditioner
from beam_influence.influence_ops.curvature.base import Statistic as Statistic
from beam_influence.influence_ops.curvature.base import fit as fit
from beam_influence.influence_ops.curvature.conjugate_gradient import ConjugateGradient
from beam_influence.influence_ops.curvature.ekfac import Ekfac
from beam_influence.influence_ops.curvature.exact import Exact
from beam_influence.influence_ops.curvature.gauss_newton import GaussNewton
from beam_influence.influence_ops.curvature.gauss_newton_cg import GaussNewtonCg
from beam_influence.influence_ops.curvature.identity import Identity
from beam_influence.influence_ops.curvature.kfac import Kfac
from beam_influence.influence_ops.curvature.lissa import Lissa
from beam_influence.influence_ops.curvature.random_projection import RandomProjection
from beam_influence.influence_ops.curvature.sampled import FittedOnSample
from beam_influence.influence_ops.curvature.saved import load_preconditioner as load_preconditioner
from beam_influence.influence_ops.curvature.source import Source
from beam_influence.influence_ops.curvature.source_gauss_newton import SourceGaussNewton
from beam_influence.influence_ops.curvature.source_gauss_newton_cg import SourceGaussNewtonCg
from beam_influence.influence_ops.import_path import load_object
from beam_influence.influence_ops.settings import refuse_unknown_settings, setting_fields

CURVATURES: dict[str, type[Curvature]] = {
    kind.name: kind
    for kind in (
        Identity, Exact, GaussNewton, Kfac, Ekfac, GaussNewtonCg, ConjugateGradient, Lissa, Arnoldi, RandomProjection, Source,
        SourceGaussNewton, SourceGaussNewtonCg,
    )
}  # fmt: skip

ALIASES = {"cgd": ConjugateGradient.name}  # the reference calculator's name


def curvature_class(name: str) -> type[Curvature]:
    """The class called `name`, a key of `CURVATURES` or `ALIASES`, or the user's own named as `module:Class`.

    Raises:
      ValueError: there is none; the message lists the table.
    """
    if ":" in name:
        kind = load_object(name)
        if not (isinstance(kind, type) and issubclass(kind, Curvature)):
            raise ValueError(f"{name!r} is not a class derived from beam_influence.Curvature")
        return kind
    if (kind := CURVATURES.get(ALIASES.get(name, name))) is None:
        raise ValueError(f"no curvature is called {name!r}; use one of {', '.join(CURVATURES)}, or your own as module:Class")
    return kind


def curvature_by_name(name: str, n_samples: int | None = None, seed: int = 0, settings: Mapping[str, Any] | None = None) -> Curvature:
    """The curvature called `name`; see `curvature_class`.

    Args:
      n_samples: how many training examples, chosen by `seed` and their ids, it is made from. None: all of them,
        for a curvature that sums over the data; its own default for one that keeps a sample.
      settings: fields of its `Settings`, by name.

    Raises:
      ValueError: there is no such curvature, or setting of it, or a setting is wrong.
    """
    kind = curvature_class(name)
    known = setting_fields(kind.Settings)
    given = {"seed": seed, "n_samples": n_samples, **(settings or {})}
    refuse_unknown_settings(name, settings or (), known)
    if n_samples is not None and n_samples < 1:
        raise ValueError(f"n_samples={n_samples} must be at least 1")
    curvature = kind.make(kind.Settings(**{name: given[name] for name in known if given.get(name) is not None}))
    return curvature if n_samples is None or "n_samples" in known or kind.passes == 0 else FittedOnSample(curvature, n_samples, seed)


def solving_passes(kind: type[Curvature], passes: int | None) -> int | None:
    """How many passes over the data solve the test points, where `passes` are named or left open; None: it has none such."""
    field = setting_fields(kind.Settings).get("passes")
    if kind.systems is None or field is None:
        return None
    default: Any = field.default
    return default if passes is None else passes
