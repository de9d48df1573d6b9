"""What the commands ask of networks that are quantized already."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import nybble
from nybble.errors import NybbleError
from nybble.options import RecipeOptions


class Asked(Protocol):
    """What the commands that quantize have in common."""

    @property
    def model(self) -> Path:
        """The file of the network."""

    @property
    def calibration(self) -> Path | None:
        """Its calibration data."""

    @property
    def recipe(self) -> RecipeOptions:
        """How to quantize it."""

    @property
    def keep_float(self) -> bool:
        """Or not at all."""


def check_calibration(model: nybble.Model, job: Asked, is_calibrated: bool, how: str) -> bool:
    """Whether a network is quantized already, so that it takes neither data nor a recipe.

    Raises:
        NybbleError: calibration data is missing, or given for a network that is quantized.
    """
    if not isinstance(model, nybble.QuantizedModel):
        if is_calibrated and job.calibration is None:
            raise NybbleError(how)
        return False
    given = (job.calibration, job.keep_float, getattr(job, "drop", None))
    if any(given) or job.recipe != RecipeOptions():
        raise NybbleError(
            f"{job.model}: the network is quantized already, by its own scales. Leave out "
            "--calibration, --float, --max-drop and what describes a recipe, or give the float "
            "network."
        )
    return True
