"""Tasks of single layers, from the rows of `tests.cases`."""

from __future__ import annotations

from pathlib import Path

from nybble.schedules.kernel import Kernel
from nybble.schedules.select import Planner, choose
from nybble.schedules.target import CpuTarget, resolve
from nybble.tuning.tasks import Operands, Point, Task
from tests.cases import Case

SMALL = Case("small", "linear", (8, 32), (24, 32))
GEMM = Case("gemm", "linear", (128, 512), (512, 512))


def task_of(case: Case, folder: Path, threads: int = 1, target: CpuTarget | None = None) -> Task:
    """A stored task; its reference is the table's first kernel."""
    target = target or resolve("native")
    problem, arrays = case.problem(), case.data()
    inputs = [arrays[name] for name in ("x", "b") if name in arrays]
    constants = {name: a for name, a in arrays.items() if name not in ("x", "b")}
    chosen = choose(problem, constants, target, Planner()).candidate
    reference = Point(chosen.kernel.name, chosen.weights)
    task = Task(case.name, problem, target, 1, threads, reference, folder / case.name)
    task.store(Operands(constants, tuple(inputs), case.law(arrays)))
    return task


def kernels_of(task: Task) -> list[Kernel]:
    """All that can compile a task's layer as it is."""
    from nybble.schedules.table import KERNELS  # noqa: PLC0415

    same = [kernel for kernel in KERNELS if kernel.op == task.problem.op]
    return [kernel for kernel in same if kernel.refuses(task.problem, task.target) is None]
