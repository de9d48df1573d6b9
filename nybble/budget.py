"""What a recipe may ask where every layer shall get a width of its own."""

from __future__ import annotations

import re
from typing import Any

from nybble.errors import NybbleError

MIXED = "mixed"
MEASURES = ("hessian", "perturbation", "pairwise", "hessian_proxy", "influence")
SOLVERS = ("ilp", "iqp", "closed_form")
UNITS = {
    "size": {"B": 1.0, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9},
    "bops": {"": 1.0, "M": 1e6, "G": 1e9, "T": 1e12},
    "latency": {"us": 1e-6, "ms": 1e-3, "s": 1.0},
}
"""The costs that can be limited, each with the units of an absolute limit."""

_JOINT = re.compile(r"w([1-8]|t)a([1-8])")
_NUMBER = re.compile(r"([0-9]*\.?[0-9]+(?:e[-+]?[0-9]+)?)([A-Za-z]*)")
EXAMPLE = "size=0.5 (half way from all low to all high), size=4MB, latency=8ms, bops=20G"


def parse_budget(text: str) -> dict[str, float | str]:
    """Reads ``size=0.5,latency=8ms``.

    Raises:
        NybbleError: an unknown cost or unit, or no number.
    """
    found: dict[str, float | str] = {}
    for part in text.split(","):
        name, equals, limit = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise NybbleError(f"Budget '{part}' is no limit. Write for example: {EXAMPLE}.")
        if name not in UNITS:
            raise NybbleError(f"Budget: '{name}' is not one of: {', '.join(UNITS)}.")
        found[name] = float(limit) if re.fullmatch(r"[0-9]*\.?[0-9]+", limit) else limit
        limit_of(name, found[name], (0.0, 1.0))
    return found


def is_budget(budget: Any) -> bool:
    """Whether this is a budget: a mapping of limits, or their pairs."""
    try:
        limits = dict(budget)
    except (TypeError, ValueError):
        return False
    return all(name in UNITS and _read(name, limit) is not None for name, limit in limits.items())


def limit_of(name: str, limit: float | str, reach: tuple[float, float]) -> float:
    """A limit in bytes, bit operations or seconds.

    Args:
        name: the cost.
        limit: a share between 0 and 1 of the way from the cheapest model to the dearest, or a
            number with a unit.
        reach: what those two cost.

    Raises:
        NybbleError: neither.
    """
    read = _read(name, limit)
    if read is None:
        units = ", ".join(unit for unit in UNITS[name] if unit)
        raise NybbleError(
            f"Budget: {name}={limit!r} is neither a share from 0 to 1 nor a number with a unit "
            f"({units}). Examples: {EXAMPLE}."
        )
    value, is_share = read
    return reach[0] + value * (reach[1] - reach[0]) if is_share else value


def _read(name: str, limit: Any) -> tuple[float, bool] | None:
    """(number, whether it is a share) of a limit; None where it is neither."""
    if isinstance(limit, int | float) and not isinstance(limit, bool):
        return (float(limit), True) if 0 <= limit <= 1 else None
    found = _NUMBER.fullmatch(limit) if isinstance(limit, str) else None
    if found is None or found[2] not in UNITS[name]:
        return None
    return float(found[1]) * UNITS[name][found[2]], False


def bits_of(choice: Any) -> tuple[Any, int | None]:
    """(weights, activations) of a choice: of 4 these are (4, None), of ``"w4a8"`` (4, 8)."""
    found = _JOINT.fullmatch(choice) if isinstance(choice, str) else None
    if found is None:
        return choice, None
    return "ternary" if found[1] == "t" else int(found[1]), int(found[2])


def check_choices(choices: Any) -> bool:
    """Whether these are choices for a layer: at least two, each once, all of one kind."""
    if not isinstance(choices, list | tuple) or len(choices) < 2:
        return False
    pairs = [bits_of(choice) for choice in choices]
    widths = all(w == "ternary" or (type(w) is int and 1 <= w <= 8) for w, _ in pairs)
    return widths and len(set(pairs)) == len(pairs) and len({a is None for _, a in pairs}) == 1
