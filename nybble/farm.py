"""The commands about devices that measure for others: ``nybble tracker | device | devices``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from nybble.report.progress import console

Host = Annotated[str, typer.Option(help="Address to listen at; whoever reaches it may run code.")]
Address = Annotated[str, typer.Option("--tracker", metavar="HOST:PORT", help="The tracker.")]


def tracker(
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Where to listen.")] = 9190,
) -> None:
    """Keep track of devices that measure for others, until Ctrl-C."""
    from nybble.tuning import device  # noqa: PLC0415  (imports TVM)

    device.track(host, port, _say)


def device(
    tracker: Address,
    key: Annotated[str, typer.Option(help="What to be known as; the same for devices alike.")],
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The first port to try.")] = 9090,
    address: Annotated[
        str | None, typer.Option(help="Of this machine, where the tracker sees another.")
    ] = None,
) -> None:
    """Measure for others what they send here, until Ctrl-C."""
    from nybble.tuning import device as server  # noqa: PLC0415
    from nybble.tuning.tracker import Tracker  # noqa: PLC0415

    server.serve(Tracker.parse(tracker, key), host, port, address, _say)


def devices(tracker: Address) -> None:
    """List the devices that a tracker knows."""
    from nybble.tuning.tracker import Tracker  # noqa: PLC0415

    table = Table("key", "servers", "free", "waiting clients")
    for row in Tracker.parse(tracker, "*").rows():
        table.add_row(*map(str, row))
    console.print(table)


def _say(line: str) -> None:
    console.print(Text(line))
