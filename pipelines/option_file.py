"""`--config FILE` and `--set NAME=VALUE`: the options of a run from a file, such as the manifest of an earlier one."""

from __future__ import annotations

import dataclasses
import difflib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from beam_influence.influence_ops.redact import HIDDEN
from beam_influence.pipelines.config import InfluenceConfig
from beam_influence.pipelines.named_code import MAY_BE_CODE, names_code
from beam_influence.pipelines.options.option import option_type
from beam_influence.pipelines.options.results import ONLY_CURVATURE, ONLY_INDEX
from beam_influence.pipelines.runners.choose import OPTIONS

Value: TypeAlias = str | bool | None
ONLY_OUTPUT = {"fit": ONLY_CURVATURE, "index": ONLY_INDEX}
"""The value of `outputs` that a command stands for."""
_FIELDS = {field.name: field for field in dataclasses.fields(InfluenceConfig)}
_OF_LINE = ("runner", "plan_workers")  # options of these commands besides those of `InfluenceConfig` and of engines
_NOT_REPEATED = ("overwrite",)  # it was about what was there before that run, not about its results


def file_options(command: str, path: str | None, changes: Sequence[str], words: Sequence[str]) -> dict[str, Value]:
    """The options in a file, some of them changed: text as on the command line, True or False, or None.

    Args:
      command: the one that takes them.
      path: of the file; None: there are changes alone.
      changes: `name=value`, which win over the file.
      words: the command line, which wins over both, and whose code alone is imported.

    Raises:
      ValueError: the file can't be read, or an option in it is unknown, another command's, or names code that the command line doesn't.
    """
    found: dict[str, Value] = {}
    said = {word.removeprefix("--").removeprefix("no-").partition("=")[0] for word in words if word.startswith("--")}
    changed = _changes(changes)
    if path is not None:
        content, is_manifest = _content(path)
        for name, value in content.items():
            of_file = _of_command(command, str(name), value, f"--config {path!r}", is_manifest)
            if of_file is not None:
                found[str(name)] = of_file[0]
        _refuse_hidden(found, said | changed.keys(), path)
    for name, text in changed.items():
        if name in said:
            raise ValueError(f"--set {name}={text} and --{name} say the same; leave one of them out")
        of_change = _of_command(command, name, text, "--set", False)
        if of_change is not None:
            found[name] = of_change[0]
    return found


def _of_command(command: str, name: str, value: object, where: str, is_manifest: bool) -> tuple[Value] | None:
    """The value of one option; None where it has nothing to say to this command."""
    field = _FIELDS.get(name)
    if field is None and name not in OPTIONS and name not in _OF_LINE:
        near = difflib.get_close_matches(name, [*_FIELDS, *OPTIONS, *_OF_LINE], 1)
        raise ValueError(f"{where}: {name!r} is not an option; " + (f"did you mean {near[0]}?" if near else "leave it out"))
    if is_manifest and name in _NOT_REPEATED:
        return None
    like = "run" if command == "plan" else command
    if field is None or like in field.metadata["commands"]:
        return (_as_given(name, value, where),)
    if value == field.default or (name == "outputs" and value == ONLY_OUTPUT.get(command)):
        return None
    of = " and ".join(field.metadata["commands"])
    raise ValueError(f"{where}: {name} {value!r} is not an option of {command}, but of {of}; leave it out")


def _as_given(name: str, value: object, where: str) -> Value:
    """A value as the command line's parser takes it: it checks the types of numbers itself."""
    kind = option_type(_FIELDS[name], InfluenceConfig) if name in _FIELDS else str
    if kind is bool:
        known = {"true": True, "false": False}.get(str(value).lower())
        if known is None:
            raise ValueError(f"{where}: {name} {value!r} must be true or false")
        return known
    if value is None:
        return None
    if isinstance(value, list) and all(isinstance(one, (str, int, float)) for one in value):
        return ",".join(map(str, value))
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (str, int, float)):
        return str(value)
    raise ValueError(f"{where}: {name} {value!r} must be one value, or a list of some")


def _changes(changes: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for change in changes:
        name, separator, value = change.partition("=")
        name = name.strip().removeprefix("--")
        if not separator or not name:
            raise ValueError(f"--set {change!r} must be NAME=VALUE, such as --set top_k=20")
        if name in found:
            raise ValueError(f"--set {change!r}: {name} is set twice; leave one of them out")
        found[name] = value
    return found


def _refuse_hidden(found: Mapping[str, Value], said: set[str], path: str) -> None:
    for name, value in found.items():
        if name in said or not isinstance(value, str):
            continue
        if name in MAY_BE_CODE and names_code(name, value):
            raise ValueError(
                f"--config {path!r} has {name} {value}: code is taken from the command line alone, never from a file; if you trust it, "
                f"give --{name} {value}"
            )
        if HIDDEN in value:
            raise ValueError(f"--config {path!r} has {name} {value!r}: a manifest has no passwords and keys; give --{name} again")


def _content(path: str) -> tuple[Mapping[object, object], bool]:
    """The options in a file, and whether it is a manifest."""
    text = _text(path)
    try:
        if path.lower().endswith((".yaml", ".yml")):
            import yaml

            content = yaml.safe_load(text)
        else:
            content = json.loads(text)
    except Exception as error:  # each has its own kind
        raise ValueError(f"--config {path!r} is no YAML (.yaml, .yml) and no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"--config {path!r} must hold options by name, such as 'top_k: 20'")
    if "manifest_version" not in content:
        return content, False
    manifest = content
    if not isinstance(manifest["config"] if "config" in manifest else None, dict):
        raise ValueError(f"--config {path!r} is a manifest without options: it is of another program")
    if "ensemble" in manifest:
        raise ValueError(f"--config {path!r} is of an ensemble, which no command's options make again; repeat its members")
    return manifest["config"], True


def _text(path: str) -> str:
    try:
        if "://" not in path:
            return pathlib.Path(path).read_text(encoding="utf-8")
        from beam_influence.transforms.files import BeamFiles  # Beam

        return BeamFiles().read(path).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--config {path!r} can't be read: {error}") from error
