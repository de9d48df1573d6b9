"""What a person sees of a session: a table that follows it, or lines where there is no terminal."""

from __future__ import annotations

import time

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from nybble.report import units
from nybble.schedules.kernel import Problem
from nybble.tuning.serve import Job
from nybble.tuning.state import State

QUIET = 10.0  # seconds between two lines
OFTEN = 0.5  # seconds between two drawings of the table
COLUMNS = (
    "layer", "calls", "default", "ratio", "share", "limit", "trials", "kernel", "stopped",
)  # fmt: skip
SHOWN = 24  # rows of the table: the tasks with the largest share of the time


class View:
    """Follows a session; to be used as a context, within which it is shown.

    Args:
        console: a terminal gets a table that follows the session, anything else lines.
    """

    def __init__(self, console: Console):
        self._console = console
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._latest = -OFTEN - QUIET

    def __enter__(self) -> View:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_error: object) -> None:
        if self._live is not None:
            self._live.update(Text(""), refresh=True)
            self._live.stop()

    def prepared(self, done: int, of: int | None) -> None:
        """Shows how many layers' operands are there."""
        self._show(Text(f"layers prepared: {done} of {of}"))

    def watch(self, state: State) -> None:
        """Shows how a session stands."""
        if self._live is None:
            self._show(Text(line(state)))
        elif self._is_due(OFTEN):
            self._live.update(Group(table(state), Text(line(state))), refresh=True)

    def _show(self, text: Text) -> None:
        if not self._is_due(OFTEN if self._live else QUIET):
            return
        if self._live is not None:
            self._live.update(text, refresh=True)
        else:
            self._console.print(text, soft_wrap=True)

    def _is_due(self, seconds: float) -> bool:
        now = time.monotonic()
        is_due = now - self._latest >= seconds
        self._latest = now if is_due else self._latest
        return is_due


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
        parts.append(f"now {short(state.serving.search.task.problem)}")
    if state.failures:
        parts.append(", ".join(f"{count} {kind}" for kind, count in sorted(state.failures.items())))
    if state.left:
        parts.append(f"about {units.duration(state.left)} left")
    return "; ".join(parts)


def table(state: State, most: int = SHOWN) -> Table:
    """The tasks, those that take longest first."""
    shown = Table(*COLUMNS)
    for column in shown.columns[1:7]:
        column.justify = "right"
    for column in shown.columns:
        column.no_wrap = True
    jobs = sorted(state.jobs, key=lambda job: -job.calls * (job.seconds or 0))
    for job in jobs[:most]:
        shown.add_row(*_row(job, state), style="bold" if job is state.serving else "")
    if len(jobs) > most:
        shown.caption = f"and {len(jobs) - most} more"
    return shown


def _row(job: Job, state: State) -> tuple[str, ...]:
    search, seconds = job.search, job.seconds
    best = search.best.point if search.best and search.ratio < 1 else search.task.reference
    share = "" if not seconds or not state.seconds else f"{job.calls * seconds / state.seconds:.0%}"
    return (
        short(search.task.problem),
        str(job.calls),
        "" if search.reference is None else units.duration(search.reference),
        "" if seconds is None else f"{search.ratio:.3f}",
        share,
        "" if job.share is None else f"{job.share:.0%}",
        str(job.trials),
        best.kernel.removeprefix("cpu."),
        job.stopped or "",
    )


def short(problem: Problem) -> str:
    """A layer in few words: ``conv2d 56x56x64 int8 -> 56x56x128``."""
    extents = ["x".join(map(str, spec.shape[1:])) for spec in (problem.inputs[0], problem.output)]
    window = ""
    if problem.op == "conv2d" and problem.weights is not None:
        window = "{}x{} ".format(*problem.weights.shape[1:3])
    width = (problem.weights or problem.inputs[0]).dtype
    return f"{problem.op} {window}{width} {extents[0]} -> {extents[1]}"
