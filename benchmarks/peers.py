"""Contenders side by side: one process each, taking turns, ratios from one run.

Absolute times on a shared machine move by 15 % from minute to minute. So every round times each
contender once, and what is reported is the median over the rounds of the ratio within a round.
With one thread the clock is the process's CPU time, with more it is the wall.
"""

from __future__ import annotations

import math
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from benchmarks import hold
from benchmarks.engines import Call, Job, calls
from benchmarks.problems import Array

SHORTEST = 0.004  # seconds between two looks at the clock


@dataclass(frozen=True)
class Timing:
    """Seconds of one run of one contender, one value per round.

    Attributes:
        name: the contender.
        seconds: empty where the process died: it has said on stderr why.
        output: of its first run.
    """

    name: str
    seconds: tuple[float, ...]
    output: Array | None = None

    @property
    def median(self) -> float:
        """Median over the rounds, in seconds."""
        return float(np.median(self.seconds))

    def ratio(self, other: Timing) -> float:
        """Median over the rounds of this contender's time by the other's."""
        return float(np.median(np.divide(self.seconds, other.seconds)))


def race(jobs: Sequence[Job], rounds: int = 15) -> list[Timing]:
    """Times every contender once a round, in turn; nobody always follows the same one."""
    with _workers(jobs) as (pipes, outputs):
        alive = [i for i, output in enumerate(outputs) if output is not None]
        seconds: list[list[float]] = [[] for _ in jobs]
        for turn in range(rounds):
            for step in range(len(alive)):
                i = alive[(turn + step) % len(alive)]
                seconds[i].append(_time_once(pipes[i]))
    rows = zip(jobs, seconds, outputs, strict=True)
    return [Timing(job.peer, tuple(times), output) for job, times, output in rows]


def _time_once(pipe: Connection) -> float:
    time.sleep(0.005)  # let the previous contender's waiting threads stop spinning
    pipe.send("run")
    return float(pipe.recv())


@contextmanager
def _workers(jobs: Sequence[Job]) -> Iterator[tuple[list[Connection], list[Array | None]]]:
    context = multiprocessing.get_context("spawn")
    pipes: list[Connection] = []
    outputs: list[Array | None] = []
    processes = []
    try:
        for job in jobs:
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(job, theirs), daemon=True)
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
            outputs.append(_first_output(ours))
        yield pipes, outputs
    finally:
        for pipe in pipes:
            pipe.close()
        for process in processes:
            process.join(timeout=10)


def _first_output(pipe: Connection) -> Array | None:
    try:
        output: Array = pipe.recv()
    except EOFError:  # the process ended before it was ready
        return None
    return output


def _serve(job: Job, pipe: Connection) -> None:
    hold.hold(job.isa)  # before anything that looks at the CPU is loaded
    runs = calls(job)
    output = np.array(runs[0]())
    clock = time.process_time if job.threads == 1 else time.perf_counter
    loops = _loops(runs, clock)
    pipe.send(output)
    while True:
        try:
            pipe.recv()
        except EOFError:  # the parent has closed its end: done
            return
        pipe.send(_seconds(runs, clock, loops))


def _loops(runs: list[Call], clock: Any) -> int:
    """How often to run between two looks at the clock; warms up on the way."""
    _seconds(runs, clock, 1)
    once = min(_seconds(runs, clock, 1) for _ in range(2)) * len(runs)
    return max(1, math.ceil(SHORTEST / max(once, 1e-6)))


def _seconds(runs: list[Call], clock: Any, loops: int) -> float:
    start = clock()
    for _ in range(loops):
        for run in runs:
            run()
    return float(clock() - start) / (loops * len(runs))
