"""Functions of the user's own that a `.keras` file only names: Keras fails on them without a word about which they are."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from typing import Any


def own_functions_text(path: str) -> str:
    """What to do about the functions that a `.keras` file names, by layer and setting; empty where it names none.

    Args:
      path: a file that Keras could not load.
    """
    try:
        with zipfile.ZipFile(path) as file:
            config = json.loads(file.read("config.json"))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        return ""
    found = sorted(set(_functions(config, "")))
    if not found:
        return ""
    named = ", ".join(f"{function} ({setting} of {layer!r})" for function, setting, layer in found)
    objects = ", ".join(f"{name!r}: {name}" for name in dict.fromkeys(function for function, _, _ in found))
    return (
        f"The file only names functions of your own: {named}. Give --model module:function, a function without arguments that returns "
        f"keras.models.load_model(path, custom_objects={{{objects}}})"
    )


def _functions(config: Any, layer: str, setting: str = "") -> Iterator[tuple[str, str, str]]:
    """The name of each function, the setting that it is of, and the layer's name."""
    if isinstance(config, list):
        for one in config:
            yield from _functions(one, layer, setting)
    elif isinstance(config, dict):
        if config.get("class_name") == "function" and config.get("registered_name") == "function" and isinstance(config["config"], str):
            yield config["config"], setting, layer
            return
        layer = config["name"] if isinstance(config.get("name"), str) else layer
        for key, value in config.items():
            yield from _functions(value, layer, key)
