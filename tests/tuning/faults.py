"""Kernels that are wrong, and such that their compilation or a run crashes or never ends."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from functools import partial
from typing import Any

from nybble.ir import tvm  # without torch
from nybble.schedules import table
from nybble.schedules.cpu import fallback
from nybble.schedules.kernel import Constants, Kernel, Knobs, Problem
from nybble.tuning import remote, worker
from nybble.tuning.candidate import Library, attempt
from nybble.tuning.measure import Limits, Outcome
from nybble.tuning.tasks import Point, Task

HANGS = 120  # seconds: longer than any limit of a test


def _negated(problem: Problem, constants: Constants) -> list[Any]:
    return fallback.LINEAR.pack(problem, {**constants, "bias": -constants["bias"]})


def _confused(_problem: Problem, _target: Any, _knobs: Knobs) -> Any:
    raise ValueError("stack of the compiler\n  an extent is negative\n")


def _crashing(_problem: Problem, _target: Any, _knobs: Knobs) -> Any:
    os.kill(os.getpid(), signal.SIGSEGV)


def _hanging(_problem: Problem, _target: Any, _knobs: Knobs) -> Any:
    time.sleep(HANGS)


def _calling(symbol: str, problem: Problem, target: Any, knobs: Knobs) -> Any:
    """The generic kernel behind a call of a function of the C library."""
    function = fallback.LINEAR.build(problem, target, knobs)
    call = tvm.tirx.Evaluate(tvm.tirx.call_extern("int32", symbol))
    return function.with_body(tvm.tirx.SeqStmt([call, function.body]))


KERNELS = (
    replace(fallback.LINEAR, name="tests.wrong", pack=_negated),
    replace(fallback.LINEAR, name="tests.confused", build=_confused),
    replace(fallback.LINEAR, name="tests.crash", build=_crashing),
    replace(fallback.LINEAR, name="tests.hang", build=_hanging),
    replace(fallback.LINEAR, name="tests.trap", build=partial(_calling, "abort")),
    replace(fallback.LINEAR, name="tests.endless", build=partial(_calling, "pause")),
)


def point(fault: str) -> Point:
    return Point(f"tests.{fault}", "int8")


def add(kernels: tuple[Kernel, ...] = KERNELS) -> None:
    """Adds them to the table of this process."""
    if kernels[0] not in table.KERNELS:
        table.KERNELS = (*table.KERNELS, *kernels)


def measured(task: Task, asked: Point, count: int, limits: Limits) -> Outcome:
    """`nybble.tuning.worker.measured` of a table with these kernels."""
    add()
    return worker.measured(task, asked, count, limits)


def built(task: Task, asked: Point) -> Library:
    """`nybble.tuning.candidate.attempt` of a table with these kernels."""
    add()
    return attempt(task, asked)


def on_device(job: remote.Job) -> Outcome | remote.Trouble:
    """`nybble.tuning.remote.on_device` of a table with these kernels."""
    add()
    return remote.on_device(job)
