"""Every `beam-influence` command that the help and the documents print."""

from __future__ import annotations

import contextlib
import io
import pathlib
import re
import shlex

from beam_influence.pipelines.cli import parser
from beam_influence.pipelines.options.option import COMMANDS

ROOT = pathlib.Path(__file__).parents[1]
DOCUMENTS = ("README.md", "benchmarks/README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))


def of_text(text: str) -> list[list[str]]:
    """The words after `beam-influence` of each line that is a command, lines that go on taken together."""
    together = re.sub(r"\\\n\s*", "", text)
    commands = "|".join((*COMMANDS, "plan", "evaluate", "report", "demo"))
    found = re.findall(rf"^[ $]*(?:PYTHONPATH=\S+ )?(?:\S*/)?beam-influence ((?:{commands}) .*)$", together, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in found]


def of_document(name: str) -> list[list[str]]:
    """Those in the blocks of a document; such with '…' are no whole commands."""
    blocks = re.findall(r"^```\w*\n(.*?)^```$", (ROOT / name).read_text(), re.MULTILINE | re.DOTALL)
    return [words for block in blocks for words in of_text(block) if "…" not in words]


def of_help(command: str) -> list[list[str]]:
    """Those of the examples at the end of a command's help."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        parser().parse_args([command, "--help"])
    return of_text(text.getvalue().partition("Example:")[2])


def all_commands() -> dict[str, list[str]]:
    """Each command by the place where it is printed and its number there."""
    places = {name: of_document(name) for name in DOCUMENTS} | {f"{name} --help": of_help(name) for name in (*COMMANDS, "plan", "demo")}
    return {f"{place} {number}": words for place, found in places.items() for number, words in enumerate(found, start=1)}
