"""What solvers and users get back."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from nybble.allocation.problem import Problem, Width
from nybble.errors import AllocationError


@dataclass(frozen=True)
class Solved:
    """A solver's answer.

    Attributes:
        chosen: an option for each group.
        gap: how much less the loss of another choice could be, as a share of the loss; 0 where
            the choice is proven to be the best, None where nothing is known.
        rates: bits of each group before rounding to widths, where a solver knows them.
    """

    chosen: tuple[int, ...]
    gap: float | None = 0.0
    rates: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Allocation:
    """A width for every layer.

    Attributes:
        widths: layer -> width.
        objective: the loss that the sensitivity predicts.
        gap: the most by which a better choice could lower it, as a share of it; 0 is proven best,
            None unknown.
        costs: what the choice costs, for every table that was given.
        limits: the budget in absolute numbers.
        rates: layer -> bits before rounding, of the closed form only.
        layers: layer -> what came of it once compiled (`nybble.allocated`): dtypes, scales,
            kernel. To be read; of an edited file only ``widths`` decides.
    """

    widths: dict[str, Width]
    objective: float
    gap: float | None
    costs: dict[str, float]
    limits: dict[str, float]
    rates: dict[str, float] | None = None
    layers: dict[str, dict[str, Any]] | None = None

    @classmethod
    def of(cls, problem: Problem, solved: Solved) -> Allocation:
        """A solver's answer in the user's names; the layers in the order of the sensitivity."""
        widths: dict[str, Width] = {}
        rates: dict[str, float] = {}
        for g, (group, option) in enumerate(zip(problem.groups, solved.chosen, strict=True)):
            for layer in group:
                widths[layer] = problem.widths[option]
                if solved.rates is not None:
                    rates[layer] = solved.rates[g]
        order = problem.order
        return cls(
            {layer: widths[layer] for layer in order},
            problem.objective(solved.chosen),
            solved.gap,
            problem.spent(solved.chosen),
            dict(problem.limits),
            {layer: rates[layer] for layer in order} if rates else None,
        )

    def to_json(self) -> str:
        """The allocation as one JSON object, to be read and edited."""
        known = {name: value for name, value in asdict(self).items() if value is not None}
        if math.isnan(self.objective):  # JSON has no NaN
            del known["objective"]
        return json.dumps(known, indent=2)

    @classmethod
    def from_json(cls, text: str) -> Allocation:
        """Reads what `to_json` wrote.

        Raises:
            AllocationError: the text is no such object.
        """
        try:
            values: Any = json.loads(text)
        except json.JSONDecodeError as error:
            raise AllocationError(f"Allocation: not JSON ({error}).") from error
        known = {f.name for f in fields(cls)}
        if not isinstance(values, Mapping) or not set(values) <= known or "widths" not in values:
            raise AllocationError(f"Allocation: expected an object with {', '.join(known)}.")
        blank: dict[str, Any] = {"objective": float("nan"), "gap": None, "costs": {}, "limits": {}}
        return cls(**{**blank, **values})
