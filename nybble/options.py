"""The recipe that a command line asks for: a file's, with options over it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nybble.allocation.result import Allocation
from nybble.budget import parse_budget
from nybble.errors import NybbleError
from nybble.recipe import (
    DYNAMIC,
    FLOAT,
    Recipe,
    parse_choice,
    parse_layer,
    parse_weights,
    with_widths,
)


@dataclass(frozen=True)
class RecipeOptions:
    """What was given, as it was written; None where it was not.

    Attributes:
        file: a recipe as JSON.
        weights: bits, ``ternary``, ``mixed``, or a code book.
        activations: bits, ``float`` or ``dynamic``.
        first_last: bits, or ``none``.
        layers: overrides such as ``layer1*=w4a8``; they go behind the file's, so they win.
        calibrator: its name.
        choices: widths to choose from, such as ``2,4,8`` or ``w4a4,w8a8``.
        budget: limits such as ``size=0.5,latency=8ms``.
        sensitivity: the measure's name.
        solver: its name.
        correct: stages such as ``equalize,adaround``; they take the place of the file's.
        allocation: a file that `nybble.Allocation.to_json` wrote; its widths win over all others.
    """

    file: Path | None = None
    weights: str | None = None
    activations: str | None = None
    first_last: str | None = None
    layers: tuple[str, ...] = ()
    calibrator: str | None = None
    choices: str | None = None
    budget: str | None = None
    sensitivity: str | None = None
    solver: str | None = None
    correct: str | None = None
    allocation: Path | None = None

    def recipe(self) -> Recipe:
        """The recipe.

        Raises:
            NybbleError: the file is no recipe, or an option has no such value.
        """
        base = _read(self.file) if self.file else Recipe()
        changes: dict[str, Any] = {}
        if self.weights is not None:
            changes["weights"] = parse_weights(self.weights)
        if self.activations is not None:
            changes["activations"] = _number("activations", self.activations, FLOAT, DYNAMIC)
        if self.first_last is not None:
            bits = _number("first_last", self.first_last, "none")
            changes["first_last"] = None if bits == "none" else bits
        if self.layers:
            changes["layers"] = (*base.overrides, *map(parse_layer, self.layers))
        if self.choices is not None:
            changes["choices"] = tuple(map(parse_choice, self.choices.split(",")))
        if self.budget is not None:
            changes["budget"] = parse_budget(self.budget)
        if self.correct is not None:
            changes["correct"] = tuple(self.correct.split(","))
        for field in ("calibrator", "sensitivity", "solver"):
            if getattr(self, field) is not None:
                changes[field] = getattr(self, field)
        recipe = dataclasses.replace(base, **changes)
        return with_widths(recipe, _allocation(self.allocation)) if self.allocation else recipe


def _read(path: Path) -> Recipe:
    try:
        return Recipe.from_json(path.read_text())
    except UnicodeDecodeError as error:
        raise NybbleError(f"{path}: not JSON, not even text.") from error
    except (NybbleError, OSError) as error:
        raise NybbleError(f"{path}: {error}") from error


def _allocation(path: Path) -> dict[str, Any]:
    try:
        return Allocation.from_json(path.read_text()).widths
    except UnicodeDecodeError as error:
        raise NybbleError(f"{path}: not JSON, not even text.") from error
    except (NybbleError, OSError) as error:
        raise NybbleError(f"{path}: {error}") from error


def _number(field: str, text: str, *words: str) -> int | str:
    if text in words:
        return text
    if not text.isdecimal():
        raise NybbleError(f"Recipe: {field}={text!r} is not one of: 1 to 8, {', '.join(words)}.")
    return int(text)
