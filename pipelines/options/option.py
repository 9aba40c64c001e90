"""What an option says of itself, as the metadata of a dataclass field."""

from __future__ import annotations

import dataclasses
import functools
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
        "least": least,
        "fits": fits,
        "changes_result": changes_result,
        "is_setting": is_setting,
        "of": of,
    }
    return dataclasses.field(default=default, metadata=metadata)


def check_values(options: Any) -> None:
    """Whether every option has one of its choices, and no number is too small.

    Raises:
      ValueError: the message names the option, its value and what to write instead.
    """
    for field in dataclasses.fields(options):
        choices, value = field.metadata["choices"], getattr(options, field.name)
        if choices and value is not None and value not in choices:
            raise ValueError(f"--{field.name} {value!r} must be one of {', '.join(choices)}")
    for field in dataclasses.fields(options):
        least, value = field.metadata["least"], getattr(options, field.name)
        if least is not None and (value or 0) < least:
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
