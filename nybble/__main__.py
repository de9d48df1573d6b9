"""The command line: ``nybble compile | report | run | bench | inspect | records | demo``, and more.

Everything heavy is imported inside the commands, so that ``nybble --help`` is quick.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from nybble import cli_records, farm
from nybble.cli_options import (
    INTERRUPTED,
    Activations,
    AllocationFile,
    AllocationOut,
    Batch,
    Budget,
    Calibration,
    Calibrator,
    Choices,
    Correct,
    FirstLast,
    Layers,
    Library,
    Measure,
    ModelFile,
    Prefer,
    RecipeFile,
    RecordFiles,
    Solver,
    Targets,
    Weights,
    Workers,
    drop_of,
    existing,
    existing_file,
)
from nybble.errors import NybbleError

app = typer.Typer(
    help="Nybble: compile a trained network to one integer-only shared library.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(cli_records.app, name="records")


@app.command("compile")
def compile_command(  # noqa: PLR0913, PLR0917  (one per option)
    model: ModelFile,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the library.")],
    calibration: Calibration = None,
    recipe: RecipeFile = None,
    calibrator: Calibrator = None,
    weights: Weights = None,
    activations: Activations = None,
    first_last: FirstLast = None,
    layer: Layers = None,
    choices: Choices = None,
    budget: Budget = None,
    sensitivity: Measure = None,
    solver: Solver = None,
    correct: Correct = None,
    allocation: AllocationFile = None,
    allocation_out: AllocationOut = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="With --weights mixed and --evaluate: the cheapest widths whose top-1 lies at "
            "most so many points below float's.",
        ),
    ] = None,
    evaluate: Annotated[
        Path | None,
        typer.Option(help="Inputs and 'labels' for --max-drop, .npz.", callback=existing_file),
    ] = None,
    target: Targets = None,
    keep_float: Annotated[
        bool, typer.Option("--float", help="Compile without quantizing.")
    ] = False,
    measure: Annotated[
        bool, typer.Option(help="Time the kernels of every layer here and take the fastest.")
    ] = False,
    prefer: Prefer = "speed",
    records: RecordFiles = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Threads that the library will run with: which records count."),
    ] = None,
    onnx: Annotated[
        Path | None, typer.Option(help="Also write the quantized network here, as QDQ ONNX.")
    ] = None,
    parameters: Annotated[
        str, typer.Option(help="inside the library; or outside: in a file beside it, for CPUs.")
    ] = "inside",
) -> None:
    """Quantize a network and compile it to a shared library."""
    from nybble import commands
    from nybble.options import RecipeOptions

    targets = tuple(target or ["native"])
    options = RecipeOptions(
        recipe, weights, activations, first_last, tuple(layer or ()), calibrator,
        choices, budget, sensitivity, solver, correct, allocation,
    )  # fmt: skip
    job = commands.CompileJob(
        model, output, calibration, options, targets, keep_float, measure, prefer, onnx,
        records, threads, allocation_out, drop_of(max_drop, evaluate), parameters,
    )  # fmt: skip
    commands.compile_to_file(job)


@app.command("sensitivity")
def sensitivity_command(  # noqa: PLR0913, PLR0917  (one per option)
    model: ModelFile,
    calibration: Annotated[
        Path,
        typer.Option(
            help="Representative inputs: .npy, .npz, or a folder of them.", callback=existing
        ),
    ],
    measure: Annotated[
        str,
        typer.Option(help="perturbation, pairwise, hessian, hessian_proxy or influence."),
    ] = "perturbation",
    widths: Annotated[str, typer.Option(help="Bits of weights to try, 2,4,8; or t.")] = "2,4,8",
    layer: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Layers to measure, all by default; repeatable."),
    ] = None,
    recipe: RecipeFile = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the table here, as JSON.")
    ] = None,
    workers: Workers = None,
) -> None:
    """Measure what each layer loses at each width; a run that was cut off goes on."""
    from nybble import commands_bits

    job = commands_bits.SensitivityJob(
        model, calibration, measure, widths, tuple(layer or ()), recipe, output, workers
    )
    commands_bits.sensitivity(job)


@app.command("tune")
def tune_command(  # noqa: PLR0913, PLR0917  (one per option)
    model: ModelFile,
    records: Annotated[
        Path, typer.Option(help="What is measured is added to this file; `compile` reads it.")
    ],
    calibration: Calibration = None,
    recipe: RecipeFile = None,
    weights: Weights = None,
    activations: Activations = None,
    first_last: FirstLast = None,
    layer: Layers = None,
    allocation: AllocationFile = None,
    keep_float: Annotated[bool, typer.Option("--float", help="Tune without quantizing.")] = False,
    target: Annotated[str, typer.Option(help="native, x86-64-v3, …: see docs/targets.md.")] = (
        "native"
    ),
    trials: Annotated[
        int | None, typer.Option(min=1, help="Candidates to measure, in all sessions together.")
    ] = 1000,
    time: Annotated[
        str | None, typer.Option(help="How long this session may take: 90s, 30m, 1h30m.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of the kernels; unset: as many as run takes.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of all that is drawn.")] = 0,
    tracker: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Measure on its devices: docs/tuning.md")
    ] = None,
    key: Annotated[str | None, typer.Option(help="Of the devices at the tracker.")] = None,
    workers: Workers = None,
    export_batch: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write candidates for a machine that runs a script."),
    ] = None,
    import_times: Annotated[Path | None, typer.Option(metavar="DIR", help="Its times.")] = None,
) -> None:
    """Search for the fastest kernels of every layer; the same command goes on where it stopped."""
    from nybble import commands_tune
    from nybble.options import RecipeOptions

    options = RecipeOptions(
        recipe, weights, activations, first_last, tuple(layer or ()), allocation=allocation
    )
    job = commands_tune.TuneJob(
        model, records, calibration, options, keep_float, target, trials, time, threads, seed,
        commands_tune.Elsewhere(tracker, key, workers, export_batch, import_times),
    )  # fmt: skip
    commands_tune.run(job)


@app.command("report")
def report_command(  # noqa: PLR0913, PLR0917  (one per option)
    model: ModelFile,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the page.")],
    calibration: Calibration = None,
    evaluate: Annotated[
        Path | None,
        typer.Option(
            help="Inputs to try the networks on, .npz; an array 'labels' in it gives top-1. "
            "Omitted: calibration samples.",
            callback=existing_file,
        ),
    ] = None,
    recipe: RecipeFile = None,
    calibrator: Calibrator = None,
    weights: Weights = None,
    activations: Annotated[str | None, typer.Option(help="Bits of activations, 1 to 8.")] = None,
    first_last: FirstLast = None,
    layer: Layers = None,
    choices: Choices = None,
    budget: Budget = None,
    sensitivity: Measure = None,
    solver: Solver = None,
    correct: Correct = None,
    allocation: AllocationFile = None,
    target: Annotated[
        str, typer.Option(help="native, x86-64-v3, …; this machine must run it.")
    ] = "native",
    measure: Annotated[
        bool,
        typer.Option(
            help="Time kernels and take the fastest; without a budget latency joins the costs."
        ),
    ] = False,
    prefer: Prefer = "speed",
    records: RecordFiles = None,
    samples: Annotated[
        int, typer.Option(min=1, help="Calibration samples to compare layers on.")
    ] = 16,
) -> None:
    """Show what each layer loses and costs at each width, and what was chosen: one HTML file."""
    from nybble import commands_report
    from nybble.options import RecipeOptions

    options = RecipeOptions(
        recipe, weights, activations, first_last, tuple(layer or ()), calibrator,
        choices, budget, sensitivity, solver, correct, allocation,
    )  # fmt: skip
    job = commands_report.ReportJob(
        model, output, calibration, evaluate, options, target, measure, prefer, samples, records
    )
    commands_report.report(job)


@app.command()
def run(
    net: Library,
    inputs: Annotated[
        Path, typer.Argument(metavar="INPUT", help="An .npy or .npz file.", callback=existing_file)
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the outputs here, .npz.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads of the kernels; unset: one a core.")
    ] = None,
) -> None:
    """Run a library on the arrays of a file."""
    from nybble import commands

    commands.run(net, inputs, output, threads)


@app.command()
def bench(
    net: Library,
    threads: Annotated[str, typer.Option(help="Thread counts to try, 1,2,4.")] = "1",
    repeats: Annotated[int, typer.Option(min=1, help="Calls to measure.")] = 50,
    batch: Batch = 1,
) -> None:
    """Measure a library's latency on random inputs."""
    from nybble import commands

    commands.bench(net, threads, repeats, batch)


