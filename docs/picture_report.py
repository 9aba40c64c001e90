"""Pictures of the demos' reports, for the documents, by the browser of the tests:

    for demo in digits text table; do .venv/bin/beam-influence demo $demo; done
    .venv/bin/python -m tests.report.visit_page
    .venv/bin/python -m docs.picture_report
"""

from __future__ import annotations

import pathlib
import shutil
import tempfile

from tests.report.visit_page import assert_reads_well, visit

FOLDER = pathlib.Path(__file__).parent
PICTURES = {
    "digits": {"report-light-points": "report", "report-dark-labels": "report-dark", "report-phone-points": "report-phone"},
    "text": {"report-light-labels": "demo-text"},
    "table": {"report-light-points": "demo-table"},
}
"""Of each demo, what `visit.mjs` calls a picture, and what the documents call it."""


def main() -> None:
    """Writes the pictures beside this file."""
    for demo, pictures in PICTURES.items():
        with tempfile.TemporaryDirectory() as shots:
            assert_reads_well(visit(pathlib.Path("out", demo, "report.html"), pathlib.Path(shots)))
            for shot, name in pictures.items():
                shutil.copy(pathlib.Path(shots) / f"{shot}.png", FOLDER / f"{name}.png")


if __name__ == "__main__":
    main()
