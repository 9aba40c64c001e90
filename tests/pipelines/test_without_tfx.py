"""Without the extra tfx, everything but its component works, and the component says what to install."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent

CODE = """
import sys
for name in ("tfx", "ml_metadata"):
    sys.modules[name] = None  # as if it were not installed
import benchmarks.scale, beam_influence.pipelines.demo.digits, beam_influence.influence_ops, beam_influence.transforms
import beam_influence.pipelines.clean, beam_influence.pipelines.cli, beam_influence.pipelines.launch
assert not [name for name in sys.modules if name.split(".")[0] in ("tfx", "ml_metadata") and sys.modules[name]]
try:
    import beam_influence.pipelines.tfx
except ImportError as error:
    print(error)
"""


@pytest.mark.timeout(120)
def test_says_what_to_install() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    assert "beam_influence.pipelines.tfx needs the extra 'tfx'" in done.stdout
    assert "pip install -e '.[tfx]'" in done.stdout
    assert "pip install --no-deps -r requirements-tfx.txt -e ." in done.stdout


def test_the_pinned_environment_has_all_that_is_needed() -> None:
    """It is installed without looking at dependencies, so a new one must be added to it."""
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    wanted = {name for name in re.findall(r'^ +"(?:\w+": \[")?([a-zA-Z0-9-]+)(?:\[\w+\])?>=', setup, re.MULTILINE)}
    assert {"apache-beam", "ml-pipelines-sdk", "pytest", "tensorflow"} <= wanted
    pinned = set(re.findall(r"^([a-z0-9-]+)==", (ROOT / "requirements-tfx.txt").read_text(encoding="utf-8"), re.MULTILINE))
    assert not wanted - pinned, "make requirements-tfx.txt anew, by the command in its first lines"
