"""Arrow's compute functions. pyarrow makes them while it is imported, so that a type checker knows of none."""

from __future__ import annotations

from typing import Any

import pyarrow.compute

pc: Any = pyarrow.compute
