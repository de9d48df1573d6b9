"""Progress with an estimate, on the error stream, so that output can be piped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

console = Console()
if not console.is_terminal:
    console.width = 132  # a file or a pipe has no edge to wrap at
Advance = Callable[[int, int | None], None]


@contextmanager
def step(text: str, total: int | None = None) -> Iterator[Advance]:
    """A line with a bar, the time taken and an estimate of the rest, while the block runs."""
    columns = (
        SpinnerColumn(finished_text="[green]✓"),
        TextColumn("{task.description}", markup=False), BarColumn(),
        MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(text, total=total)

        def advance(done: int, of: int | None) -> None:
            bar.update(task, completed=done, total=of if of is not None else total)

        yield advance
        finished = bar.tasks[0].total or bar.tasks[0].completed or 1
        bar.update(task, completed=finished, total=finished)
