"""The space of a task: the kernels that can compile it, times the choices of each one's knobs.

There is no list of knobs: `Kernel.plan` is asked with knobs that draw instead of taking defaults,
so a choice that depends on earlier ones is always legal.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from nybble.errors import ScheduleError
from nybble.schedules.cuda.arch import CudaTarget
from nybble.schedules.kernel import PARALLEL, Kernel, Knobs, Problem
from nybble.schedules.select import widened
from nybble.schedules.table import CUDA, KERNELS
from nybble.schedules.target import Target
from nybble.tuning.tasks import Point, Task

T = TypeVar("T")
REPAIRS = 40  # draws of a point whose choices do not go together


@dataclass
class Drawn(Knobs):
    """Knobs that keep the decisions they were given where those are legal, and draw the others.

    Attributes:
        random: draws; None takes the default instead.
        taken: what was decided, by knob name.
    """

    random: random.Random | None = None
    taken: dict[str, Any] = field(default_factory=dict)

    def pick(self, name: str, choices: Sequence[T], default: T) -> T:
        """A legal choice, noted in ``taken``."""
        self.space[name] = tuple(choices)
        value = self.decisions.get(name, default)
        if value not in choices or (name not in self.decisions and self.random):
            value = self.random.choice(choices) if self.random else default
        self.taken[name] = value
        return value


@dataclass(frozen=True)
class Variant:
    """One kernel for one storage of a task's weights: a part of its space.

    Attributes:
        kernel: the family.
        problem: the layer as the kernel sees it.
        target: the machine.
        fixed: decisions that are not searched, such as ``parallel`` for one thread.
    """

    kernel: Kernel
    problem: Problem
    target: Target
    fixed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def weights(self) -> str | None:
        """The dtype of the weights as stored."""
        return self.problem.weights.dtype if self.problem.weights else None

    def default(self) -> Point:
        """The point of a compilation without records."""
        return self._point(Drawn(dict(self.fixed)))

    def draw(self, rng: random.Random, decisions: Mapping[str, Any] | None = None) -> Point:
        """A random point; ``decisions`` are kept where they are legal.

        Where choices do not go together, one of ``decisions`` is given up and others are drawn.
        """
        kept = dict(decisions or {})
        for _ in range(REPAIRS):
            try:
                return self._point(Drawn({**kept, **self.fixed}, random=rng))
            except ScheduleError:
                if kept:
                    del kept[rng.choice(sorted(kept))]
        return self.default()

    def mutate(self, point: Point, rng: random.Random) -> Point:
        """The point with one decision drawn anew, or the same one where there is no choice."""
        knobs = Drawn({**dict(point.decisions), **self.fixed})
        self._ask(knobs)
        open_ = [k for k, v in knobs.space.items() if len(v) > 1 and k not in self.fixed]
        if not open_:
            return point
        name = rng.choice(open_)
        others = [value for value in knobs.space[name] if value != knobs.taken[name]]
        return self.draw(rng, {**knobs.taken, name: rng.choice(others)})

    def cross(self, one: Point, two: Point, rng: random.Random) -> Point:
        """Each decision from one of two points."""
        first, second = dict(one.decisions), dict(two.decisions)
        mixed = {k: rng.choice((v, second.get(k, v))) for k, v in first.items()}
        return self.draw(rng, mixed)

    def plan(self, point: Point) -> Any:
        """What the kernel would follow; None for a kernel without choices."""
        return self._ask(point.knobs())

    def every(self) -> Iterator[Point]:
        """All points."""
        return self._walk({})

    def _walk(self, decided: dict[str, Any]) -> Iterator[Point]:
        knobs = Drawn({**decided, **self.fixed})
        legal = True
        try:
            self._ask(knobs)
        except ScheduleError:  # all knobs were asked for: only together their choices are refused
            legal = False
        free = [name for name in knobs.space if name not in decided and name not in self.fixed]
        if not free and legal:
            yield Point.of(self.kernel.name, self.weights, knobs.taken)
        for value in knobs.space[free[0]] if free else ():
            yield from self._walk({**decided, free[0]: value})

    def _point(self, knobs: Drawn) -> Point:
        self._ask(knobs)
        return Point.of(self.kernel.name, self.weights, knobs.taken)

    def _ask(self, knobs: Knobs) -> Any:
        return self.kernel.plan(self.problem, self.target, knobs)


def variants_of(task: Task) -> list[Variant]:
    """Every kernel that can compile a task's layer, in whatever storage of its weights.

    Kernels that are slow as far as is known are among them; the last resort is only where nothing
    else can.
    """
    forms = [task.problem, *widened(task.problem)]
    known = CUDA if isinstance(task.target, CudaTarget) else KERNELS
    of_op = [kernel for kernel in known if kernel.op == task.problem.op]
    *kernels, last = of_op
    found = [(k, f) for f in forms for k in kernels if k.refuses(f, task.target) is None]
    found = found or [(last, task.problem)]
    return [_variant(kernel, form, task) for kernel, form in found]


def _variant(kernel: Kernel, problem: Problem, task: Task) -> Variant:
    knobs = Drawn()
    kernel.plan(problem, task.target, knobs)
    alone = task.threads == 1 and PARALLEL in knobs.space
    return Variant(kernel, problem, task.target, {PARALLEL: False} if alone else {})
