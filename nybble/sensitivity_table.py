"""What `nybble.sensitivity` gives: plain data, to be read, edited, stored and allocated from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from nybble.errors import NybbleError

Width = Any  # bits or "ternary"
Option = tuple[str, Width]


@dataclass(frozen=True)
class Effort:
    """What a measurement takes; before it, an upper bound.

    Attributes:
        samples: of calibration, in every pass.
        forward: passes over all samples; a part of the network counts as a whole pass.
        backward: passes back, first and second derivatives alike.
        seconds: spent, or expected; None before the first unit of work is done.
        reused: share of the work that an earlier run had done.
    """

    samples: int
    forward: int
    backward: int = 0
    seconds: float | None = None
    reused: float = 0.0

    def __str__(self) -> str:
        passes = f"{self.forward} {'pass' if self.forward == 1 else 'passes'} forward"
        if self.backward:
            passes += f" and {self.backward} back"
        words = f"{passes} over {self.samples} samples"
        if self.seconds is not None:
            words += f", {self.seconds:.3g} s"
        return words + (f", {100 * self.reused:.0f} % known" if self.reused else "")


@dataclass(frozen=True)
class Sensitivity:
    """What each layer loses at each width; `nybble.allocate` takes it as it is.

    Attributes:
        losses: {layer: {width: loss}}, the layers in order of computation.
        pairs: {((layer, width), (layer, width)): what two layers lose together beyond the sum of
            both}, the earlier layer first; empty where it was not measured.
        measure: by which it was measured.
        effort: what it took.
    """

    losses: dict[str, dict[Width, float]]
    pairs: dict[tuple[Option, Option], float] = field(default_factory=dict)
    measure: str = ""
    effort: Effort = field(default_factory=lambda: Effort(0, 0))

    @property
    def widths(self) -> list[Width]:
        """All widths, each once."""
        return list(dict.fromkeys(w for widths in self.losses.values() for w in widths))

    def to_json(self) -> str:
        """One JSON object; pairs are lists of layer, width, layer, width, value."""
        values = {
            "measure": self.measure,
            "effort": asdict(self.effort),
            "losses": {
                layer: {str(w): loss for w, loss in widths.items()}
                for layer, widths in self.losses.items()
            },
            "pairs": [[*one, *other, value] for (one, other), value in self.pairs.items()],
        }
        return json.dumps(values, indent=2)

    @classmethod
    def from_json(cls, text: str) -> Sensitivity:
        """Reads what `to_json` wrote.

        Raises:
            NybbleError: the text is no such object.
        """
        try:
            values: Any = json.loads(text)
        except json.JSONDecodeError as error:
            raise NybbleError(f"Sensitivity: not JSON ({error}).") from error
        known = {f.name for f in fields(cls)}
        if not isinstance(values, Mapping) or not set(values) <= known or "losses" not in values:
            raise NybbleError(f"Sensitivity: expected an object with {', '.join(sorted(known))}.")
        try:
            losses = {
                layer: {_width(w): float(loss) for w, loss in widths.items()}
                for layer, widths in values["losses"].items()
            }
            pairs = {((a, v), (b, w)): float(x) for a, v, b, w, x in values.get("pairs", [])}
            effort = Effort(**values.get("effort", {"samples": 0, "forward": 0}))
        except (AttributeError, TypeError, ValueError) as error:
            raise NybbleError(f"Sensitivity: not what to_json writes: {error}.") from error
        return cls(losses, pairs, str(values.get("measure", "")), effort)


def _width(text: str) -> Width:
    """JSON's keys are strings."""
    return int(text) if text.isdecimal() else text
