"""Which kernel compiles a problem: the first in the table that supports it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from numpy.typing import NDArray

from nybble.errors import ScheduleError
from nybble.schedules import table
from nybble.schedules.kernel import Constants, Kernel, Problem
from nybble.schedules.target import CpuTarget

FORCE = "NYBBLE_KERNEL"


@dataclass(frozen=True)
class Choice:
    """A kernel, and why those before it in the table were passed over.

    Attributes:
        kernel: the one taken.
        packed: the layer's constants in its layout.
        refusals: ``"cpu.int8.avx2: needs avx2"``, in table order.
    """

    kernel: Kernel
    packed: list[NDArray[Any]]
    refusals: tuple[str, ...]


def choose(
    problem: Problem,
    constants: Constants,
    target: CpuTarget,
    force: str | None = None,
    kernels: Sequence[Kernel] = table.KERNELS,
) -> Choice:
    """The first kernel that supports the problem on the target and can pack its constants.

    Args:
        problem: the layer.
        constants: its unpacked constants.
        target: the CPU.
        force: shell-style pattern of kernel names, the environment's NYBBLE_KERNEL when None. Ops
            for which no kernel has such a name choose freely.
        kernels: the table.

    Raises:
        ScheduleError: the pattern matches no kernel at all, or every candidate refuses.
    """
    pattern = force or os.environ.get(FORCE) or "*"
    named = [kernel for kernel in kernels if fnmatchcase(kernel.name, pattern)]
    if not named:
        known = ", ".join(sorted({kernel.name for kernel in kernels}))
        raise ScheduleError(f"No kernel is called {pattern!r}. There are: {known}.")
    candidates = [kernel for kernel in named if kernel.op == problem.op]
    refusals: list[str] = []
    for kernel in candidates or [k for k in kernels if k.op == problem.op]:
        reason = kernel.supports(problem, target)
        if reason is None:
            try:
                return Choice(kernel, kernel.pack(problem, constants), tuple(refusals))
            except ScheduleError as error:  # the values, not the shapes, are beyond the kernel
                reason = str(error)
        refusals.append(f"{kernel.name}: {reason}")
    reasons = "; ".join(refusals) or "the table holds none for this op"
    raise ScheduleError(
        f"No kernel among {pattern!r} compiles {problem.op} for {target.name}: {reasons}. "
        f"Loosen {FORCE} or the 'force' argument."
    )
