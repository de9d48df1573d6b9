"""A candidate's machine code and its operands."""

from __future__ import annotations

from typing import Any

import tvm
from numpy.typing import NDArray

from nybble.errors import ScheduleError
from nybble.schedules.build import kernel_library
from nybble.tune.tasks import Operands, Point, Task

SYMBOL = "main"
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
        return kernel_library(tvm.IRModule({SYMBOL: named}), task.target)
    except TROUBLE as error:
        raise CompilerError(f"{type(error).__name__}: {_last_line(error)}") from error


def packed(task: Task, point: Point, operands: Operands) -> list[NDArray[Any]]:
    """A task's constants as a candidate takes them.

    Raises:
        ScheduleError: the kernel cannot hold these values.
    """
    kernel, problem = point.realize(task.problem)
    return kernel.constants(problem, operands.constants)


def _last_line(error: BaseException) -> str:
    """TVM's messages begin with a stack and end with the reason."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
