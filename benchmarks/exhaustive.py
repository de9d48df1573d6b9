"""How near the search comes to the best of a whole space, in a tenth of its trials.

    python -m benchmarks.exhaustive --isa x86-64-v3

Every point of one small space is measured in turns with the default (a 3x3 convolution of 64
channels at 14x14, its direct and its Winograd kernel). Then searches with other seeds look at a
tenth of the points; what they ask for is answered with the times that stand already, so that only
the search is judged and not the noise of measuring twice.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import nybble
from benchmarks.output import console, record, table
from benchmarks.problems import conv
from nybble.report.progress import step
from nybble.schedules.machine import Machine
from nybble.schedules.records import Records
from nybble.schedules.target import CpuTarget, resolve
from nybble.tuning.extract import tasks_of
from nybble.tuning.measure import Measurer, Outcome
from nybble.tuning.pool import LocalPool
from nybble.tuning.session import Session
from nybble.tuning.space import variants_of
from nybble.tuning.state import Budget, Settings
from nybble.tuning.tasks import Point, Task

TURNS = 31
SHARE = 0.1
SEEDS = 10


class Known:
    """Answers with what was measured before."""

    def __init__(self, outcomes: dict[Point, Outcome], machine: Machine):
        self._outcomes, self._machine = outcomes, machine

    def measure(
        self,
        task: Task,  # noqa: ARG002
        points: Sequence[Point],
        turns: int = TURNS,  # noqa: ARG002
    ) -> Iterator[Outcome]:
        """The outcomes of points, in order."""
        yield from (self._outcomes[point] for point in points)

    def machine(self, target: CpuTarget) -> Machine:  # noqa: ARG002
        """Where it was measured."""
        return self._machine

    def close(self) -> None:
        """Nothing is open."""


def the_task(isa: str, folder: Path) -> Task:
    """One convolution in the middle of a chain."""
    import torch  # noqa: PLC0415

    problem = conv(64, 14, 3)
    model = nybble.load_torch(problem.build(), (torch.zeros(*problem.shape),))
    quantized = nybble.quantize(model, [problem.data(4)])
    tasks = tasks_of(quantized.integer, resolve(isa), 1, folder)
    return next(task for task in tasks if task.problem.op == "conv2d")


def exhaust(task: Task, measurer: Measurer) -> dict[Point, Outcome]:
    """Every point's outcome."""
    points = [point for variant in variants_of(task) for point in variant.every()]
    found: dict[Point, Outcome] = {}
    with step(f"measure all {len(points)} points", len(points)) as report:
        for outcome in measurer.measure(task, points, TURNS):
            found[outcome.point] = outcome
            report(len(found), len(points))
    return found


def search(task: Task, known: Known, trials: int, seed: int) -> Point:
    """The point that a search ends with."""
    session = Session([task], known, Records(), Budget(trials=trials), Settings(seed=seed))
    job = session.run().jobs[0].search
    best = job.best
    return best.point if best is not None else task.reference


def rows(isa: str) -> list[dict[str, Any]]:
    """One row a seed: best ratio of the space, that of the search, and where it ranks."""
    with tempfile.TemporaryDirectory() as folder, closing(LocalPool()) as pool:
        task = the_task(isa, Path(folder))
        outcomes = exhaust(task, pool)
        known = Known(outcomes, pool.machine(task.target))
        ratios = sorted(o.ratio for o in outcomes.values() if o.ratio is not None)
        trials = int(SHARE * len(outcomes))
        found = []
        for seed in range(SEEDS):
            ratio = outcomes[search(task, known, trials, seed)].ratio
            assert ratio is not None
            found.append({
                "seed": seed, "points": len(outcomes), "trials": trials, "best": ratios[0],
                "found": ratio, "off": ratio / ratios[0] - 1, "rank": ratios.index(ratio) + 1,
            })  # fmt: skip
        return found


def main(argv: list[str] | None = None) -> None:
    """Reads the command line, measures, prints one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--isa", default="native")
    found = rows(parser.parse_args(argv).isa)
    shown = [
        {k: f"{v:.3f}" if isinstance(v, float) else str(v) for k, v in row.items()} for row in found
    ]
    table("ratio to the default kernel; off: above the best of the space", shown)
    console.print(f"written: {record('exhaustive', found)}")


if __name__ == "__main__":
    main()
