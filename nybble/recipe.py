"""Everything a user may ask of quantization, in one frozen record."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from nybble.errors import NybbleError

Calibrator = Literal["minmax", "percentile", "mse", "entropy"]
CALIBRATORS: tuple[str, ...] = ("minmax", "percentile", "mse", "entropy")
ROUNDINGS: tuple[str, ...] = ("half_up", "half_even", "tflite")


@dataclass(frozen=True)
class Recipe:
    """How to quantize a network.

    Attributes:
        weights: bits of weights, symmetric per output channel, narrow range.
        activations: bits of activations: unsigned after ReLU, else symmetric.
        calibrator: how an activation's range is chosen from the calibration data.
        percentile: share of values inside the range, in percent, for ``calibrator="percentile"``.
        rounding: the convention of integer requantization (`nybble.ir.numerics.scaled`).
        keep_float: shell-style patterns of layer names that stay float.
    """

    weights: int = 8
    activations: int = 8
    calibrator: Calibrator = "minmax"
    percentile: float = 99.99
    rounding: Literal["half_up", "half_even", "tflite"] = "half_up"
    keep_float: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuses values that no later stage could honour."""
        given: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        patterns, percent = given["keep_float"], given["percentile"]
        are_patterns = isinstance(patterns, list | tuple)  # a lone string would be letters
        checks = {
            "weights": _is_eight(given["weights"]),
            "activations": _is_eight(given["activations"]),
            "calibrator": given["calibrator"] in CALIBRATORS,
            "percentile": isinstance(percent, int | float) and 50 < percent <= 100,
            "rounding": given["rounding"] in ROUNDINGS,
            "keep_float": are_patterns and all(isinstance(p, str) for p in patterns),
        }
        allowed = {
            "weights": "8",
            "activations": "8",
            "calibrator": ", ".join(CALIBRATORS),
            "percentile": "a number in (50, 100]",
            "rounding": ", ".join(ROUNDINGS),
            "keep_float": "a tuple of patterns such as ('head*', '*/gate')",
        }
        for name, fine in checks.items():
            if not fine:
                raise NybbleError(f"Recipe: {name}={given[name]!r} is not one of: {allowed[name]}.")
        object.__setattr__(self, "keep_float", tuple(patterns))

    def to_json(self) -> str:
        """The recipe as one JSON object."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Reads what `to_json` wrote.

        Raises:
            NybbleError: the text is no JSON object, or holds an unknown field or a bad value.
        """
        try:
            values: Any = json.loads(text)
        except json.JSONDecodeError as error:
            raise NybbleError(f"Recipe: not JSON ({error}).") from error
        known = {f.name for f in fields(cls)}
        if not isinstance(values, dict) or not set(values) <= known:
            raise NybbleError(f"Recipe: expected an object with fields among {sorted(known)}.")
        return cls(**values)


def _is_eight(bits: Any) -> bool:
    return isinstance(bits, int) and bits == 8
