"""Code with its operands, here or on a device, and the race of two of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nybble.tune.candidate import SYMBOL

TURN_SECONDS = 0.004  # of one side in one turn: enough for the clock, too short to be noticed
FEW = 8  # calls that tell how long a quick one takes
HOPELESS = 1.5  # times the reference's time: what is slower after ENOUGH turns gets no more
ENOUGH = 3
GARBAGE = 0x55  # fills an output before it is written
Side = Callable[[int], float]
"""Mean seconds of that many calls."""


def garbage(like: NDArray[Any]) -> NDArray[Any]:
    """An array of bytes that no kernel is expected to write."""
    filled = np.empty_like(like)
    filled.view(np.uint8)[...] = GARBAGE
    return filled


@dataclass
class Runner:
    """Code with its operands.

    Attributes:
        module: with the function `SYMBOL`.
        arguments: inputs and constants.
        output: what it writes.
        device: where they are.
        once: seconds of a call, about; known after `first`.
        alone: it runs here and on this thread alone, so that the processor time it takes can be
            measured: what else runs on a busy machine does not count.
    """

    module: Any
    arguments: list[Any] = field(repr=False)
    output: Any = field(repr=False)
    device: Any
    once: float = 0.0
    alone: bool = False

    def first(self) -> NDArray[Any]:
        """Runs it for the first time; the output."""
        start = time.perf_counter()
        self.module[SYMBOL](*self.arguments, self.output)
        got: NDArray[Any] = self.output.numpy()
        self.once = time.perf_counter() - start
        if self.once < FEW * TURN_SECONDS:  # cold caches and the way to a device count for more
            self.once = self.seconds(FEW)
        return got

    def seconds(self, count: int) -> float:
        """Mean seconds of that many calls, made without Python between them."""
        timer = self.module.time_evaluator(SYMBOL, self.device, number=count)
        start = time.thread_time()
        mean = float(timer(*self.arguments, self.output).mean)
        if self.alone:
            return (time.thread_time() - start) / (count + 1)  # it makes a first call by itself
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
    counts = [max(1, math.ceil(TURN_SECONDS / max(seconds, 1e-7))) for seconds in once]
    found = np.zeros((turns, 2))
    for turn in range(turns):
        for side in (0, 1) if turn % 2 else (1, 0):  # who is second finds warmer caches
            found[turn, side] = sides[side](counts[side])
        done = found[: turn + 1]
        if turn + 1 == ENOUGH and float(np.median(done[:, 0] / done[:, 1])) > HOPELESS:
            return done
    return found
