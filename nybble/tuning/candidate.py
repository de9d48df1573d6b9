"""A candidate's machine code and its operands."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tvm
from numpy.typing import NDArray

from nybble.errors import ScheduleError
from nybble.executors.interface import Done
from nybble.executors.serve import stage
from nybble.runtime.artifact import export_module
from nybble.schedules.build import kernel_library
from nybble.schedules.cuda.arch import CudaTarget
from nybble.schedules.cuda.compile import device_code
from nybble.schedules.target import host_of
from nybble.tuning.measure import Limits, Outcome
from nybble.tuning.runner import SYMBOL
from nybble.tuning.tasks import Operands, Point, Task

TROUBLE = (  # what TVM, LLVM or a kernel raises that stumbles over unusual decisions
    ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError,
    ValueError,
)  # fmt: skip


class CompilerError(ScheduleError):
    """No code came out of a legal candidate."""


def built(task: Task, point: Point) -> Any:
    """TVM's module of a candidate's machine code, one function `SYMBOL`.

    Raises:
        ScheduleError: the kernel refuses the layer or the decisions.
        CompilerError: the compiler fails.
    """
    kernel, problem = point.realize(task.problem)
    reason = kernel.refuses(problem, task.target)
    if reason is not None:
        raise ScheduleError(reason)
    try:
        function = kernel.build(problem, task.target, point.knobs())
        named = function.with_attr("global_symbol", SYMBOL)
        if isinstance(task.target, CudaTarget):
            return _device_code(named, task.target)
        return kernel_library(tvm.IRModule({SYMBOL: named}), task.target)
    except TROUBLE as error:
        raise CompilerError(f"{type(error).__name__}: {last_line(error)}") from error


def _device_code(function: Any, target: CudaTarget) -> Any:
    try:
        return device_code(function, target).module
    except ScheduleError as error:  # the decisions are legal, and nvcc refuses them all the same
        raise CompilerError(last_line(error)) from error


def packed(task: Task, point: Point, operands: Operands) -> list[NDArray[Any]]:
    """A task's constants as a candidate takes them.

    Raises:
        ScheduleError: the kernel cannot hold these values.
    """
    kernel, problem = point.realize(task.problem)
    return kernel.constants(problem, operands.constants)


def library(task: Task, point: Point) -> bytes:
    """A candidate as a shared library for the target's machine.

    Raises:
        ScheduleError: the kernel refuses the layer or the decisions, or the compiler fails.
        ArtifactError: this machine cannot link for the target.
    """
    module, host = built(task, point), host_of(task.target)
    with tempfile.TemporaryDirectory(prefix="nybble-") as folder:
        path = Path(folder) / "candidate.so"
        export_module(module, host.arch, host.features, path)
        return path.read_bytes()


@dataclass(frozen=True)
class Library:
    """What `attempt` makes of a candidate: its code, or why there is none."""

    code: bytes
    failure: Literal["illegal", "compiler"] | None = None
    detail: str = ""


def attempt(task: Task, point: Point) -> Library:
    """`library` as a call of an executor.

    Raises:
        ArtifactError: this machine cannot link for the target.
    """
    stage("compiling", Limits.compile)
    try:
        return Library(library(task, point))
    except CompilerError as error:
        return Library(b"", "compiler", str(error))
    except ScheduleError as error:
        return Library(b"", "illegal", str(error))


def not_built(point: Point, done: Done[Library]) -> Outcome | None:
    """The outcome of a candidate without code, None where there is code."""
    if done.failure is not None:
        return Outcome.failed(point, done.failure.kind, done.failure.detail)
    assert done.value is not None
    failure = done.value.failure
    return Outcome.failed(point, failure, done.value.detail) if failure else None


def last_line(error: BaseException) -> str:
    """TVM's messages begin with a stack and end with the reason."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
