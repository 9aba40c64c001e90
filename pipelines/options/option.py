"""What an option says of itself, as the metadata of a dataclass field."""

from __future__ import annotations

import dataclasses
import functools
import os
import types
import typing
from typing import Any

REQUIRED: Any = dataclasses.MISSING
COMMANDS = ("run", "fit", "index", "query")
FITTING = ("run", "fit", "index")


def option(
    default: Any,
    help: str,
    group: str,
    choices: tuple[str, ...] | None = None,
    commands: tuple[str, ...] = COMMANDS,
    names: bool = False,
    least: int | None = None,
    fits: bool = False,
    changes_result: bool = True,
    is_setting: bool = False,
    of: str | None = None,
) -> Any:
    """A field that is an option.

    Args:
      default: its value where none is given; `REQUIRED`: it must be given.
      help: what it means.
      group: the heading that it stands under.
      choices: the values that are allowed; None: all of its type.
      commands: the commands that take it.
      names: whether it names files, so that it can't be empty.
      least: the smallest number that is allowed.
      fits: whether it decides how a curvature is fitted, and so nothing where a saved one is used.
      changes_result: whether another value gives another result.
      is_setting: whether a curvature whose `Settings` have a field of this name takes its value from here.
      of: where it is of some curvatures alone: what these are called together, or ''.
    """
    metadata = {
        "help": help,
        "group": group,
        "choices": choices,
        "commands": commands,
        "names": names,
        "least": least,
        "fits": fits,
        "changes_result": changes_result,
        "is_setting": is_setting,
        "of": of,
    }
    return dataclasses.field(default=default, metadata=metadata)


def check_values(options: Any) -> None:
    """Whether every option has one of its choices, no name is empty and no number too small.

    Raises:
      ValueError: the message names the option, its value and what to write instead.
    """
    for field in dataclasses.fields(options):
        choices, least, value = field.metadata["choices"], field.metadata["least"], getattr(options, field.name)
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
            object.__setattr__(options, field.name, value)  # frozen: a path is kept as its text
        if value is None:
            continue
        wanted = option_type(field, type(options))
        if wanted in (str, bool) and not isinstance(value, wanted):
            raise ValueError(f"--{field.name} {value!r} must be {'text' if wanted is str else 'True or False'}, not {type(value).__name__}")
        if wanted in (int, float) and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise ValueError(f"--{field.name} {value!r} must be a number, not {type(value).__name__}")
        if field.metadata["names"] and not str(value).strip(" ,"):
            raise ValueError(f"--{field.name} {value!r} must not be empty")
        if choices and value not in choices:
            raise ValueError(f"--{field.name} {value!r} must be one of {', '.join(choices)}")
        if least is not None and not value >= least:  # nan, too
            raise ValueError(f"--{field.name} {value} must be at least {least}")


def option_type(field: dataclasses.Field, config: type) -> type:
    """The plain type of the value of one of `config`'s fields: str, int, float or bool."""
    hint = _hints(config)[field.name]
    if isinstance(hint, types.UnionType):
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    return type(typing.get_args(hint)[0]) if typing.get_origin(hint) is typing.Literal else hint


@functools.cache
def _hints(config: type) -> dict[str, Any]:
    return typing.get_type_hints(config)
