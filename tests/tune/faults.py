"""Kernels that are wrong, that the compiler dies of, or that it never finishes."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from typing import Any

from nybble.schedules import table
from nybble.schedules.cpu import fallback
from nybble.schedules.kernel import Constants, Kernel, Knobs, Problem
from nybble.tune import worker
from nybble.tune.measure import Outcome
from nybble.tune.tasks import Point, Task

HANGS = 120  # seconds: longer than any limit of a test


def _negated(problem: Problem, constants: Constants) -> list[Any]:
    return fallback.LINEAR.pack(problem, {**constants, "bias": -constants["bias"]})


def _confused(_problem: Problem, _target: Any, _knobs: Knobs) -> Any:
    raise ValueError("stack of the compiler\n  an extent is negative\n")


def _crashing(_problem: Problem, _target: Any, _knobs: Knobs) -> Any:
    os.kill(os.getpid(), signal.SIGSEGV)


def _hanging(_problem: Problem, _target: Any, _knobs: Knobs) -> Any:
    time.sleep(HANGS)


KERNELS = (
    replace(fallback.LINEAR, name="tests.wrong", pack=_negated),
    replace(fallback.LINEAR, name="tests.confused", build=_confused),
    replace(fallback.LINEAR, name="tests.crash", build=_crashing),
    replace(fallback.LINEAR, name="tests.hang", build=_hanging),
)


def point(fault: str) -> Point:
    return Point(f"tests.{fault}", "int8")


def add(kernels: tuple[Kernel, ...] = KERNELS) -> None:
    """Adds them to the table of this process."""
    if kernels[0] not in table.KERNELS:
        table.KERNELS = (*table.KERNELS, *kernels)


def measured(task: Task, asked: Point, count: int, limits: worker.Limits) -> Outcome:
    """`nybble.tune.worker.measured` of a table with these kernels."""
    add()
    return worker.measured(task, asked, count, limits)
