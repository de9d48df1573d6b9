"""What was measured of kernels' decisions, as lines of a file that is only ever appended to.

A record says how fast one kernel with one set of decisions computes one layer on one kind of
machine. It can make a layer faster or slower, never wrong: kernels are exact whatever is decided.
How records are found for a layer: `nybble.schedules.replay`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import date
from math import isfinite
from pathlib import Path
from typing import Any

import nybble
from nybble import lines
from nybble.errors import NybbleError
from nybble.schedules import problems, sources
from nybble.schedules.kernel import Problem
from nybble.schedules.machine import Machine

SCHEMA = 1
SURE = 31  # turns: on a busy machine the best of many shorter races is luck
VERSION = "of another format"
Decisions = tuple[tuple[str, Any], ...]
"""The values of knobs, sorted by name; what is missing takes its default."""


@dataclass(frozen=True)
class Record:
    """One measured candidate that computed the right bits.

    Attributes:
        problem: the layer, with its weights in their own width.
        kernel: name of the kernel.
        weights: dtype of the weights as it stores them, None without weights.
        decisions: of its knobs.
        seconds: of one call, one image.
        ratio: of its time to the reference's, both run in turns; below 1 it is faster.
        noise: relative spread of the ratio.
        threads: that it was measured with.
        machine: that it was measured on.
        reference: kernel and weights of the layer by default, with default decisions: what the
            ratio is to. None if that is not known.
        turns: that the ratio is a median of; of two measurements of a candidate the longer counts.
        sources: `nybble.schedules.sources.digest` of kernel and reference when it was measured;
            today's when omitted.
        version: of Nybble.
        date: ISO, of the measurement.
    """

    problem: Problem
    kernel: str
    weights: str | None
    decisions: Decisions
    seconds: float
    ratio: float
    noise: float
    threads: int
    machine: Machine
    reference: tuple[str, str | None] | None = None
    turns: int = 1
    sources: str = ""
    version: str = field(default_factory=lambda: nybble.__version__)
    date: str = field(default_factory=lambda: date.today().isoformat())

    def __post_init__(self) -> None:
        """Fills in today's sources."""
        if not self.sources:
            object.__setattr__(self, "sources", self._today())

    @property
    def upper(self) -> float:
        """The ratio as it may be at worst: what records are ranked by."""
        return self.ratio * (1 + self.noise)

    @property
    def wins(self) -> bool:
        """Whether it is faster than the reference, surely and beyond the noise."""
        return self.is_sure and self.upper < 1

    @property
    def is_sure(self) -> bool:
        """Whether it was raced for long enough to be trusted."""
        return self.turns >= SURE

    @property
    def is_current(self) -> bool:
        """Whether the kernels' sources are still those that were measured."""
        return self.sources == self._today()

    def _today(self) -> str:
        reference = () if self.reference is None else (self.reference[0],)
        return sources.digest(self.problem.op, self.kernel, *reference)

    def to_dict(self) -> dict[str, Any]:
        """As a line of JSON has it."""
        return {
            "schema": SCHEMA, "op": problems.words(self.problem), "kernel": self.kernel,
            "weights": self.weights, "decisions": dict(self.decisions), "seconds": self.seconds,
            "ratio": self.ratio, "noise": self.noise, "turns": self.turns,
            "threads": self.threads, "reference": self.reference,
            "problem": problems.to_dict(self.problem),
            "machine": asdict(self.machine),
            "sources": self.sources, "nybble": self.version, "date": self.date,
        }  # fmt: skip

    @staticmethod
    def from_dict(data: Mapping[str, Any], known: dict[str, Any] | None = None) -> Record:
        """What `to_dict` gave, read back.

        Args:
            data: of one record.
            known: problems and machines of other records, which this one shares; it is added to.

        Raises:
            ValueError, TypeError, KeyError, AttributeError: it is no record.
        """
        shared, reference = {} if known is None else known, data["reference"]
        made = Record(
            problem=_shared(problems.from_dict, data["problem"], shared),
            kernel=str(data["kernel"]),
            weights=data["weights"],
            decisions=decisions_of(data["decisions"]),
            seconds=float(data["seconds"]),
            ratio=float(data["ratio"]),
            noise=float(data["noise"]),
            turns=int(data["turns"]),
            threads=int(data["threads"]),
            machine=_shared(Machine.from_dict, data["machine"], shared),
            reference=None if reference is None else (str(reference[0]), reference[1]),
            sources=str(data["sources"]),
            version=str(data["nybble"]),
            date=str(data["date"]),
        )
        hash((made.weights, made.decisions, made.reference))
        numbers = (made.seconds, made.ratio, made.noise)
        if not all(map(isfinite, numbers)) or min(numbers) < 0 or made.ratio == 0:
            raise ValueError(f"{numbers} are no times")
        return made


