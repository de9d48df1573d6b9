"""``nybble records list | best | merge | prune``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Look at the records of tuning sessions, join and shorten them.")

Files = Annotated[list[Path], typer.Argument(metavar="FILE…", help="Records, *.jsonl.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON for scripts.")]


@app.command("list")
def list_command(files: Files, as_json: AsJson = False) -> None:
    """Show what files hold: machines, layers, candidates, and lines that are no records."""
    from nybble import commands_records

    commands_records.show(files, as_json)


@app.command()
def best(
    files: Files,
    layer: Annotated[
        str, typer.Option(metavar="PATTERN", help="Of these layers, as in 'conv2d *3, 3*'.")
    ] = "*",
    as_json: AsJson = False,
) -> None:
    """Show the fastest decisions of every layer."""
    from nybble import commands_records

    commands_records.best(files, layer, as_json)


@app.command()
def merge(
    files: Files,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The file to add to; made if it is not there.")
    ],
) -> None:
    """Add the records of several files to one, none of them twice."""
    from nybble import commands_records

    commands_records.merge(files, output)


@app.command()
def prune(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Records, *.jsonl.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write here, and leave FILE as it is.")
    ] = None,
    keep: Annotated[
        int, typer.Option(min=1, help="Candidates to keep of a layer's kernel on a machine.")
    ] = 1,
    current: Annotated[
        bool, typer.Option("--current", help="Only those of today's kernel sources.")
    ] = False,
    won: Annotated[
        bool, typer.Option("--won", help="Only those that beat the default kernel for sure.")
    ] = False,
) -> None:
    """Keep the fastest records; a session that goes on from what is left has less to learn from."""
    from nybble import commands_records

    commands_records.prune(file, output, keep, commands_records.Kept(current, won))
