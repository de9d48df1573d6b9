"""``nybble bundle``: a folder for machines without Python."""

from __future__ import annotations

from pathlib import Path

from rich.text import Text

from nybble.report import units
from nybble.report.progress import console, step
from nybble.runtime import bundle as bundling


def bundle(net: Path, folder: Path) -> None:
    """Makes a folder that runs a network without Python.

    Raises:
        ArtifactError: the library cannot be bundled here, or the folder cannot be written.
    """
    with step("compile the program"):
        made = bundling.bundle(net, folder)
    console.print(
        Text(f"{folder}: network {units.size(made.network)}, runtime {units.size(made.runtime)}")
    )
    console.print(Text(f"{folder / bundling.PROGRAM} {folder / net.name} INPUT.npy -o FOLDER"))