def _shared(read: Callable[[Any], Any], data: Any, known: dict[str, Any]) -> Any:
    """What ``read`` makes of data, once for all that is written alike."""
    text = repr(data)
    if text not in known:
        known[text] = read(data)
    return known[text]


def decisions_of(given: Mapping[str, Any]) -> Decisions:
    """Decisions in order."""
    return tuple(sorted((name, problems.as_tuples(value)) for name, value in given.items()))


class Records:
    """Records in the order in which they were made.

    Attributes:
        skipped: lines that were none, by the reason.
        path: of the file that `append` writes to, None for none.
        behind: others, for layers of which these say nothing.
    """

    def __init__(self, records: Iterable[Record] = (), path: Path | None = None):
        self._records = list(records)
        self.path = path
        self.skipped = Counter[str]()
        self.behind: Records | None = None

    @classmethod
    def read(cls, paths: Iterable[str | Path]) -> Records:
        """The records of files, the first file's first.

        Raises:
            NybbleError: a file is not there or cannot be read.
        """
        made = cls()
        for path in map(Path, paths):
            try:
                made._records += parse(lines.read(path, made.skipped), made.skipped)
            except OSError as error:
                raise NybbleError(
                    f"Cannot read the records {path}: {error.strerror}. Name a file that "
                    "`nybble tune --records` wrote."
                ) from error
        return made

    @classmethod
    def open(cls, path: str | Path) -> Records:
        """A file's records, which is made if it is not there, to append to.

        Raises:
            NybbleError: it cannot be read or written.
        """
        path = Path(path)
        with writing(path):
            lines.append(path, ())
        made = cls.read([path])
        made.path = path
        return made

    def append(self, *records: Record) -> None:
        """Adds records, also to the file: they are on the disk when this returns.

        Several processes may append to one file.

        Raises:
            NybbleError: the file cannot be written.
        """
        if self.path is not None:
            with writing(self.path):
                lines.append(self.path, (record.to_dict() for record in records))
        self._records += records

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records)

    def settled(self) -> list[Record]:
        """One record for each candidate: of several the one of the most turns, then the latest."""
        best: dict[Any, Record] = {}
        problem_of, machine_of = Numbers(), Numbers()
        for record in self:
            what = record.kernel, record.weights, record.decisions, record.threads, record.sources
            candidate = (problem_of(record.problem), machine_of(record.machine), *what)
            known = best.get(candidate)
            if known is None or record.turns >= known.turns:
                best[candidate] = record
        return list(best.values())


class Numbers:
    """Numbers values, equal ones alike; one that comes again is not hashed again."""

    def __init__(self) -> None:
        self._by_value: dict[Any, int] = {}
        self._by_id: dict[int, tuple[int, Any]] = {}  # the value, so that its id stays its own

    def __call__(self, value: Any) -> int:
        """The number of a value."""
        known = self._by_id.get(id(value))
        if known is None:
            number = self._by_value.setdefault(value, len(self._by_value))
            known = self._by_id[id(value)] = (number, value)
        return known[0]


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Says which records could not be written, and what to do.

    Raises:
        NybbleError: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise NybbleError(
            f"Cannot write the records {path}: {error.strerror}. Name a file in a folder that "
            "exists and can be written."
        ) from error


def parse(objects: Iterable[Mapping[str, Any]], skipped: Counter[str]) -> Iterator[Record]:
    """Records of lines' objects; equal problems and machines become one object.

    Args:
        objects: of `nybble.lines.read`.
        skipped: is told how many are none, and why.
    """
    known: dict[str, Any] = {}
    for data in objects:
        if data.get("schema") != SCHEMA:
            skipped[VERSION if "schema" in data else lines.CORRUPT] += 1
            continue
        try:
            yield Record.from_dict(data, known)
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError):
            skipped[lines.CORRUPT] += 1
