"""MkDocs' hooks: documents from outside this folder are pages of the site, too, and a link to what is no page becomes its text."""

from __future__ import annotations

import pathlib
import posixpath
import re
from typing import Literal

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = pathlib.Path(__file__).parents[1]
OTHERS = {
    "benchmarks/README.md": "benchmarks.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "pipelines/demo/data/README.md": "demo_data.md",
}
"""A document in the tree, and its page."""
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)")


def on_startup(command: Literal["build", "gh-deploy", "serve"], dirty: bool) -> None:
    """Lays the package out alone, in out/api, for the page made of its docstrings: beside it are environments with thousands of files."""
    folder = ROOT / "out" / "api" / "beam_influence"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("__init__.py", "influence_ops", "transforms", "report", "pipelines"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(ROOT / name)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages of `OTHERS`."""
    for source, page in OTHERS.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Makes each link into the tree one to its page; one to a file that is none becomes its text, and one to nothing stays, and fails."""
    sources = {name: source for source, name in OTHERS.items()}
    folder = posixpath.dirname(sources.get(page.file.src_uri, f"docs/{page.file.src_uri}"))

    def link(found: re.Match[str]) -> str:
        text, (path, _, anchor) = found[1], found[2].partition("#")
        inside = posixpath.normpath(posixpath.join(folder, path))
        if not path or "://" in found[2] or not (ROOT / inside).exists():
            return found[0]
        if inside not in OTHERS and posixpath.dirname(inside) != "docs":
            return text
        return f"[{text}]({OTHERS.get(inside, posixpath.basename(inside))}{'#' if anchor else ''}{anchor})"

    return _LINK.sub(link, markdown)
