"""Which decisions a layer's kernel gets: recorded ones, those of the nearest problem, or defaults.

Only records of long races count. One is *exact* for the same problem, measured by the same kernel
sources on the same kind of machine with as many threads. Only such a record may put another kernel
in the place of the table's first. Any other record of the kernel that won is near or far; the
nearest whose decisions are legal here is taken.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from nybble.errors import ScheduleError
from nybble.schedules import problems
from nybble.schedules.cuda.arch import CudaTarget
from nybble.schedules.kernel import PARALLEL, Kernel, Knobs, Problem, usual
from nybble.schedules.machine import Machine, runs_here
from nybble.schedules.records import Decisions, Record, Records
from nybble.schedules.target import Target

FAR = 3.0  # octaves: half the resolution and twice the channels
ELSEWHERE = 0.5  # how far other machines, sources or threads count
TRIES = 8  # problems nearby whose decisions are tried
BEST = 2  # records of each of them


@dataclass(frozen=True)
class Match:
    """Decisions for a layer, and where they are from.

    Attributes:
        decisions: of the kernel's knobs; what is missing takes its default.
        kind: ``exact``, ``nearest`` or ``default``.
        record: the one that they are from; the best one where the defaults were measured, which
            is ``exact`` without decisions, and nothing beat them.
        ratio: of the decisions' time to the reference's, as recorded; None where nothing is known.
    """

    decisions: Decisions = ()
    kind: Literal["exact", "nearest", "default"] = "default"
    record: Record | None = None
    ratio: float | None = None

    def knobs(self, threads: int | None) -> Knobs:
        """Knobs that take these decisions, and the usual ones of so many threads beside them."""
        return Knobs({**usual(threads).decisions, **dict(self.decisions)})


DEFAULT = Match()


@dataclass(frozen=True)
class Default:
    """What a layer gets without records.

    Attributes:
        kernel: the family.
        problem: the layer as the kernel sees it.
    """

    kernel: Kernel
    problem: Problem

    @property
    def name(self) -> tuple[str, str | None]:
        """As `Record.reference` has it."""
        return self.kernel.name, _stored(self.problem)


class Replay:
    """Records as one target sees them.

    Attributes:
        foreign: how many records are for other targets.

    Args:
        records: of any targets.
        target: that is compiled for.
        threads: that the library will run with; None if that is not known. A record of one thread
            then counts only where neither it nor the default would start others.
    """

    def __init__(self, records: Records, target: Target, threads: int | None = None):
        self.target, self.threads = target, threads
        self._machine = Machine.here(target) if runs_here(target) else None
        self._exact: dict[Problem, list[Record]] = {}
        self._near: dict[Any, list[list[Record]]] = defaultdict(list)
        self._unsure: set[Problem] = set()
        found = self._add(records)
        self._own = {id(record) for record in found}
        self.foreign = len(found) - sum(record.machine.fits(target) for record in found)
        if records.behind is not None:
            self._add(records.behind)
        self._illegal: dict[int, Record] = {}
        self._serial: dict[int, Record] = {}

    def best(self, problem: Problem, threads: int | None = None) -> Record | None:
        """The fastest exact record of a problem, None without one.

        Args:
            problem: with its weights in their own width.
            threads: that it was measured with; any number when omitted.
        """
        found = self._of(problem)
        return next((r for r in found if threads in (None, r.threads)), None)

    def exact(self, problem: Problem) -> Sequence[Record]:
        """The exact records of a problem for the library's threads, best first.

        Args:
            problem: with its weights in their own width.
        """
        return [r for r in self._of(problem) if self.threads in (None, r.threads)]

    def winners(self, problem: Problem, default: Default) -> Iterator[Record]:
        """Exact records of other kernels that beat the default one beyond the noise, best first.

        Args:
            problem: with its weights in their own width.
            default: what the table's order gives.
        """
        by_default = self._usual(default.kernel, default.problem)
        found = [r for r in self._of(problem) if r.reference == default.name]
        found = [record for record in found if self._same_threads(record, by_default)]
        mine = [r.upper for r in found if (r.kernel, r.weights) == default.name]
        limit = min([1.0, *mine])
        yield from (r for r in found if r.upper < limit and (r.kernel, r.weights) != default.name)

    def is_legal(self, record: Record, kernel: Kernel, problem: Problem) -> bool:
        """Whether the kernel still offers an exact record's decisions; counts it if not.

        Args:
            record: of the kernel.
            kernel: named by the record.
            problem: as the kernel sees it.
        """
        legal = self._taken(kernel, problem, record.decisions) is not None
        if not legal:
            self.refuse(record)
        return legal

    def matches(self, kernel: Kernel, problem: Problem, asked: Problem) -> Iterator[Match]:
        """Decisions for a kernel, the best ones first; the last ones are the defaults.

        Args:
            kernel: the one taken.
            problem: as the kernel sees it.
            asked: with its weights in their own width.
        """
        default = Default(kernel, problem)
        by_default = self._usual(kernel, problem)
        mine = [r for r in self._of(asked) if (r.kernel, r.weights) == default.name]
        mine = [record for record in mine if self._same_threads(record, by_default)]
        limit = _limit(default, by_default, mine)
        for record in mine:
            if record.upper < (1.0 if limit is None else limit) and (
                self.is_legal(record, kernel, problem)
            ):
                yield Match(record.decisions, "exact", record, record.ratio)
        legal = next((r for r in mine if self.is_legal(r, kernel, problem)), None)
        if limit is not None and legal is not None:  # nothing beat the defaults
            yield Match((), "exact", legal, limit)
        for record in self._nearest(default, asked):
            if self._like_threads(record, by_default) and (
                self._taken(kernel, problem, record.decisions) is not None
            ):
                yield Match(record.decisions, "nearest", record, record.ratio)
        yield DEFAULT

    def refuse(self, record: Record) -> None:
        """Notes that an exact record's decisions are not legal today."""
        self._illegal[id(record)] = record

    def notes(self) -> Iterator[str]:
        """What was left aside so far, in words."""
        if self.foreign:
            yield f"{self.foreign} for other targets"
        if self._unsure:
            yield f"those of {len(self._unsure)} layers, not raced to the end (let it be tuned on)"
        illegal = len(self._illegal.keys() & self._own)
        if illegal:
            yield f"{illegal} with decisions that the kernels do not offer today"
        serial = len({r.problem for i, r in self._serial.items() if i in self._own})
        if serial:
            yield (
                f"those of {serial} layers, measured with another number of threads than the "
                "library may run with (say threads=…, or --threads)"
            )

    # ------------------------------------------------------------ parts

    def _of(self, problem: Problem) -> Sequence[Record]:
        """The exact records of a problem, best first."""
        return self._exact.get(problems.renamed(problem), ())

    def _add(self, records: Records) -> list[Record]:
        """Sorts records in, behind those that are there; returns what they are here."""
        names: dict[int, Problem] = {}
        found = []
        for record in records.settled():
            key = id(record.problem)
            if key not in names:
                names[key] = problems.renamed(record.problem)
            found.append(replace(record, problem=names[key]))
        fitting = [record for record in found if record.machine.fits(self.target)]
        exact: dict[int, list[Record]] = defaultdict(list)
        near: dict[Any, list[Record]] = defaultdict(list)
        sure = [record for record in fitting if record.is_sure]
        for record in sorted(sure, key=lambda r: r.upper):
            if self._is_exact(record):
                exact[id(record.problem)].append(record)
            kind = record.problem.op, record.kernel, record.weights
            place = id(record.problem), id(record.machine), record.sources, record.threads
            if record.wins and len(near[kind, place]) < BEST:
                near[kind, place].append(record)
        for (kind, _), several in near.items():
            self._near[kind].append(several)
        self._exact = _by_problem(exact.values()) | self._exact
        hopes = {id(r.problem): r.problem for r in fitting if r.upper < 1 and self._is_exact(r)}
        self._unsure |= {problem for problem in hopes.values() if problem not in self._exact}
        return found

    def _is_exact(self, record: Record) -> bool:
        return self._is_here(record) and record.is_current

    def _is_here(self, record: Record) -> bool:
        """Whether a record's times hold where the code will run, as far as that is known.

        GPUs are alike by their architecture: where code for them is made there is seldom one.
        """
        if isinstance(self.target, CudaTarget):
            return record.machine.arch in self.target.archs
        return self._machine is None or record.machine.is_like(self._machine)

    def _nearest(self, default: Default, asked: Problem) -> Iterator[Record]:
        """Records of the kernel that won, by distance; of each problem the best few."""
        ranked: list[tuple[float, float, int, list[Record]]] = []
        for found in self._near.get((asked.op, *default.name), ()):
            away = self._away(found[0], asked)
            if away is not None and away <= FAR:
                ranked.append((away, found[0].upper, len(ranked), found))
        for *_, found in sorted(ranked)[:TRIES]:
            yield from found

    def _away(self, record: Record, asked: Problem) -> float | None:
        """How little a record says of a problem here."""
        octaves = problems.distance(record.problem, asked)
        if octaves is None:
            return None
        elsewhere = not self._is_here(record)
        differs = self.threads not in (None, record.threads)
        return octaves + ELSEWHERE * (elsewhere + differs + (not record.is_current))

    def _usual(self, kernel: Kernel, problem: Problem) -> dict[str, Any] | None:
        """All decisions of a compilation without records."""
        knobs = _Heard(usual(self.threads).decisions)
        try:
            kernel.plan(problem, self.target, knobs)
        except ScheduleError:
            return None
        return knobs.taken

    def _taken(self, kernel: Kernel, problem: Problem, given: Decisions) -> dict[str, Any] | None:
        """All decisions that a kernel would follow, None if those given are not legal."""
        knobs = _Heard(dict(given))
        try:
            kernel.plan(problem, self.target, knobs)
        except ScheduleError:
            return None
        return knobs.taken if knobs.decisions.keys() <= knobs.taken.keys() else None

    def _same_threads(self, record: Record, by_default: Mapping[str, Any] | None) -> bool:
        """Whether a record of a problem holds for the library's threads."""
        if self._holds(record, by_default):
            return True
        self._serial[id(record)] = record
        return False

    def _holds(self, record: Record, by_default: Mapping[str, Any] | None) -> bool:
        if record.threads == self.threads or (self.threads is None and record.threads > 1):
            return True
        shared = (by_default or {}).get(PARALLEL, False)
        decided = dict(record.decisions).get(PARALLEL, shared)
        return not (shared or decided)  # one thread does all of it in any case

    def _like_threads(self, record: Record, by_default: Mapping[str, Any] | None) -> bool:
        """The same for a record that is not exact: several threads are like several others."""
        several = self.threads is not None and min(record.threads, self.threads) > 1
        return several or self._holds(record, by_default)


def _by_problem(several: Iterable[list[Record]]) -> dict[Problem, list[Record]]:
    """Records by equal problems, best first."""
    found: dict[Problem, list[Record]] = defaultdict(list)
    for records in several:
        found[records[0].problem] += records
    return {problem: sorted(rows, key=lambda r: r.upper) for problem, rows in found.items()}


def _limit(
    default: Default, by_default: Mapping[str, Any] | None, mine: Iterable[Record]
) -> float | None:
    """The ratio that decisions of a kernel must beat, its defaults'; None if not measured."""
    for record in mine:
        if record.reference == default.name:
            return 1.0
        if dict(record.decisions) == by_default:
            return record.ratio
    return None


@dataclass
class _Heard(Knobs):
    """Knobs that remember what was decided."""

    taken: dict[str, Any] = field(default_factory=dict)

    def pick(self, name: str, choices: Any, default: Any) -> Any:
        self.taken[name] = super().pick(name, choices, default)
        return self.taken[name]


def _stored(problem: Problem) -> str | None:
    return problem.weights.dtype if problem.weights else None


def asked(problem: Problem, own: Problem) -> Problem:
    """A problem as a kernel sees it, with its weights in their own width again."""
    return replace(problem, weights=own.weights)
