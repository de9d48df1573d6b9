"""What a measuring process does: compiles a candidate, checks it, runs it against the reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import tvm

from nybble.errors import ScheduleError
from nybble.executors.serve import stage
from nybble.latency import refuse_foreign
from nybble.runtime import engine
from nybble.tuning import candidate, turns
from nybble.tuning.measure import Limits, Outcome, check_reference, difference
from nybble.tuning.runner import EVALUATOR, Runner, garbage, race
from nybble.tuning.tasks import Operands, Point, Task

TASKS = 8  # whose operands and reference stay in memory


def measured(task: Task, point: Point, count: int, limits: Limits) -> Outcome:
    """Compiles, checks and times one candidate on this machine.

    Args:
        task: the layer.
        point: the candidate.
        count: turns against the reference.
        limits: of the steps.

    Raises:
        NybbleError: this machine cannot run the target, or the task's reference is wrong.
    """
    stage("compiling", limits.compile)
    refuse_foreign(task.target)
    bench = _bench(task)
    try:
        with turns.compiling():
            bench.reference()  # first: where it is wrong, every candidate would seem to be
            runner = bench.runner(point)
    except candidate.CompilerError as error:
        return Outcome.failed(point, "compiler", str(error))
    except ScheduleError as error:
        return Outcome.failed(point, "illegal", str(error))
    return engine.run(task.threads, lambda: _against(bench, runner, point, count, limits))


def _against(bench: Bench, runner: Runner, point: Point, count: int, limits: Limits) -> Outcome:
    stage("the first call", limits.run)
    wrong = difference(bench.task, runner.first(), bench.operands.expected)
    if wrong is None:
        reference = bench.reference()
        stage("waiting for its turn", None)
        with turns.measuring(bench.task.threads):
            stage("measuring", limits.run)
            taken = race(runner, reference, count)
        wrong = difference(bench.task, runner.read(), bench.operands.expected)
    return Outcome.failed(point, "wrong", wrong) if wrong else Outcome.timed(point, taken)


@lru_cache(maxsize=TASKS)
def _bench(task: Task) -> Bench:
    return Bench(task, task.operands())


@dataclass
class Bench:
    """What is kept of a task between its candidates.

    Attributes:
        task: the layer.
        operands: its arrays.
    """

    task: Task
    operands: Operands
    _packed: dict[tuple[str, str | None], list[Any]] = field(default_factory=dict)
    _reference: Runner | None = None

    def runner(self, point: Point) -> Runner:
        """A candidate, compiled.

        Raises:
            ScheduleError: the kernel refuses the decisions, or the compiler fails.
        """
        module = candidate.built(self.task, point)
        key = point.kernel, point.weights
        if key not in self._packed:
            packed = candidate.packed(self.task, point, self.operands)
            self._packed[key] = [tvm.runtime.tensor(a) for a in packed]
        inputs = [tvm.runtime.tensor(a) for a in self.operands.inputs]
        output = tvm.runtime.tensor(garbage(self.operands.expected))
        return Runner(
            module, [*inputs, *self._packed[key], output], output.numpy,
            tvm.get_global_func(EVALUATOR), alone=self.task.threads == 1,
        )  # fmt: skip

    def reference(self) -> Runner:
        """The task's reference, compiled and checked once.

        Raises:
            NybbleError: it cannot be built, or is not what the law says: a defect.
        """
        if self._reference is None:
            made = self.runner(self.task.reference)
            check_reference(self.task, made.first(), self.operands.expected)
            self._reference = made
        return self._reference


Measured = Callable[[Task, Point, int, Limits], Outcome]
