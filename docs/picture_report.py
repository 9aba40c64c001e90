"""Pictures of the main job's report, for the documents, by the browser of the tests:

    .venv/bin/beam-influence demo digits
    .venv/bin/python -m tests.report.visit_page
    .venv/bin/python -m docs.picture_report
"""

from __future__ import annotations

import pathlib
import shutil
import tempfile

from tests.report.visit_page import visit

REPORT = pathlib.Path("out/digits/report.html")
FOLDER = pathlib.Path(__file__).parent
PICTURES = {"report-light-points": "report", "report-dark-labels": "report-dark", "report-phone-points": "report-phone"}
"""What `visit.mjs` calls each picture, and what the documents call it."""


def main() -> None:
    """Writes the pictures beside this file."""
    with tempfile.TemporaryDirectory() as shots:
        seen = visit(REPORT, pathlib.Path(shots))
        assert not seen["errors"] and not seen["requests"], seen
        for shot, name in PICTURES.items():
            shutil.copy(pathlib.Path(shots) / f"{shot}.png", FOLDER / f"{name}.png")


if __name__ == "__main__":
    main()
