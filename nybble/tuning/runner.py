"""Code with its operands, here or on a device, and the race of two of them.

This file also travels with offline batches, so it needs NumPy and nothing else.
"""

from __future__ import annotations

import math
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

SYMBOL = "main"
EVALUATOR = "runtime.RPCTimeEvaluator"  # of libtvm_runtime
HERE = (1, 0)  # kDLCPU
TURN_SECONDS = 0.004  # of one side in one turn: enough for the clock, too short to be noticed
SOME_SECONDS = 0.001  # that tell how long one call takes
SHORTEST = 1e-7  # seconds of any call
HOPELESS = 1.5  # times the reference's time: what is slower after ENOUGH turns gets no more
ENOUGH = 3
GARBAGE = 0x55  # fills an output before it is written
Side = Callable[[int], float]
"""Mean seconds of that many calls."""


def garbage(like: NDArray[Any]) -> NDArray[Any]:
    """An array of bytes that no kernel is expected to write."""
    return np.full(like.nbytes, GARBAGE, np.uint8).view(like.dtype).reshape(like.shape)


@dataclass
class Runner:
    """Code with its operands.

    Attributes:
        module: with the function `SYMBOL`.
        arguments: inputs, constants and the output.
        read: a copy of the output.
        evaluator: the runtime's function `EVALUATOR`.
        device: where the arguments are: DLPack's kind and number.
        once: seconds of a call, about; known after `first`.
        alone: it runs here and on this thread alone, so that the processor time it takes can be
            measured: what else runs on a busy machine does not count.
    """

    module: Any
    arguments: list[Any] = field(repr=False)
    read: Callable[[], NDArray[Any]] = field(repr=False)
    evaluator: Any = field(repr=False)
    device: tuple[int, int] = HERE
    once: float = 0.0
    alone: bool = False

    def first(self) -> NDArray[Any]:
        """Runs it for the first time; the output."""
        function = self.module[SYMBOL]
        function(*self.arguments)  # for which LLVM makes the code
        got = self.read()
        start = time.perf_counter()
        function(*self.arguments)
        self.once = time.perf_counter() - start
        count = 0
        while 2 * count < math.ceil(
            SOME_SECONDS / self.once
        ):  # the way to a device counts for more
            count = math.ceil(SOME_SECONDS / self.once)
            self.once = max(self.seconds(count), SHORTEST)
        return got

    def seconds(self, count: int) -> float:
        """Mean seconds of that many calls, made without Python between them."""
        timer = self.evaluator(self.module, SYMBOL, *self.device, count, 1, 0, 100, 0, 1, 0, "")
        start = time.thread_time()
        found = timer(*self.arguments)
        taken = time.thread_time() - start
        if self.alone:
            return taken / (count + 1)  # it makes a first call by itself
        mean: float = struct.unpack("@d", bytes(found))[0]
        return mean


def race(candidate: Runner, reference: Runner, turns: int) -> NDArray[Any]:
    """Runs two kernels in turns, so that a busy machine slows them alike.

    Args:
        candidate: after its first call.
        reference: after its first call.
        turns: how many; fewer for a candidate that has no chance.

    Returns:
        (turns, 2) seconds of one call.
    """
    return race_of((candidate.seconds, reference.seconds), (candidate.once, reference.once), turns)


def race_of(sides: tuple[Side, Side], once: tuple[float, float], turns: int) -> NDArray[Any]:
    """`race` of any two functions."""
    counts = [max(1, math.ceil(TURN_SECONDS / max(seconds, SHORTEST))) for seconds in once]
    found = np.zeros((turns, 2))
    for turn in range(turns):
        for side in (0, 1) if turn % 2 else (1, 0):  # who is second finds warmer caches
            found[turn, side] = sides[side](counts[side])
        done = found[: turn + 1]
        if turn + 1 == ENOUGH and float(np.median(done[:, 0] / done[:, 1])) > HOPELESS:
            return done
    return found
