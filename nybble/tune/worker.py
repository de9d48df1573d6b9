"""What a measuring process does: compiles a candidate, checks it, runs it against the reference."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import tvm

from nybble.errors import NybbleError, ScheduleError
from nybble.executors.serve import stage
from nybble.latency import refuse_foreign
from nybble.runtime import engine
from nybble.tune import candidate, turns
from nybble.tune.measure import Outcome, Side, difference, race
from nybble.tune.tasks import Operands, Point, Task

TASKS = 8  # whose operands and reference stay in memory
GARBAGE = 0x55  # fills an output before it is written


@dataclass(frozen=True)
class Limits:
    """Seconds that a step may take before its process is killed.

    Attributes:
        compile: a candidate, and what comes before it: the imports of a new process.
        run: the check, and the race against the reference, each.
    """

    compile: float = 90
    run: float = 60


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
    once = runner.first()
    wrong = difference(bench.task, runner.output.numpy(), bench.operands.expected)
    if wrong is None:
        reference = bench.reference()
        stage("waiting for its turn", None)
        with turns.measuring(bench.task.threads):
            stage("measuring", limits.run)
            taken = race(runner.side(), reference.side(), (once, reference.once), count)
        wrong = difference(bench.task, runner.output.numpy(), bench.operands.expected)
    if wrong is not None:
        return Outcome.failed(point, "wrong", wrong)
    return Outcome.timed(point, taken)


@lru_cache(maxsize=TASKS)
def _bench(task: Task) -> Bench:
    return Bench(task, task.operands())


@dataclass
class Runner:
    """A compiled candidate with its operands.

    Attributes:
        module: its code.
        arguments: inputs and constants.
        output: what it writes.
        once: seconds of its first call.
    """

    module: Any
    arguments: list[Any]
    output: Any
    once: float = 0.0

    def first(self) -> float:
        """Runs it once, into garbage; seconds."""
        filled = np.empty(tuple(self.output.shape), str(self.output.dtype))
        filled.view(np.uint8)[...] = GARBAGE
        self.output.copyfrom(filled)
        start = time.perf_counter()
        self.module[candidate.SYMBOL](*self.arguments, self.output)
        self.once = time.perf_counter() - start
        return self.once

    def side(self) -> Side:
        """Its place in a race; the calls are made without Python between them."""

        def run(count: int) -> float:
            timer = self.module.time_evaluator(candidate.SYMBOL, tvm.cpu(), number=count)
            return float(timer(*self.arguments, self.output).mean)

        return run


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
        output = tvm.runtime.tensor(np.zeros_like(self.operands.expected))
        return Runner(module, [*inputs, *self._packed[key]], output)

    def reference(self) -> Runner:
        """The task's reference, compiled and checked once.

        Raises:
            NybbleError: it cannot be built, or is not what the law says: a defect.
        """
        if self._reference is None:
            made = self.runner(self.task.reference)
            made.first()
            wrong = difference(self.task, made.output.numpy(), self.operands.expected)
            if wrong is not None:
                raise NybbleError(
                    f"{self.task.reference.kernel} with default decisions is wrong for "
                    f"{self.task.problem.op} {self.task.key}: {wrong}. This is a defect of Nybble: "
                    "please report it."
                )
            self._reference = made
        return self._reference


Measured = Callable[[Task, Point, int, Limits], Outcome]
