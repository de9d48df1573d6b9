"""Options that several commands have, and what checks them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nybble.errors import NybbleError

if TYPE_CHECKING:
    from nybble.commands_drop import Drop


INTERRUPTED = 130  # what a shell expects of a program that Ctrl-C ended


def existing(path: Path | None) -> Path | None:
    """Lets through what exists; an option that was not given, too."""
    if path is not None and not path.exists():
        raise NybbleError(f"{path}: no such file. Check the name and the folder you are in.")
    return path


def drop_of(most: float | None, file: Path | None) -> Drop | None:
    """What --max-drop and --evaluate ask for together."""
    if (most is None) != (file is None):
        raise NybbleError("--max-drop and --evaluate go together: give both, or neither.")
    if most is None or file is None:
        return None
    from nybble.commands_drop import Drop

    return Drop(most, file)


def existing_file(path: Path | None) -> Path | None:
    """Lets through a file that exists; an option that was not given, too."""
    if path is not None and path.is_dir():
        raise NybbleError(f"{path}: a folder; a file is expected here.")
    return existing(path)


Library = Annotated[
    Path, typer.Argument(metavar="NET.so", help="A library made by Nybble.", callback=existing_file)
]
Batch = Annotated[int, typer.Option(min=1, help="Images in one call.")]


ModelFile = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL",
        help="net.onnx, or what torch.export.save wrote: net.pt2.",
        callback=existing_file,
    ),
]
Calibration = Annotated[
    Path | None,
    typer.Option(help="Representative inputs: .npy, .npz, or a folder of them.", callback=existing),
]
RecipeFile = Annotated[Path | None, typer.Option(help="A recipe as JSON.", callback=existing_file)]
Calibrator = Annotated[
    str | None,
    typer.Option(help="minmax, percentile, mse or entropy; goes before the recipe's."),
]
Weights = Annotated[
    str | None, typer.Option(help="Bits of weights, 1 to 8, ternary, mixed, nf4 or fp4.")
]
Activations = Annotated[
    str | None,
    typer.Option(
        help="Bits of activations, 1 to 8; dynamic: of linear layers only, 8 bits, with scales "
        "found at run time; float: weights only."
    ),
]
Solver = Annotated[str | None, typer.Option(help="ilp, iqp or closed_form.")]
FirstLast = Annotated[
    str | None,
    typer.Option(
        help="Bits of the first and the last layer: 8 (the default), others; none: no exception."
    ),
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
        help="native (the default), x86-64-v3, cuda:sm_90, …: see docs/targets.md. Given "
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
    typer.Option(
        help="Corrections in order, as equalize,adaquant (docs/corrections.md). Options: a recipe."
    ),
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
    typer.Option(
        help="Widths of layers as JSON, from an earlier run or edited.", callback=existing_file
    ),
]
