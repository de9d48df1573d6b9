"""Numbers as people read them."""

from __future__ import annotations

import math

NONE = "-"
_STEPS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))


def duration(seconds: float | None) -> str:
    """``1.23 ms``; a dash for None."""
    if seconds is None:
        return NONE
    scale, unit = next((step for step in _STEPS if seconds >= step[0]), _STEPS[-1])
    return f"{seconds / scale:.3g} {unit}"


def size(count: float | None) -> str:
    """``1.2 MB`` in powers of ten; a dash for None."""
    if count is None:
        return NONE
    scale, unit = (1e6, "MB") if count >= 1e6 else (1e3, "kB")
    return f"{count / scale:.3g} {unit}"


def share(value: float | None) -> str:
    """``92.43 %``; a dash for None."""
    return NONE if value is None else f"{100 * value:.2f} %"


def count(value: float) -> str:
    """``1.2 M``, for multiply-adds; a dash for 0."""
    if value == 0:
        return NONE
    scale, unit = next(
        (step for step in ((1e9, " G"), (1e6, " M"), (1e3, " k")) if value >= step[0]), (1, "")
    )
    return f"{value / scale:.3g}{unit}"


def decibels(value: float | None) -> str:
    """``23.4 dB``; a dash for None, and ``∞`` where nothing differs."""
    if value is None:
        return NONE
    if math.isinf(value):
        return f"{'-' if value < 0 else ''}∞ dB"
    return f"{value:.1f} dB"


def cost(name: str, value: float) -> str:
    """A cost of an allocation: bytes, seconds, or a number."""
    return {"size": size, "latency": duration}.get(name, count)(value)
