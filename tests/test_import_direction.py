"""The import direction is pipelines → report → transforms → influence_ops, and the mathematics never imports Beam."""

from __future__ import annotations

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent

FORBIDDEN = {
    "influence_ops": {"apache_beam", "transforms", "report", "pipelines", "beam_influence"},
    "transforms": {"report", "pipelines", "beam_influence"},
    "report": {"apache_beam", "pipelines", "beam_influence"},
    "pipelines": {"beam_influence"},  # the public list is made of these; from within it is a circle
}
FILES = [(package, path) for package in FORBIDDEN for path in sorted((ROOT / package).rglob("*.py"))]


def room(module: str) -> str:
    """The room of one of our own modules; of another, its top-level package."""
    own, _, rest = module.partition(".")
    return (rest if own == "beam_influence" and rest else module).split(".")[0]


def imported(source: str, package: str) -> set[str]:
    """The rooms and other packages that a module imports anywhere, inside functions and by name too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {room(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(package if node.level else room(node.module or ""))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "import_module", "__import__"):
            if node.args and isinstance(node.args[0], ast.Constant):
                found.add(room(str(node.args[0].value)))
    return found


def test_every_package_has_files():
    assert {package for package, _ in FILES} == set(FORBIDDEN)


@pytest.mark.parametrize(("package", "path"), FILES, ids=[str(path.relative_to(ROOT)) for _, path in FILES])
def test_imports_follow_the_direction(package, path):
    found = imported(path.read_text(encoding="utf-8"), package)
    assert not found & FORBIDDEN[package]


def test_each_room_uses_the_one_below():
    """So that the walk above is known to see imports at all."""
    seen = {package: set[str]() for package in FORBIDDEN}
    for package, path in FILES:
        seen[package] |= imported(path.read_text(encoding="utf-8"), package)
    assert "influence_ops" in seen["transforms"]
    assert "transforms" in seen["report"]
    assert "report" in seen["pipelines"]
    assert "transforms" in seen["pipelines"]
    assert imported("def f():\n    import apache_beam.io\n", "x") == {"apache_beam"}
    assert imported("import importlib\nimportlib.import_module('beam_influence.pipelines.cli')\n", "x") == {"importlib", "pipelines"}
