"""What in an option would be imported: code is taken from the command line alone, never from a file."""

from __future__ import annotations

MAY_BE_CODE = ("model", "loss", "preprocess", "curvature")


def names_code(option: str, value: str) -> bool:
    """Whether a value would be imported: a model's path may have a colon, too."""
    return ":" in value and (option != "model" or "/" not in value)
