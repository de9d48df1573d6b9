"""A measurer whose kernels cost what a formula says, and tasks of a few layers."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from nybble.schedules.machine import Machine
from nybble.schedules.target import Target, resolve
from nybble.tuning.evolve import Search
from nybble.tuning.measure import TURNS, Outcome
from nybble.tuning.tasks import Point, Task
from tests.cases import Case
from tests.tuning.layers import task_of

TARGET = resolve("x86-64-v3")
WIDE = Case("wide", "conv2d", (1, 20, 12, 16), (32, 3, 3, 16), padding=(1, 1, 1, 1))
DEEP = Case("deep", "conv2d", (1, 8, 8, 32), (32, 3, 3, 32), padding=(1, 1, 1, 1))
FEW = Case("few", "linear", (64, 32), (48, 32))


def tasks_in(folder: Path, *cases: Case) -> list[Task]:
    return [task_of(case, folder, 1, TARGET) for case in cases]


class Formula:
    """Measures nothing: a candidate costs by what its plan does twice, and the kernel.

    Args:
        noise: standard deviation of a ratio of few turns; long races have none.
        seed: of the noise.

    Attributes:
        asked: every (task, point, turns) so far.
    """

    def __init__(self, noise: float = 0.0, seed: int = 0):
        self._noise, self._random = noise, random.Random(seed)
        self._searches: dict[str, Search] = {}
        self.asked: list[tuple[str, Point, int]] = []

    def machine(self, target: Target) -> Machine:
        return Machine.of(target, "synthetic", (32768, 1 << 20))

    def cost(self, task: Task, point: Point) -> float:
        """The true cost, in some unit."""
        if task.key not in self._searches:
            self._searches[task.key] = Search(task)
        search = self._searches[task.key]
        if (point.kernel, point.weights) not in search.variants:
            return 3.0
        found, cost = search.of(point), 1.0
        for name in ("rows twice", "tile rows twice", "tile columns twice"):
            cost *= found.get(name, 1.0)
        cost *= 1 + 0.1 * abs(found.get("tasks", 0.0) - 2)
        cost *= 1 + 0.5 / found.get("outputs of a tile", 1.0)
        return cost * (0.9 if "winograd" in point.kernel else 1.0)

    def ratio(self, task: Task, point: Point) -> float:
        """The true ratio to the reference."""
        return self.cost(task, point) / self.cost(task, task.reference)

    def measure(self, task: Task, points: Sequence[Point], turns: int = TURNS) -> Iterator[Outcome]:
        for point in points:
            self.asked.append((task.key, point, turns))
            spread = self._noise if turns == TURNS else 0.0
            ratio = self.ratio(task, point) * max(0.2, self._random.gauss(1, spread))
            yield Outcome(point, ratio * 1e-3, ratio, 0.001)

    def close(self) -> None:
        """Nothing was started."""
