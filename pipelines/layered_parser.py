"""A command whose `--help` shows what most users need, and whose `--help-all` shows the rest."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any


class LayeredParser(argparse.ArgumentParser):
    """A parser with two helps.

    Args:
      common: the names of the options that `--help` shows, in this order; empty: all, as `--help-all` does.
      needed: those that a line of usage shows, as they are written.
    """

    def __init__(self, *arguments: Any, common: Sequence[str] = (), needed: str = "", **named: Any):
        super().__init__(*arguments, **named, add_help=False, allow_abbrev=False)
        self.common = tuple(common)
        help_text = "Show the options that most need, and end." if common else "Show all options, and end."
        self.add_argument("-h", "--help", action=_HelpAction, help=help_text)
        all_text = "Show all options, by group, and end." if common else argparse.SUPPRESS  # the same as --help there
        self.add_argument("--help-all", action=_HelpAction, help=all_text)
        if needed or common:
            self.usage = f"{self.prog} {needed} [option ...]".replace("%", "%%")

    def format_layer(self, everything: bool) -> str:
        """The help: of all options, or of those in `common`."""
        if everything or not self.common:
            return super().format_help()
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, self._mutually_exclusive_groups)
        formatter.add_text(self.description)
        shown = {action.dest: action for action in self._actions if action.dest in self.common or not action.option_strings}
        order = sorted(shown, key=lambda name: self.common.index(name) if name in self.common else -1)
        formatter.start_section("what most need")
        formatter.add_arguments([shown[name] for name in order])
        formatter.end_section()
        count = sum(bool(action.option_strings) for action in self._actions)
        formatter.add_text(f"{count} options in all, by group: {self.prog} --help-all")
        formatter.add_text(self.epilog)
        return formatter.format_help()

    def format_help(self) -> str:
        """What `--help` shows."""
        return self.format_layer(everything=False)


class _HelpAction(argparse.Action):
    """Prints one of the helps and ends."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None):
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        assert isinstance(parser, LayeredParser)
        parser._print_message(parser.format_layer("--help-all" in self.option_strings), sys.stdout)
        parser.exit()


def formatter_class() -> type[argparse.HelpFormatter]:
    """Lines as they are written; in colour on a terminal, where rich-argparse is installed and NO_COLOR is not set."""
    if not (sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"):
        return argparse.RawDescriptionHelpFormatter
    try:
        from rich_argparse import RawDescriptionRichHelpFormatter  # of the extra cli; a tenth of a second
    except ImportError:
        return argparse.RawDescriptionHelpFormatter
    RawDescriptionRichHelpFormatter.text_markup = RawDescriptionRichHelpFormatter.help_markup = False
    RawDescriptionRichHelpFormatter.group_name_formatter = str  # as without colour
    return RawDescriptionRichHelpFormatter
