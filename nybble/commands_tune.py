"""What ``nybble tune`` does, once its arguments are read."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.text import Text

import nybble
from nybble.cli_options import INTERRUPTED
from nybble.commands import Samples, load_model
from nybble.commands_quantized import check_calibration
from nybble.errors import NybbleError
from nybble.options import RecipeOptions
from nybble.report.progress import console, step
from nybble.schedules.target import resolve
from nybble.tune_elsewhere import Batches, exchange, measuring
from nybble.tune_run import Tuned, TuneOptions, tune
from nybble.tuning import view

UNITS = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True)
class Elsewhere:
    """The arguments of ``nybble tune`` about other machines."""

    tracker: str | None = None
    key: str | None = None
    workers: str | None = None
    export_batch: Path | None = None
    import_times: Path | None = None

    @property
    def by_folder(self) -> bool:
        """Whether batches go and come as folders."""
        return self.export_batch is not None or self.import_times is not None


@dataclass(frozen=True)
class TuneJob:
    """The arguments of ``nybble tune``."""

    model: Path
    records: Path
    calibration: Path | None
    recipe: RecipeOptions
    keep_float: bool
    target: str
    trials: int | None
    time: str | None
    threads: int | None
    seed: int = 0
    elsewhere: Elsewhere = Elsewhere()


HOW = (
    "Give --calibration FILE to tune the quantized network, or --float for the float one, or "
    "--activations float for quantized weights only; just one of them, and as for `nybble "
    "compile`: only then are the layers the same."
)


def run(job: TuneJob) -> None:
    """Tunes one network and shows what came of it.

    Raises:
        NybbleError: the arguments do not go together, or the session refuses.
    """
    recipe = job.recipe.recipe()
    is_calibrated = not job.keep_float and recipe.is_calibrated
    if job.calibration is not None and not is_calibrated:
        raise NybbleError(HOW)
    resolve(job.target)
    if job.elsewhere.tracker is not None and job.threads is None:
        raise NybbleError(
            "--tracker needs --threads: how many cores its devices have is not known."
        )
    seconds = None if job.time is None else seconds_of(job.time)
    options = TuneOptions(job.trials, seconds, job.threads, job.seed)
    where = job.elsewhere
    if where.by_folder:
        _exchange(_network(job, is_calibrated), job, options)
        return
    # Who measures is asked first: nobody shall wait for a calibration to hear of a wrong key.
    with measuring(where.tracker, where.key, where.workers) as measurer:
        network = _network(job, is_calibrated)
        with view.View(console) as seen:
            found = tune(
                network, job.records, job.target, options,
                measurer=measurer, progress=seen.prepared, watch=seen.watch,
            )  # fmt: skip
    _tell(found, job.records)
    if found.state.interrupted:
        sys.exit(INTERRUPTED)


def _network(job: TuneJob, is_calibrated: bool) -> Any:
    """What is tuned: the model, quantized where it is not and that is asked for."""
    samples: Any = Samples(job.calibration) if job.calibration else ()
    with step(f"import {job.model.name}"):
        network: Any = load_model(job.model)
    is_quantized = check_calibration(network, job, is_calibrated, HOW)
    if job.keep_float or is_quantized:
        return network
    with step("calibrate and quantize", len(samples)) as advance:
        return nybble.quantize(network, samples, job.recipe.recipe(), progress=advance)


def _exchange(network: Any, job: TuneJob, options: TuneOptions) -> None:
    """Takes times in and writes a batch."""
    if job.elsewhere.tracker is not None:
        raise NybbleError("--tracker does not go with --export-batch and --import-times.")
    batches = Batches(job.elsewhere.import_times, job.elsewhere.export_batch, job.elsewhere.workers)
    with step("build candidates" if batches.out else "enter times") as advance:
        times, made = exchange(network, job.records, job.target, options, batches, advance)
    if times is not None:
        words = f"{len(times.outcomes)} candidates measured on {times.machine.cpu}"
        missing = f"; {times.missing} have no time yet" if times.missing else ""
        console.print(Text(f"{words} are in {job.records}{missing}."), soft_wrap=True)
    if made is not None:
        words = f"{made.candidates} candidates; {len(made.failed)} could not be built."
        console.print(Text(f"{made.archive}: {words} There: python run.py"), soft_wrap=True)


def seconds_of(text: str) -> float:
    """``90``, ``90s``, ``30m`` or ``1h30m`` in seconds.

    Raises:
        NybbleError: it is none of these.
    """
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    parts = re.findall(r"(\d+(?:\.\d+)?)([smh])", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise NybbleError(f"--time {text}: expected something such as 90s, 30m or 1h30m.")
    return sum(float(number) * UNITS[unit] for number, unit in parts)


def _tell(found: Tuned, records: Path) -> None:
    state = found.state
    console.print(view.table(state))
    console.print(Text(view.line(state)))
    if found.correlation is not None:
        words = f"cost model: rank correlation {found.correlation:.2f} on candidates held out"
        console.print(Text(words))
    ended = "Stopped; the same command goes on. " if state.interrupted else ""
    console.print(Text(f"{ended}Use it: nybble compile … --records {records}"), soft_wrap=True)
