"""What a measurement is: an `Outcome` for each candidate, from whatever `Measurer`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from nybble.errors import NybbleError
from nybble.schedules.machine import Machine
from nybble.schedules.target import Target
from nybble.tuning.tasks import Point, Task

FailureKind = Literal["illegal", "wrong", "crash", "hang", "compiler", "lost"]
TURNS = 9
QUARTILES = 1.349  # standard deviations between the quartiles of a normal distribution
MEDIAN = math.sqrt(math.pi / 2)  # standard deviation of a median, by that of a mean


@dataclass(frozen=True)
class Outcome:
    """What became of a candidate.

    Attributes:
        point: the candidate.
        seconds: of one call, in the fastest turn; None when it failed.
        ratio: its time by that of the reference, which ran in turns with it, median of the turns;
            below 1 is faster; None when it failed.
        noise: standard deviation of that median, as a share of it, by the quartiles of the turns.
        failure: None, or ``illegal`` (a kernel refuses the decisions), ``compiler`` (no code came
            out), ``wrong`` (not what the law says), ``crash`` (it took its process along), ``hang``
            (compiler or code took too long), ``lost`` (no device was left to run it: try again).
        detail: of the failure, in words.
    """

    point: Point
    seconds: float | None
    ratio: float | None
    noise: float
    failure: FailureKind | None = None
    detail: str = ""

    @staticmethod
    def failed(point: Point, failure: FailureKind, detail: str) -> Outcome:
        """Of a candidate without a time."""
        return Outcome(point, None, None, 0.0, failure, detail)

    @staticmethod
    def timed(point: Point, turns: NDArray[Any]) -> Outcome:
        """Of a candidate that was right.

        Args:
            point: the candidate.
            turns: (turns, 2) seconds of one call, of the candidate and of the reference.
        """
        ratios = turns[:, 0] / turns[:, 1]
        middle = float(np.median(ratios))
        low, high = np.percentile(ratios, [25, 75])
        noise = MEDIAN * float(high - low) / QUARTILES / math.sqrt(len(ratios)) / middle
        return Outcome(point, float(turns[:, 0].min()), middle, noise)


@dataclass(frozen=True)
class Limits:
    """Seconds that a step may take before its process is killed.

    Attributes:
        compile: a candidate, and where it is the first of its task the reference.
        run: the check, and the race against the reference, each.
        start: a new process with its imports, on a machine that has other things to do.
    """

    compile: float = 90
    run: float = 60
    start: float = 300


class Measurer(Protocol):
    """Measures candidates, somewhere."""

    def measure(self, task: Task, points: Sequence[Point], turns: int = TURNS) -> Iterator[Outcome]:
        """An outcome for every point, in any order.

        Args:
            task: the layer; its folder is there.
            points: the candidates.
            turns: in which a candidate and the reference run.

        Raises:
            NybbleError: nothing can be measured for this task: this machine or no device can run
                it, or the reference itself is wrong.
        """

    def machine(self, target: Target) -> Machine:
        """The kind of machine whose times these are.

        Raises:
            NybbleError: it cannot be asked.
        """

    def close(self) -> None:
        """Ends what was started."""


def difference(task: Task, got: NDArray[Any], expected: NDArray[Any]) -> str | None:
    """How an output differs from the law's, None where it does not."""
    if task.agrees(got, expected):
        return None
    wrong = got != expected
    first = tuple(int(i) for i in np.argwhere(wrong)[0])
    return (
        f"{int(wrong.sum())} of {wrong.size} elements are not the law's; the first at "
        f"{first}: {got[first]} instead of {expected[first]}"
    )


def check_reference(task: Task, got: NDArray[Any], expected: NDArray[Any]) -> None:
    """Refuses a reference that is not what the law says: every candidate would seem wrong.

    Raises:
        NybbleError: a defect, and where it is.
    """
    wrong = difference(task, got, expected)
    if wrong is not None:
        raise NybbleError(
            f"{task.reference.kernel} with default decisions is wrong for {task.problem.op} "
            f"{task.key}: {wrong}. This is a defect of Nybble: please report it."
        )
