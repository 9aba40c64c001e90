"""How much memory a worker process may take: what is said, or what this machine has for each of its cores."""

from __future__ import annotations

import os
import pathlib
import re

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 1 << 10, "MI": 1 << 20, "GI": 1 << 30, "TI": 1 << 40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?", re.IGNORECASE)
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def parse_bytes(text: str) -> int:
    """A number of bytes: 4GB, 512MiB, 1.5G, or a plain number.

    Raises:
      ValueError: it is none, or no number above 0.
    """
    found = _SIZE.fullmatch(text.strip())
    size = int(float(found[1]) * _UNITS[found[2].upper()]) if found and found[2].upper() in _UNITS else 0
    if size < 1:
        raise ValueError(f"{text!r} must be a number of bytes above 0, such as 4GB or 512MiB")
    return size


def worker_memory(said: str | None) -> int:
    """Bytes: `said`, or this machine's (its container's, where that has a limit) divided by its cores."""
    return machine_memory() // (os.cpu_count() or 1) if said is None else parse_bytes(said)


def machine_memory() -> int:
    """Bytes of this machine, or of its container where that has a limit."""
    known = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in map(pathlib.Path, _LIMITS):
        limit = path.read_text().strip() if path.exists() else "max"
        known += [int(limit)] if limit.isdigit() else []
    return min(known)


def size_text(size: float) -> str:
    """Bytes in words."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size:.0f} bytes"
