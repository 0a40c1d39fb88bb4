"""Numbers and settings as the reports write them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any


def wilson(right: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share.

    References: Wilson (1927), J. Am. Stat. Assoc. 22(158).
    """
    z, share = 1.959964, right / n
    centre = share + z**2 / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return (centre - half) / (1 + z**2 / n), (centre + half) / (1 + z**2 / n)


def percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def number(value: float | None) -> str:
    """Four significant digits; whole numbers and large ones in full."""
    if value is None or math.isnan(value):
        return "not measured"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.1f}" if 1000 <= abs(value) < 1e9 else f"{value:.4g}"


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60:,} h {minutes % 60:02d} min"


def plain(value: object) -> str:
    """A setting as a user would write it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """A nested table as lines: dotted key, value."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            yield f"{prefix}{key}", " ".join(map(str, value))
        else:
            yield f"{prefix}{key}", "none" if value is None else str(value)
