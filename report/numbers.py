"""Numbers as a page writes them."""

from __future__ import annotations

import math

MINUS = "−"


def plain(value: float | int | None) -> str:
    """Three significant digits or more: 0.879, 12.3, 1,697, 5.18e−4."""
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}".replace("-", MINUS)
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e6:
        decimals = max(2 - math.floor(math.log10(abs(value))), 0)
        return f"{value:,.{decimals}f}".replace("-", MINUS)
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    return f"{mantissa}e{int(exponent)}".replace("-", MINUS)


def change(value: float | None) -> str:
    """As `plain`, with its sign."""
    return "–" if value is None else ("+" if value > 0 else "") + plain(value)


def percent(part: float) -> str:
    """Two digits of a part as a percentage; what is not all is not 100 %."""
    if part in (0, 1):
        return f"{100 * part:.0f} %"
    return f"{100 * part:.2g} %" if part < 0.1 else f"{min(100 * part, 99.9):.1f} %"


def amount(count: int, what: str) -> str:
    """Such as "1 shard" and "4 shards"."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"
