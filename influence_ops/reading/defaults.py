"""What the user says stands for values that an example lacks."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping

from beam_influence.influence_ops.reading.features import Default, Kind


class Defaults:
    """Values by the features' names or patterns, as the user wrote them.

    Args:
      texts: name or pattern (`pickup_*`) → value. A name comes before patterns, and a pattern before those behind it.
    """

    def __init__(self, texts: Mapping[str, str]):
        self._texts = dict(texts)

    def of(self, name: str, kind: Kind) -> Default | None:
        """The value for a feature of this kind; None where none is said.

        Raises:
          ValueError: it is no value of this kind.
        """
        key = self._key(name)
        if key is None:
            return None
        text = self._texts[key]
        if kind == "bytes":
            return text.encode()
        try:
            value = int(text) if kind == "int" else float(text)
        except ValueError:
            value = None
        if value is None or (isinstance(value, int) and not -(2**63) <= value < 2**63):
            what = "a whole number of 64 bits" if kind == "int" else "a number"
            raise ValueError(f"--default {key}={text}: the feature {name!r} holds {kind} values; give {what}")
        return value

    def check_used(self, read: Iterable[str], known: Iterable[str]) -> None:
        """Whether each name and pattern is of a feature that is read.

        Args:
          read: the features that have a role.
          known: the features that there are, for the message.

        Raises:
          ValueError: one is of none.
        """
        used = {self._key(name) for name in read}
        for key in self._texts:
            if key not in used:
                names = ", ".join(sorted(known)[:20])
                raise ValueError(f"--default {key}={self._texts[key]} is of no feature that is read; the features are {names}")

    def _key(self, name: str) -> str | None:
        if name in self._texts:
            return name
        return next((key for key in self._texts if fnmatch.fnmatchcase(name, key)), None)
