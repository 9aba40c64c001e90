"""Imported first by every test here: skips the file where the extra tfx is not installed."""

import pytest

pytest.importorskip("ml_metadata", reason="needs the extra tfx, which .ci/run installs in an environment of its own")
