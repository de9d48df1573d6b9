"""Which kernel compiles a layer: the first in the table that can, or the fastest as measured.

A layer of fewer than 8 bits has two lots of candidates: the kernels for its own width, and those
of 8-bit weights, for the same integers stored in whole bytes. So a low width is never slower than
the 8 bits that it replaces, unless size was asked for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import product
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nybble.errors import NybbleError, ScheduleError
from nybble.ir import numerics
from nybble.schedules import problems, table, times
from nybble.schedules.kernel import Constants, Epilogue, Kernel, Problem
from nybble.schedules.replay import Default, Replay
from nybble.schedules.target import Target

FORCE = "NYBBLE_KERNEL"
TIE = 1.03  # times this close are equal as far as can be measured: the smaller one wins


@dataclass(frozen=True)
class Candidate:
    """A kernel that can compile a layer.

    Attributes:
        kernel: the family.
        problem: the layer as the kernel sees it; its weights may be widened to 8 bits.
        packed: the layer's constants in the kernel's layout.
    """

    kernel: Kernel
    problem: Problem
    packed: list[NDArray[Any]]

    @property
    def weights(self) -> str | None:
        """The dtype of the weights as stored, None without weights."""
        return _dtype(self.problem)

    @property
    def size(self) -> int:
        """Bytes of the packed constants."""
        return sum(array.nbytes for array in self.packed)


@dataclass(frozen=True)
class Timed:
    """A candidate as measured.

    Attributes:
        kernel: its family.
        weights: the dtype of the weights as stored, None without weights.
        size: bytes of its packed constants.
        seconds: of one call on one thread.
    """

    kernel: str
    weights: str | None
    size: int
    seconds: float


@dataclass(frozen=True)
class Choice:
    """A kernel, and why others were passed over.

    Attributes:
        candidate: the one taken.
        refusals: ``"cpu.int8.avx2: needs avx2"``, in table order.
        timed: every candidate's time, in table order, and that of the same layer in float32 behind
            them; empty where nothing was measured.
    """

    candidate: Candidate
    refusals: tuple[str, ...]
    timed: tuple[Timed, ...] = ()


Ruler = Callable[[Sequence[Candidate], Target], Sequence[float]]
"""Measures candidates for one layer: seconds of a call, each."""


@dataclass(frozen=True)
class Planner:
    """How to choose.

    Attributes:
        force: shell-style pattern of kernel names, the environment's NYBBLE_KERNEL when None. Ops
            for which no kernel has such a name choose freely.
        prefer: ``speed`` lets 8-bit kernels take layers of fewer bits where they are faster;
            ``size`` takes the kernels whose constants are smallest.
        ruler: measures the candidates; without one the table's order decides.
        replay: measured decisions of earlier sessions for the target; None knows of none. Where
            nothing is measured and speed is asked for, one for the very same layer may put another
            kernel in the place of the table's first.
        recorded: without a ruler: times are those of ``replay``, of a machine that is not at hand.
        kernels: in place of the table's for the kind of target.
    """

    force: str | None = None
    prefer: str = "speed"
    ruler: Ruler | None = None
    replay: Replay | None = None
    recorded: bool = False
    kernels: Sequence[Kernel] | None = None

    def __post_init__(self) -> None:
        """Refuses what nothing would honour."""
        if self.prefer not in ("speed", "size"):
            raise NybbleError(f"prefer={self.prefer!r} is neither 'speed' nor 'size'.")

    def table(self, target: Target) -> Sequence[Kernel]:
        """The kernels to choose from, by preference."""
        return table.of(target) if self.kernels is None else self.kernels


def choose(problem: Problem, constants: Constants, target: Target, plan: Planner) -> Choice:
    """The kernel for a layer.

    Args:
        problem: the layer.
        constants: its unpacked constants.
        target: the CPU.
        plan: how to choose.

    Raises:
        ScheduleError: the pattern matches no kernel at all, or every candidate refuses, or nothing
            is recorded where records alone are to tell times.
    """
    refusals: list[str] = []
    found = _candidates(problem, constants, target, plan, refusals)
    first = next(found, None)
    if first is None:
        raise ScheduleError(_nothing(problem, target, plan, refusals))
    by_size = plan.prefer == "size"
    is_timed = plan.ruler is not None or plan.recorded
    candidates = [first, *found] if is_timed or by_size else [first]
    if by_size:
        candidates = _smallest(candidates)
    usual = _in_bytes(candidates[0], problem, constants, target, plan)
    taken = _recorded(usual, problem, constants, target, plan)
    if not is_timed:
        return Choice(taken, _heard(refusals, target, plan))
    if all((c.kernel, c.weights) != (taken.kernel, taken.weights) for c in candidates):
        candidates.append(taken)  # slow as far as was known, but for the record
    rivals = [*candidates, *_in_float(problem, target, plan)]
    heard = _heard(refusals, target, plan)
    if len(rivals) == 1:
        return Choice(candidates[0], heard)
    seconds = _seconds(rivals, problem, target, plan)
    timed = tuple(
        Timed(c.kernel.name, c.weights, c.size, s)
        for c, s in zip(rivals, seconds, strict=True)
        if s < inf
    )
    limit = TIE * min(seconds[: len(candidates)])
    level = [i for i in range(len(candidates)) if seconds[i] <= limit]
    taken = candidates[min(level, key=lambda i: (candidates[i].size, seconds[i]))]
    return Choice(taken, heard, timed)


def _in_bytes(
    first: Candidate, problem: Problem, constants: Constants, target: Target, plan: Planner
) -> Candidate:
    """The same kernel with narrow weights in whole bytes, where decoding them would cost time."""
    if not first.kernel.decodes or plan.prefer != "speed":
        return first
    made = (_attempt(first.kernel, form, constants, target, []) for form in widened(problem))
    return next(filter(None, made), first)


def _recorded(
    usual: Candidate, problem: Problem, constants: Constants, target: Target, plan: Planner
) -> Candidate:
    """The kernel that beat the usual one in an earlier session, or that one."""
    if plan.replay is None or plan.prefer != "speed":
        return usual
    default = Default(usual.kernel, usual.problem)
    for record in plan.replay.winners(problem, default):
        forms = [f for f in (problem, *widened(problem)) if _dtype(f) == record.weights]
        kernels = [
            kernel for kernel in _kernels(problem, target, plan) if kernel.name == record.kernel
        ]
        pairs = product(kernels, forms)
        tried = (_attempt(*pair, constants, target, [], recorded=True) for pair in pairs)
        made = next(filter(None, tried), None)
        if made is None and kernels:
            plan.replay.refuse(record)
        elif made is not None and plan.replay.is_legal(record, made.kernel, made.problem):
            return made
    return usual


def _seconds(
    rivals: Sequence[Candidate], problem: Problem, target: Target, plan: Planner
) -> Sequence[float]:
    """Every candidate's time with the best decisions that are known."""
    seen = [Default(rival.kernel, rival.problem) for rival in rivals]
    if plan.ruler is not None:
        seconds = plan.ruler(rivals, target)
        return times.tuned(seen, seconds, problem, plan.replay) if plan.replay else seconds
    assert plan.replay is not None
    found = times.recorded(seen, problem, plan.replay)
    if min(found) == inf:
        raise ScheduleError(
            f"This machine cannot run code for {target.name}, and the records say nothing of "
            f"{problems.words(problem)} there. Tune the network at this width on such a machine, "
            "and give the file as records; or leave latency out of the budget."
        )
    return found


