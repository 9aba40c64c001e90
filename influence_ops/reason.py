"""What an error says, in a line."""

from __future__ import annotations

import re

_STYLE = re.compile(r"\x1b\[\d*m")
_BESIDE = ("[[{{", "Exception encountered when calling", "Arguments received by", "Call arguments received by", "•")


def reason_of(error: Exception) -> str:
    """TensorFlow has its reason last, before the names of nodes; Keras in the middle, before what a layer was called with."""
    lines = [_STYLE.sub("", line).strip() for line in str(error).splitlines()]
    return next((line for line in reversed(lines) if line and not line.startswith(_BESIDE)), repr(error))
