"""What a person sees of a session: a table that follows it, or lines where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from nybble.report import units
from nybble.schedules.problems import words
from nybble.tune.serve import Job
from nybble.tune.session import Watch
from nybble.tune.state import State

QUIET = 10.0  # seconds between two lines
OFTEN = 0.5  # seconds between two drawings of the table
SHOWN = 24  # rows of the table: the tasks with the largest share of the time


@contextmanager
def watching(console: Console) -> Iterator[Watch]:
    """Shows a session while the block runs; the function is called after every outcome."""
    latest = [0.0]
    if not console.is_terminal:

        def say(state: State) -> None:
            if time.monotonic() - latest[0] >= QUIET:
                latest[0] = time.monotonic()
                console.print(Text(line(state)))

        yield say
        return
    with Live(console=console, auto_refresh=False) as live:

        def draw(state: State) -> None:
            if time.monotonic() - latest[0] >= OFTEN:
                latest[0] = time.monotonic()
                live.update(Group(table(state), Text(line(state))), refresh=True)

        yield draw


def line(state: State) -> str:
    """A session in one line: trials, speed-up, estimated finish."""
    done = state.trials - state.resumed
    of = f" of {state.budget.trials}" if state.budget.trials is not None else ""
    parts = [f"{state.trials}{of} trials in {units.duration(max(state.elapsed, 1e-3))}"]
    if state.elapsed > 1 and done:
        parts.append(f"{60 * done / state.elapsed:.0f} a minute")
    if state.seconds and state.reference:
        default = units.duration(state.reference)
        parts.append(f"network {default} -> {units.duration(state.seconds)}")
        parts.append(f"{state.reference / state.seconds:.3f}x")
    if state.serving is not None:
        parts.append(f"now {words(state.serving.search.task.problem)}")
    if state.failures:
        parts.append(", ".join(f"{count} {kind}" for kind, count in sorted(state.failures.items())))
    if state.left is not None:
        parts.append(f"about {units.duration(max(state.left, 1e-3))} left")
    return "; ".join(parts)


def table(state: State, most: int = SHOWN) -> Table:
    """The tasks, those that take longest first."""
    shown = Table("layer", "calls", "default", "best/default", "share", "limit", "trials", "kernel")
    for column in shown.columns[1:7]:
        column.justify = "right"
    shown.columns[0].no_wrap = True
    jobs = sorted(state.jobs, key=lambda job: -job.calls * (job.seconds or 0))
    for job in jobs[:most]:
        shown.add_row(*_row(job, state), style="bold" if job is state.serving else "")
    if len(jobs) > most:
        shown.caption = f"and {len(jobs) - most} more"
    return shown


def _row(job: Job, state: State) -> tuple[str, ...]:
    search, seconds = job.search, job.seconds
    best = search.best.point if search.best and search.ratio < 1 else search.task.reference
    kernel = best.kernel + (f" ({job.stopped})" if job.stopped else "")
    share = "" if not seconds or not state.seconds else f"{job.calls * seconds / state.seconds:.0%}"
    return (
        words(search.task.problem),
        str(job.calls),
        "" if search.reference is None else units.duration(search.reference),
        "" if seconds is None else f"{search.ratio:.3f}",
        share,
        "" if job.share is None else f"{job.share:.0%}",
        str(job.trials),
        kernel,
    )
