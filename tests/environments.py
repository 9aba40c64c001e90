"""Environments of their own, for what has versions that this project's environment has not."""

from __future__ import annotations

import os
import pathlib
import sys


def install_command(python: pathlib.Path) -> tuple[list[str], list[str]]:
    """What stands before and after the words of an installation into the environment of `python`: uv, or pip where `.ci/run` says so."""
    if os.environ.get("BEAM_INFLUENCE_INSTALLER") == "pip":
        return [str(python), "-m", "pip"], []
    return [sys.executable, "-m", "uv", "pip"], ["-p", str(python)]
