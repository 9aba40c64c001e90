"""The public list: every name of it is there, and importing the package alone costs nothing."""

from __future__ import annotations

import ast
import pathlib
import re
import subprocess
import sys

import beam_influence

SOURCE = pathlib.Path(beam_influence.__file__).read_text(encoding="utf-8")


def test_each_name_is_found_where_the_types_say() -> None:
    typed = {
        alias.name: node.module
        for node in ast.walk(ast.parse(SOURCE))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("beam_influence.")
        for alias in node.names
    }
    assert typed == {name: f"beam_influence.{module}" for name, module in beam_influence._MODULE_OF.items()}
    assert all(getattr(beam_influence, name) is not None for name in typed) and set(typed) <= set(dir(beam_influence))


def test_importing_it_loads_nothing() -> None:
    code = "import sys, beam_influence; sys.exit(bool({'tensorflow', 'apache_beam', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_a_strange_name_is_an_attribute_error() -> None:
    assert not hasattr(beam_influence, "no_such_name")


def test_each_name_has_a_place_in_the_documents() -> None:
    page = (pathlib.Path(__file__).parents[1] / "docs" / "api.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^::: beam_influence\.(\w+)$", page, re.MULTILINE)) == sorted(beam_influence._MODULE_OF)
