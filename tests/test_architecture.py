"""The picture in docs/architecture.md is of the main job's graph as it is built."""

from __future__ import annotations

import pathlib
import re

from docs.draw_graph import PICTURE, build_main_job, draw, graph_of


def test_the_picture_is_of_the_graph_as_built(tmp_path: pathlib.Path) -> None:
    pipeline = build_main_job(tmp_path)
    labels = {label.split("/")[0] for label in pipeline.applied_labels}
    picture = PICTURE.read_text(encoding="utf-8")
    shown = set(re.findall(r'font-weight="bold" font-size="13">([^<]+)<', picture))
    assert shown == {label for label in labels if not label.startswith(("Flatten", "No"))}
    assert draw(graph_of(pipeline)) == picture, "draw it again: python -m docs.draw_graph"
