"""Which decisions a layer's kernel gets: recorded ones, those of the nearest problem, or defaults.

A record is *exact* for the same problem, measured by the same kernel sources on the same kind of
machine with as many threads. Only such a record may put another kernel in the place of the table's
first. Any other record of the kernel that won is near or far; the nearest whose decisions are legal
here is taken.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from nybble.errors import ScheduleError
from nybble.schedules import problems
from nybble.schedules.kernel import Kernel, Knobs, Problem
from nybble.schedules.records import Decisions, Machine, Record, Records, runs_here
from nybble.schedules.target import CpuTarget

FAR = 3.0  # octaves: half the resolution and twice the channels
ELSEWHERE = 0.5  # how far other machines, sources or threads count
TRIES = 8  # problems nearby whose decisions are tried
PARALLEL = "parallel"


@dataclass(frozen=True)
class Match:
    """Decisions for a layer, and where they are from.

    Attributes:
        decisions: of the kernel's knobs; what is missing takes its default.
        kind: ``exact``, ``nearest`` or ``default``.
        record: the one that they are from. None for defaults: with ``exact`` they were measured,
            and nothing beat them.
    """

    decisions: Decisions = ()
    kind: Literal["exact", "nearest", "default"] = "default"
    record: Record | None = None

    @property
    def ratio(self) -> float | None:
        """The recorded ratio to the reference; None where nothing was recorded."""
        if self.record is None:
            return 1.0 if self.kind == "exact" else None
        return self.record.ratio

    def knobs(self) -> Knobs:
        """Knobs that take these decisions."""
        return Knobs(dict(self.decisions))


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

    Args:
        records: of any targets.
        target: that is compiled for.
        threads: that the library will run with; None if that is not known. A record of one thread
            then counts only where neither it nor the default would start others.
    """

    def __init__(self, records: Records, target: CpuTarget, threads: int | None = None):
        self.target, self.threads = target, threads
        settled = Records(
            replace(r, problem=problems.renamed(r.problem)) for r in records
        ).settled()
        fitting = [record for record in settled if record.machine.fits(target)]
        self.ignored = Counter[str]()
        self._count("for other targets", len(settled) - len(fitting))
        self._machine = Machine.here(target) if runs_here(target) else None
        self._illegal: set[Record] = set()
        self._serial: set[Record] = set()
        self._exact: dict[Problem, list[Record]] = defaultdict(list)
        self._near: dict[Any, list[Record]] = defaultdict(list)
        for record in sorted(fitting, key=lambda r: r.upper):
            if self._is_exact(record):
                self._exact[record.problem].append(record)
            if record.wins:
                self._near[record.problem.op, record.kernel, record.weights].append(record)

    def best(self, problem: Problem, threads: int | None = None) -> Record | None:
        """The fastest exact record of a problem, None without one.

        Args:
            problem: with its weights in their own width.
            threads: that it was measured with; any number when omitted.
        """
        found = self._of(problem)
        return next((r for r in found if threads in (None, r.threads)), None)

    def winners(self, problem: Problem, default: Default) -> Iterator[Record]:
        """Exact records of other kernels that beat the default one beyond the noise, best first.

        Args:
            problem: with its weights in their own width.
            default: what the table's order gives.
        """
        found = [r for r in self._of(problem) if r.reference == default.name]
        mine = [r.upper for r in found if (r.kernel, r.weights) == default.name]
        limit = min([1.0, *mine])
        seen = {default.name}
        for record in found:
            if record.upper < limit and (record.kernel, record.weights) not in seen:
                seen.add((record.kernel, record.weights))
                yield record

    def allows(self, record: Record, kernel: Kernel, problem: Problem, default: Default) -> bool:
        """Whether an exact record's decisions are legal, and measured with as many threads.

        Args:
            record: of the kernel.
            kernel: named by the record.
            problem: as that kernel sees it.
            default: what it would take the place of.
        """
        decided = self._taken(kernel, problem, dict(record.decisions))
        if decided is None:
            self._illegal.add(record)
            return False
        return self._same_threads(record, decided, default)

    def matches(self, kernel: Kernel, problem: Problem, asked: Problem) -> Iterator[Match]:
        """Decisions for a kernel, the best ones first; the last ones are the defaults.

        Args:
            kernel: the one taken.
            problem: as the kernel sees it.
            asked: with its weights in their own width.
        """
        default = Default(kernel, problem)
        mine = [r for r in self._of(asked) if (r.kernel, r.weights) == default.name]
        counted = [r for r in mine if self.allows(r, kernel, problem, default)]
        limit = self._limit(default, counted)
        for record in counted:
            if record.upper < (1.0 if limit is None else limit):
                yield Match(record.decisions, "exact", record)
        if limit is not None:  # the defaults were measured, and nothing beat them
            yield Match(kind="exact")
        for record in self._nearest(default, asked):
            decided = self._taken(kernel, problem, dict(record.decisions))
            if decided is not None and self._like_threads(record, decided, default):
                yield Match(record.decisions, "nearest", record)
        yield DEFAULT

    def refuse(self, match: Match) -> None:
        """Notes that a match's decisions could not be built."""
        if match.kind == "exact" and match.record is not None:
            self._illegal.add(match.record)

    def notes(self) -> Iterator[str]:
        """What was left aside so far, in words."""
        yield from (f"{count} {what}" for what, count in sorted(self.ignored.items()))
        if self._illegal:
            yield f"{len(self._illegal)} with decisions that the kernels do not offer today"
        if self._serial:
            yield (
                f"{len(self._serial)} measured with other numbers of threads than the library "
                "may run with (say threads=…, or --threads)"
            )

    # ------------------------------------------------------------ parts

    def _of(self, problem: Problem) -> Sequence[Record]:
        """The exact records of a problem, best first."""
        return self._exact.get(problems.renamed(problem), ())

    def _count(self, what: str, count: int) -> None:
        if count:
            self.ignored[what] += count

    def _is_exact(self, record: Record) -> bool:
        here = self._machine is None or record.machine.is_like(self._machine)
        return here and record.is_current

    def _limit(self, default: Default, mine: Iterable[Record]) -> float | None:
        """The ratio that decisions of a kernel must beat, its defaults'; None if not measured."""
        usual = self._taken(default.kernel, default.problem, {})
        for record in mine:
            if record.reference == default.name:
                return 1.0
            if self._taken(default.kernel, default.problem, dict(record.decisions)) == usual:
                return record.ratio
        return None

    def _nearest(self, default: Default, asked: Problem) -> Iterator[Record]:
        """Records of the kernel that won, by distance; of each problem the best two."""
        best: dict[Any, list[Record]] = defaultdict(list)
        for record in self._near.get((asked.op, *default.name), ()):
            place = (record.problem, record.machine, record.sources, record.threads)
            if len(best[place]) < 2:
                best[place].append(record)
        ranked: list[tuple[float, float, int, list[Record]]] = []
        for found in best.values():
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
        elsewhere = self._machine is not None and not record.machine.is_like(self._machine)
        differs = self.threads not in (None, record.threads)
        return octaves + ELSEWHERE * (elsewhere + differs + (not record.is_current))

    def _taken(
        self, kernel: Kernel, problem: Problem, decisions: dict[str, Any]
    ) -> dict[str, Any] | None:
        knobs = _Heard(decisions)
        try:
            kernel.plan(problem, self.target, knobs)
        except ScheduleError:
            return None
        return knobs.taken if decisions.keys() <= knobs.taken.keys() else None

    def _same_threads(self, record: Record, decided: Mapping[str, Any], default: Default) -> bool:
        """Whether a record holds for the library's threads."""
        if record.threads == self.threads or (self.threads is None and record.threads > 1):
            return True
        usual = self._taken(default.kernel, default.problem, {}) or {}
        if not (decided.get(PARALLEL) or usual.get(PARALLEL)):
            return True  # one thread does all of it in any case
        if record.problem == problems.renamed(asked(default.problem, record.problem)):
            self._serial.add(record)
        return False

    def _like_threads(self, record: Record, decided: Mapping[str, Any], default: Default) -> bool:
        """The same for a record that is not exact: several threads are like several others."""
        if record.threads > 1 and self.threads is not None and self.threads > 1:
            return True
        return self._same_threads(record, decided, default)


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
