"""The command line: ``nybble compile | report | run | bench | inspect | records | demo``, and more.

Everything heavy is imported inside the commands, so that ``nybble --help`` is quick.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from nybble import cli_records, farm
from nybble.errors import NybbleError

if TYPE_CHECKING:
    from nybble.commands_drop import Drop

app = typer.Typer(
    help="Nybble: compile a trained network to one integer-only shared library.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(cli_records.app, name="records")


def _existing(path: Path | None) -> Path | None:
    """Lets through what exists; an option that was not given, too."""
    if path is not None and not path.exists():
        raise NybbleError(f"{path}: no such file. Check the name and the folder you are in.")
    return path


def _drop(most: float | None, file: Path | None) -> Drop | None:
    """What --max-drop and --evaluate ask for together."""
    if (most is None) != (file is None):
        raise NybbleError("--max-drop and --evaluate go together: give both, or neither.")
    if most is None or file is None:
        return None
    from nybble.commands_drop import Drop

    return Drop(most, file)


def _file(path: Path | None) -> Path | None:
    """Lets through a file that exists; an option that was not given, too."""
    if path is not None and path.is_dir():
        raise NybbleError(f"{path}: a folder; a file is expected here.")
    return _existing(path)


Library = Annotated[
    Path, typer.Argument(metavar="NET.so", help="A library made by Nybble.", callback=_file)
]
Batch = Annotated[int, typer.Option(min=1, help="Images in one call.")]


ModelFile = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL", help="net.onnx, or what torch.export.save wrote: net.pt2.", callback=_file
    ),
]
Calibration = Annotated[
    Path | None,
    typer.Option(
        help="Representative inputs: .npy, .npz, or a folder of them.", callback=_existing
    ),
]
RecipeFile = Annotated[Path | None, typer.Option(help="A recipe as JSON.", callback=_file)]
Calibrator = Annotated[
    str | None,
    typer.Option(help="minmax, percentile, mse or entropy; goes before the recipe's."),
]
Weights = Annotated[str | None, typer.Option(help="Bits of weights, 1 to 8, ternary, or mixed.")]
Solver = Annotated[str | None, typer.Option(help="ilp, iqp or closed_form.")]
FirstLast = Annotated[
    str | None,
    typer.Option(help="Bits of the first and the last layer: 8 (the default) or others; none."),
]
Layers = Annotated[
    list[str] | None,
    typer.Option(
        "--layer",
        metavar="PATTERN=wKaK",
        help="Bits of some layers, as in 'layer1*=w4a8' or '*fc=wt' (ternary). May be repeated; "
        "the last one that matches a layer counts.",
    ),
]
Targets = Annotated[
    list[str] | None,
    typer.Option(
        help="native (the default), x86-64-v3, aarch64-dotprod, …: see docs/targets.md. Given "
        "several times, the library holds a variant for each and picks when it is loaded."
    ),
]
RecordFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--records",
        metavar="FILE",
        help="What `nybble tune` recorded; repeatable. Default: the files of NYBBLE_RECORDS.",
    ),
]
Prefer = Annotated[
    str,
    typer.Option(help="speed: widths below 8 bits only where they are faster; or size: always."),
]


Choices = Annotated[
    str | None,
    typer.Option(
        help="With --weights mixed: widths of weights to choose from, as 2,4,8, or of weights and "
        "input activations together, as w4a4,w8a8."
    ),
]
Workers = Annotated[
    str | None, typer.Option(help="Who works: 4 (processes), ray, ray://host:10001")
]
Budget = Annotated[
    str | None,
    typer.Option(
        help="With --weights mixed: what the network may cost, as size=0.5,latency=0.8 (shares of "
        "the way from all low to all high) or size=4MB,latency=8ms,bops=20G."
    ),
]
Measure = Annotated[
    str | None,
    typer.Option(help="hessian, perturbation, pairwise, hessian_proxy or influence."),
]
Correct = Annotated[
    str | None,
    typer.Option(help="Corrections in order, as equalize,adaquant. Options: in a recipe."),
]
AllocationOut = Annotated[
    Path | None,
    typer.Option(
        help="Write the widths of all layers as JSON, with scales and kernels: to be read, "
        "edited, and given back with --allocation."
    ),
]
AllocationFile = Annotated[
    Path | None,
    typer.Option(help="Widths of layers as JSON, from an earlier run or edited.", callback=_file),
]


@app.command("compile")
def compile_command(  # noqa: PLR0913, PLR0917  (one per option)
    model: ModelFile,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the library.")],
    calibration: Calibration = None,
    recipe: RecipeFile = None,
    calibrator: Calibrator = None,
    weights: Weights = None,
    activations: Annotated[
        str | None, typer.Option(help="Bits of activations, 1 to 8; float: weights only.")
    ] = None,
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
        typer.Option(help="Inputs and 'labels' for --max-drop, .npz.", callback=_file),
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
        records, threads, allocation_out, _drop(max_drop, evaluate),
    )  # fmt: skip
    commands.compile_to_file(job)


@app.command("sensitivity")
def sensitivity_command(  # noqa: PLR0913, PLR0917  (one per option)
    model: ModelFile,
    calibration: Annotated[
        Path,
        typer.Option(
            help="Representative inputs: .npy, .npz, or a folder of them.", callback=_existing
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
    activations: Annotated[
        str | None, typer.Option(help="Bits of activations, 1 to 8; float: weights only.")
    ] = None,
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
        int | None, typer.Option(min=1, help="Threads of the kernels; unset: one a core.")
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
            callback=_file,
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
        Path, typer.Argument(metavar="INPUT", help="An .npy or .npz file.", callback=_file)
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
    time: Annotated[bool, typer.Option(help="Run it to measure every layer.")] = True,
    batch: Batch = 1,
) -> None:
    """Show what is inside a library: inputs, layers, widths, kernels, times."""
    from nybble import commands

    commands.inspect(net, as_json, time, batch)


@app.command()
def demo(
    report: Annotated[Path, typer.Option(help="Where to write the page.")] = Path("report.html"),
    target: Annotated[
        str, typer.Option(help="native, x86-64, x86-64-v3, x86-64-v4, x86-64-v4-vnni.")
    ] = "native",
) -> None:
    """Compile the embedded network, compare it with its float form, write a report."""
    from nybble.demo import main as run_demo

    run_demo(report, target)


app.command()(farm.tracker)
app.command()(farm.device)
app.command()(farm.devices)


def main() -> None:
    """Runs the command line; Nybble's own errors end it with one message and exit code 1."""
    try:
        app()
    except NybbleError as error:
        if os.environ.get("NYBBLE_DEBUG"):
            raise
        panel = Panel(Text(str(error)), title="nybble: error", title_align="left", style="red")
        Console(stderr=True).print(panel)
        sys.exit(1)


if __name__ == "__main__":
    main()