def _heard(refusals: Sequence[str], target: Target, plan: Planner) -> tuple[str, ...]:
    """The refusals without those of kernels for other architectures."""
    foreign = {k.name for k in plan.table(target) if k.arch not in (None, target.arch)}
    return tuple(line for line in refusals if line.partition(":")[0] not in foreign)


def _smallest(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those with the least bytes, or nearly so: what fills up a block shall not decide."""
    least = min(candidate.size for candidate in candidates)
    return [candidate for candidate in candidates if candidate.size <= TIE * least]


def _candidates(
    problem: Problem,
    constants: Constants,
    target: Target,
    plan: Planner,
    refusals: list[str],
) -> Iterator[Candidate]:
    """All that can compile the layer, the last resort only where nothing else can.

    ``refusals`` gathers the reasons of the others.
    """
    *kernels, last_resort = _kernels(problem, target, plan)
    forms = [problem, *(widened(problem) if plan.prefer == "speed" else [])]
    taken = False
    for form in forms:
        for kernel in kernels:
            made = _attempt(kernel, form, constants, target, refusals)
            if made is not None:
                taken = True
                yield made
    made = None if taken else _attempt(last_resort, problem, constants, target, refusals)
    if made is not None:
        yield made


def _kernels(problem: Problem, target: Target, plan: Planner) -> list[Kernel]:
    """The kernels for a problem's op that the pattern allows, at least one.

    Raises:
        ScheduleError: no kernel has such a name, or the table holds none for the op.
    """
    pattern = plan.force or os.environ.get(FORCE) or "*"
    kernels = plan.table(target)
    named = [kernel for kernel in kernels if fnmatchcase(kernel.name, pattern)]
    if not named:
        known = ", ".join(sorted({kernel.name for kernel in kernels}))
        raise ScheduleError(f"No kernel is called {pattern!r}. There are: {known}.")
    allowed = [kernel for kernel in named if kernel.op == problem.op]
    found = allowed or [kernel for kernel in kernels if kernel.op == problem.op]
    if not found:
        raise ScheduleError(
            f"There is no kernel of {problem.op} for {target.name}. Keep the layer float "
            "(Recipe.keep_float), or compile for another kind of machine."
        )
    return found


def _attempt(
    kernel: Kernel, problem: Problem, constants: Constants, target: Target, refusals: list[str],
    recorded: bool = False,
) -> Candidate | None:  # fmt: skip
    reason = kernel.refuses(problem, target) if recorded else kernel.avoids(problem, target)
    if reason is None:
        try:
            return Candidate(kernel, problem, kernel.constants(problem, constants))
        except ScheduleError as error:  # the values, not the shapes, are beyond the kernel
            reason = str(error)
    if f"{kernel.name}: {reason}" not in refusals:
        refusals.append(f"{kernel.name}: {reason}")
    return None


def _dtype(problem: Problem) -> str | None:
    """Of the weights, None without weights."""
    return problem.weights.dtype if problem.weights else None


def widened(problem: Problem) -> list[Problem]:
    """The same layer with its weights in whole bytes, where they are narrower."""
    if problem.weights is None or problem.weights.dtype.startswith("float"):
        return []
    signed, bits = numerics.width(problem.weights.dtype)
    if not signed or bits >= 8:
        return []
    return [replace(problem, weights=replace(problem.weights, dtype="int8"))]


def _in_float(problem: Problem, target: Target, plan: Planner) -> Iterator[Candidate]:
    """The same convolution or linear layer in float32: never taken, shown beside the others."""
    weights = problem.weights
    if weights is None or weights.dtype == "float32":
        return
    form = replace(
        problem,
        inputs=tuple(replace(spec, dtype="float32") for spec in problem.inputs),
        output=replace(problem.output, dtype="float32"),
        weights=replace(weights, dtype="float32"),
        epilogue=Epilogue("float", -inf, inf),
    )
    shape = tuple(int(extent) for extent in weights.shape)
    constants = {"w": np.zeros(shape, np.float32), "bias": np.zeros(shape[0], np.float32)}
    made = (
        _attempt(kernel, form, constants, target, [])
        for kernel in _kernels(form, target, plan)[:-1]
    )
    yield from list(filter(None, made))[:1]


def _nothing(problem: Problem, target: Target, plan: Planner, refusals: Sequence[str]) -> str:
    pattern = plan.force or os.environ.get(FORCE) or "*"
    return (
        f"No kernel among {pattern!r} compiles {problem.op} for {target.name}: "
        f"{'; '.join(refusals)}. Loosen {FORCE} or the 'force' argument."
    )
