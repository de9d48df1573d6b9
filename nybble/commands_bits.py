"""What the commands about bit widths do, once their arguments are read."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

import nybble
from nybble.commands import Samples, load_model
from nybble.options import RecipeOptions
from nybble.recipe import parse_choice
from nybble.report.progress import console, step
from nybble.runtime.artifact import check_writable, write_whole
from nybble.sensitivity_table import Effort, Sensitivity

COLORS = ("green", "yellow", "red")  # by thirds of the losses, in orders of magnitude
NAME = 40


@dataclass(frozen=True)
class SensitivityJob:
    """The arguments of ``nybble sensitivity``."""

    model: Path
    calibration: Path
    measure: str
    widths: str
    layers: tuple[str, ...]
    recipe: Path | None
    output: Path | None
    workers: str | None = None


def sensitivity(job: SensitivityJob) -> None:
    """Measures a network, shows the table, and writes it.

    Raises:
        NybbleError: the arguments do not go together, or the measurement refuses.
    """
    if job.output is not None:
        check_writable(job.output)
    widths = [parse_choice(part.strip()) for part in job.widths.split(",")]
    recipe = RecipeOptions(job.recipe).recipe()
    measure = nybble.Measure(job.measure, job.layers or ("*",), announce=_announce)
    samples = Samples(job.calibration)
    with step(f"import {job.model.name}"):
        model = load_model(job.model)
    with step(f"measure by {job.measure}") as advance:
        found = nybble.sensitivity(
            model, samples, measure, widths, recipe, advance, workers=job.workers
        )
    console.print(table(found))
    if job.output is not None:
        write_whole(job.output, found.to_json().encode())
        console.print(Text(f"written: {job.output}"))


def _announce(effort: Effort) -> None:
    """On the error stream, through ``print``: it appears above the bar."""
    words = f"at most {effort}" if effort.seconds is None else f"about {effort.seconds:.2g} s"
    print(words, file=sys.stderr)  # noqa: T201


def table(found: Sensitivity) -> Table:
    """Losses by layer and width, small ones green and large ones red."""
    shown = Table(title=f"Loss by {found.measure}")
    shown.add_column("layer", no_wrap=True)
    for width in found.widths:
        shown.add_column(str(width), justify="right")
    every = [loss for of in found.losses.values() for loss in of.values() if loss > 0]
    bounds = np.quantile(np.log(every), (1 / 3, 2 / 3)) if every else np.zeros(2)
    for layer, of in found.losses.items():
        name = layer if len(layer) <= NAME else f"…{layer[1 - NAME :]}"
        shown.add_row(Text(name), *(_cell(of.get(width), bounds) for width in found.widths))
    pairs = f", {len(found.pairs)} pairs" if found.pairs else ""
    shown.caption = f"{len(found.losses)} layers{pairs}; {found.effort}"
    return shown


def _cell(loss: float | None, bounds: NDArray[np.float64]) -> Text:
    if loss is None:
        return Text("-")
    third = int(np.searchsorted(bounds, np.log(loss))) if loss > 0 else 0
    return Text(f"{loss:.3g}", style=COLORS[third])