@app.command()
def inspect(
    net: Library,
    as_json: Annotated[bool, typer.Option("--json", help="JSON for scripts.")] = False,
    time: Annotated[bool, typer.Option(help="Run it, to measure every layer.")] = False,
    batch: Batch = 1,
) -> None:
    """Show what is inside a library: inputs, layers, widths, kernels. Runs nothing of it."""
    from nybble import commands

    commands.inspect(net, as_json, time, batch)


@app.command()
def bundle(
    net: Library,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The folder to make; empty if it is there.")
    ],
) -> None:
    """Put a library into a folder with all that a machine without Python needs to run it."""
    from nybble import commands_bundle

    commands_bundle.bundle(net, output)


@app.command()
def demo(
    report: Annotated[Path, typer.Option(help="Where to write the page.")] = Path("report.html"),
    target: Annotated[
        str, typer.Option(help="native, x86-64-v3, …; this machine must run it.")
    ] = "native",
) -> None:
    """Compile the embedded network, compare it with its float form, write a report."""
    from nybble.demo import main as run_demo

    run_demo(report, target)


app.command()(farm.tracker)
app.command()(farm.device)
app.command()(farm.devices)


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Notes every Ctrl-C: TVM makes a RuntimeError of one that comes while it calls Python."""
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)
        signal.default_int_handler(number, frame)

    usual = signal.getsignal(signal.SIGINT)
    if usual is signal.default_int_handler:  # and not ignored, as under nohup
        signal.signal(signal.SIGINT, note)
    try:
        yield came
    finally:
        signal.signal(signal.SIGINT, usual)


def main() -> None:
    """Runs the command line; Nybble's own errors end it with one message and exit code 1."""
    with _interrupts() as came:
        _run(came)


def _run(came: list[int]) -> None:
    try:
        app()
    except (NybbleError, RuntimeError) as error:
        if came:
            sys.exit(INTERRUPTED)
        if not isinstance(error, NybbleError) or os.environ.get("NYBBLE_DEBUG"):
            raise
        panel = Panel(Text(str(error)), title="nybble: error", title_align="left", style="red")
        Console(stderr=True).print(panel)
        sys.exit(1)


if __name__ == "__main__":
    main()
