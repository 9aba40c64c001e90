"""Objects named by the user as `module:attribute`, so that every worker finds the same one."""

from __future__ import annotations

import hashlib
import importlib.util
from typing import Any


def load_object(path: str) -> Any:
    """The object that `module:attribute` names (`package.module:Class.method` too).

    Only what the user names is imported: nothing that a data or model file contains is.

    Raises:
      ValueError: the path is malformed, or the module or the attribute does not exist.
    """
    module_name, separator, attribute = path.partition(":")
    if not separator or not module_name or not attribute:
        raise ValueError(f"{path!r} is not an import path; write it as 'package.module:name'")
    try:
        value = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(
            f"can't import {module_name!r} of {path!r} ({error}); install it where the workers run, "
            "or put its folder on PYTHONPATH"
        ) from error
    for name in attribute.split("."):
        if not hasattr(value, name):
            raise ValueError(f"{path!r}: {value!r} has no attribute {name!r}")
        value = getattr(value, name)
    return value


def source_digest(module: str) -> str | None:
    """The SHA-256 of a module's file, whatever that imports; None where the module or its file is not found here."""
    try:
        spec = importlib.util.find_spec(module)
        loader: Any = spec.loader if spec else None
        return hashlib.sha256(loader.get_data(spec.origin)).hexdigest() if spec and spec.origin else None
    except (ImportError, AttributeError, OSError, ValueError):
        return None
