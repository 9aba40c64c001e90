"""Without the extra tfx, everything but its component works, and the component says what to install."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import sys
for name in {missing}:
    sys.modules[name] = None  # as if it were not installed
import benchmarks.scale, examples.digits, influence_ops, pipelines.clean, pipelines.cli, pipelines.launch, transforms
assert not [name for name in sys.modules if name.split(".")[0] in ("tfx", "ml_metadata") and sys.modules[name]]
try:
    import pipelines.tfx
except ImportError as error:
    print(error)
"""


@pytest.mark.timeout(60)
@pytest.mark.parametrize("missing", [["tfx"], ["ml_metadata"]], ids=str)
def test_says_what_to_install(missing: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", CODE.format(missing=missing)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "pipelines.tfx needs the extra 'tfx'" in done.stdout
    assert "pip install -e '.[tfx]'" in done.stdout
    assert "pip install --no-deps -r requirements-tfx.txt -e ." in done.stdout
