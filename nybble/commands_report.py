"""What ``nybble report`` does, once its arguments are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.text import Text

from nybble import known
from nybble.commands import Samples, arrays_of, load_model
from nybble.errors import NybbleError
from nybble.evaluation import Evaluation
from nybble.options import RecipeOptions
from nybble.report import tables
from nybble.report.progress import console, step
from nybble.runtime.artifact import check_writable, write_whole
from nybble.schedules.target import resolve
from nybble.study_run import StudyOptions, study

LABELS = "labels"


@dataclass(frozen=True)
class ReportJob:
    """The arguments of ``nybble report``."""

    model: Path
    output: Path
    calibration: Path | None
    evaluate: Path | None
    recipe: RecipeOptions
    target: str = "native"
    measure: bool = False
    prefer: str = "speed"
    samples: int = 16
    records: Sequence[Path] | None = None


def report(job: ReportJob) -> None:
    """Measures a network at all widths, shows the outcomes, and writes the page.

    Raises:
        NybbleError: the arguments do not go together, or a measurement refuses; nothing is written
            then.
    """
    recipe = job.recipe.recipe()
    if job.calibration is None:
        raise NybbleError(
            "Give --calibration FILE: some dozens of representative inputs as .npy, .npz or a "
            "folder of them. The sensitivity is measured on them."
        )
    check_writable(job.output)
    resolve(job.target)
    records = known.gather(job.records)
    samples = Samples(job.calibration)
    given = None if job.evaluate is None else evaluation_of(job.evaluate)
    with step(f"import {job.model.name}"):
        model = load_model(job.model)
    options = StudyOptions(
        job.model.stem, job.target, job.measure, job.prefer, job.samples, step, records
    )
    found = study(model, samples, recipe, given, options)
    console.print(tables.outcomes(found))
    write_whole(job.output, found.to_html().encode())
    console.print(Text(f"\nThe report: {job.output.resolve()}"), soft_wrap=True)


def evaluation_of(file: Path) -> Evaluation:
    """Inputs and labels of a file; a lone array goes to the only input, whatever its name.

    Raises:
        NybbleError: it holds labels alone.
    """
    arrays = arrays_of(file)
    labels = arrays.pop(LABELS, None)
    if not arrays:
        raise NybbleError(
            f"{file}: holds labels only. Store the inputs beside them: numpy.savez(file, "
            "images=…, labels=…)."
        )
    return Evaluation(next(iter(arrays.values())) if len(arrays) == 1 else arrays, labels)
