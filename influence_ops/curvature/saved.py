"""Operators that were saved, of any kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from beam_influence.influence_ops.curvature.base import Curvature, Preconditioner
from beam_influence.influence_ops.results.array_folder import FileStore, load_arrays


def _operators(of: type[Curvature] = Curvature) -> dict[str, type[Preconditioner]]:
    """The operators of all curvatures, the user's own too, by kind."""
    derived = [operators for kind in of.__subclasses__() for operators in _operators(kind).items()]
    return {operator.kind: operator for operator in of.operators} | dict(derived)


def load_preconditioner(folder: str, files: FileStore | None = None) -> Preconditioner:
    """The operator that `Preconditioner.save` wrote.

    Raises:
      ValueError: the folder is incomplete, damaged, or of an unknown kind.
    """
    arrays, meta = load_arrays(folder, files)
    try:
        return preconditioner_from(arrays, meta)
    except ValueError as error:
        raise ValueError(f"{folder!r} is not a saved curvature: {error}") from error


def preconditioner_from(arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> Preconditioner:
    """An operator from its arrays and description.

    Raises:
      ValueError: the description is of no known kind, or lacks something.
    """
    kind, known = meta.get("kind"), _operators()
    if not isinstance(kind, str) or kind not in known:
        raise ValueError(f"its kind is {kind!r}, not one of {', '.join(sorted(known))}")
    missing = {"curvature", "damping", "examples", "size", "fingerprint"} - set(meta)
    if missing:
        raise ValueError(f"its description lacks {', '.join(sorted(missing))}")
    for name, types, least in (("damping", (int, float), 0.0), ("examples", (int,), 0), ("size", (int,), 1)):
        value = meta[name]
        if not isinstance(value, types) or isinstance(value, bool) or not least <= value < float("inf"):
            raise ValueError(f"its {name} is {value!r}")
    for name in ("curvature", "fingerprint"):
        if not isinstance(meta[name], str):
            raise ValueError(f"its {name} is {meta[name]!r}, which is no text")
    return known[kind](arrays, {key: value for key, value in meta.items() if key not in ("kind", "arrays", "format_version")})
