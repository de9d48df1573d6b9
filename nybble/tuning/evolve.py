"""The search of one task: what was tried, and by evolution what to try next."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from math import log

from nybble.tuning.features import Features, features
from nybble.tuning.measure import Outcome
from nybble.tuning.model import CostModel, Sample
from nybble.tuning.space import Variant, variants_of
from nybble.tuning.tasks import Point, Task

PARENTS = 24  # measured candidates that evolution begins with
STRANGERS = 24  # drawn at random
CHILDREN = 40  # of a generation
KEPT = 32
GENERATIONS = 3
CURIOUS = 0.2  # share of a batch that is drawn at random, whatever the model says
MUTATED = 0.7  # share of children with one parent
DRAWS = 40  # in a row without a new point: the space is exhausted
HOPELESS = 3  # how quickly kernels behind the best one are drawn less often
SETTLED = 1e-9


class Search:
    """One task's space, what was measured of it, and what is worth measuring.

    Args:
        task: the task.

    Attributes:
        variants: the kernels that can compile the layer, by (kernel, weights).
        outcomes: of the points that were measured, the surest of each.
        best: the fastest point that was measured in many turns, None before there is one.
        is_exhausted: nothing is left to try.
    """

    def __init__(self, task: Task):
        self.task = task
        self.variants = {(v.kernel.name, v.weights): v for v in variants_of(task)}
        self.outcomes: dict[Point, Outcome] = {}
        self.best: Outcome | None = None
        self.is_exhausted = False
        self._sure: set[Point] = set()
        self._features: dict[Point, Features] = {}

    @property
    def measured(self) -> list[Outcome]:
        """The points with a time, fastest first."""
        timed = [o for o in self.outcomes.values() if o.ratio is not None]
        return sorted(timed, key=lambda o: o.ratio or 0.0)

    @property
    def ratio(self) -> float:
        """Of the best point that is sure, to the reference; 1 without one."""
        return min(1.0, self.best.ratio) if self.best and self.best.ratio else 1.0

    @property
    def reference(self) -> float | None:
        """Seconds of a call of the reference, None before anything was measured.

        What ran in turns with each candidate says it too: the fastest quarter of them, because
        others may have kept the machine busy for a while.
        """
        known = sorted(o.seconds / o.ratio for o in self.measured if o.seconds and o.ratio)
        return known[len(known) // 4] if known else None

    def samples(self) -> list[Sample]:
        """What the cost model learns from."""
        return [
            Sample(self.task.key, self.of(o.point), o.ratio)
            for o in self.measured
            if o.ratio and (o.point.kernel, o.point.weights) in self.variants
        ]

    def of(self, point: Point) -> Features:
        """The features of a point."""
        if point not in self._features:
            variant = self.variants[point.kernel, point.weights]
            self._features[point] = features(variant, point)
        return self._features[point]

    def tell(self, outcome: Outcome) -> None:
        """Notes what became of a point; a kernel that refuses the layer's values is dropped."""
        self.outcomes[outcome.point] = outcome
        key = outcome.point.kernel, outcome.point.weights
        is_known = any(self._is_of(key, one.point) for one in self.measured)
        if outcome.failure == "illegal" and len(self.variants) > 1 and not is_known:
            self.variants.pop(key, None)

    def confirm(self, outcome: Outcome) -> None:
        """Notes a measurement of many turns, which may be the best one."""
        self.tell(outcome)
        self._sure.add(outcome.point)
        if outcome.ratio is None:
            return
        if (
            self.best is None
            or self.best.point == outcome.point
            or upper(outcome) < upper(self.best)
        ):
            self.best = outcome

    def challenger(self) -> Outcome | None:
        """The point that seems faster than what is sure, None if there is none."""
        limit = min(1.0, upper(self.best)) if self.best else 1.0
        known = {*self._sure, self.task.reference}  # that races against itself
        unsure = (o for o in self.measured if o.point not in known)
        return next((o for o in unsure if o.ratio and o.ratio < limit), None)

    def propose(
        self, model: CostModel, count: int, rng: random.Random, seeds: Iterable[Point] = ()
    ) -> list[Point]:
        """Points that were not measured, the most promising first; none when all were.

        Args:
            model: ranks points; draws alone decide while it has not learnt anything.
            count: how many, at most.
            rng: draws.
            seeds: points of tasks alike, taken where they are legal here.
        """
        found: dict[Point, None] = {}
        if not self.outcomes:
            found.update(dict.fromkeys(self._first(seeds)))
        wanted = count - round(CURIOUS * count)
        if model.is_fit and len(found) < wanted and self.variants:
            ranked = self._evolved(model, rng)
            found.update(dict.fromkeys(ranked[: wanted - len(found)]))
        while len(found) < count and self.variants:
            point = self._stranger(rng, found)
            if point is None:
                self.is_exhausted = len(found) == 0
                break
            found[point] = None
        return [point for point in found if point not in self.outcomes]

    # ------------------------------------------------------------ evolution

    def _first(self, seeds: Iterable[Point]) -> list[Point]:
        """The reference, every kernel's defaults, and what was best elsewhere."""
        found = [self.task.reference, *(variant.default() for variant in self.variants.values())]
        for seed in seeds:
            variant = self.variants.get((seed.kernel, seed.weights))
            if variant is not None:
                found.append(variant.draw(random.Random(0), dict(seed.decisions)))
        return found

    def _evolved(self, model: CostModel, rng: random.Random) -> list[Point]:
        """Points that were not measured, as the model ranks them, after some generations."""
        mine = [o.point for o in self.measured]
        people = [p for p in mine if (p.kernel, p.weights) in self.variants][:PARENTS]
        people += [self._drawn(rng) for _ in range(STRANGERS)]
        seen = dict.fromkeys(people)
        for _ in range(GENERATIONS):
            people = self._ranked(model, dict.fromkeys(people))[:KEPT]
            children = [self._child(people, rng) for _ in range(CHILDREN)]
            seen.update(dict.fromkeys(children))
            people += children
        return [p for p in self._ranked(model, seen) if p not in self.outcomes]

    def _child(self, people: Sequence[Point], rng: random.Random) -> Point:
        parent = people[min(int(rng.expovariate(4 / len(people))), len(people) - 1)]
        variant = self._variant(parent)
        mates = [p for p in people if (p.kernel, p.weights) == (parent.kernel, parent.weights)]
        if rng.random() < MUTATED or len(mates) < 2:
            return variant.mutate(parent, rng)
        return variant.cross(parent, rng.choice(mates), rng)

    def _ranked(self, model: CostModel, points: Iterable[Point]) -> list[Point]:
        points = list(points)
        scores = model.predict([self.of(point) for point in points])
        order = sorted(range(len(points)), key=lambda i: float(scores[i]))
        return [points[i] for i in order]

    def _variant(self, point: Point) -> Variant:
        return self.variants[point.kernel, point.weights]

    # ------------------------------------------------------------ drawing

    def _stranger(self, rng: random.Random, taken: Iterable[Point]) -> Point | None:
        """A random point that is neither measured nor taken; None after many draws in vain."""
        taken = set(taken)
        for _ in range(DRAWS):
            point = self._drawn(rng)
            if point not in taken and point not in self.outcomes:
                return point
        left = (p for v in self.variants.values() for p in v.every())
        return next((p for p in left if p not in taken and p not in self.outcomes), None)

    def _drawn(self, rng: random.Random) -> Point:
        """A random point, of kernels that were far behind less often."""
        keys = list(self.variants)
        key = rng.choices(keys, [self._hope(key) for key in keys])[0]
        return self.variants[key].draw(rng)

    def _hope(self, key: tuple[str, str | None]) -> float:
        """How often a kernel is drawn, by its best point so far: 1 for the best kernel."""
        mine = [o.ratio for o in self.measured if o.ratio and self._is_of(key, o.point)]
        best = self.measured[0].ratio if self.measured else None
        if not mine or not best:
            return 1.0
        return float(max(SETTLED, (best / min(mine)) ** HOPELESS))

    @staticmethod
    def _is_of(key: tuple[str, str | None], point: Point) -> bool:
        return (point.kernel, point.weights) == key


def upper(outcome: Outcome) -> float:
    """The ratio as it may be at worst."""
    return (outcome.ratio or float("inf")) * (1 + outcome.noise)


def similarity(one: Task, two: Task) -> float:
    """1 for layers of the same shape, falling to 0 with the ratio of their work."""
    if one.problem.op != two.problem.op or not one.problem.macs or not two.problem.macs:
        return 0.0
    return float(max(0.0, 1 - abs(log(one.problem.macs / two.problem.macs)) / log(8)))
