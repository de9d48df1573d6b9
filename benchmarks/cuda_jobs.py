"""What is done on a machine with a GPU, in which order, within a time limit; NumPy is not needed.

    machine    bandwidth of memory
    check      a kernel against the law
    time       a kernel in turns with its peers, once it is right
    network    a whole network against what its code for CPUs gave, in turns with torch's
    sanitize   small kernels again under NVIDIA's compute-sanitizer

A job that is done has a line in the ledger, so a run that was stopped goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EARLY = 0.4  # of the limit: then what has a goal is timed, whatever is not checked yet
TOOLS = ("memcheck", "racecheck")
MACHINE = "machine 0"
Row = dict[str, Any]


@dataclass(frozen=True)
class Phase:
    """Jobs of one kind, in one process as long as none of them ends it.

    Attributes:
        kind: of the jobs.
        jobs: keys, ``check 12``, in order.
        share: of the time limit, after which the phase gives way; its rest comes later.
    """

    kind: str
    jobs: tuple[str, ...]
    share: float = 1.0


def phases(rows: Sequence[Row], check_only: bool = False) -> list[Phase]:
    """All jobs: numerics first, among them and among times what has a goal first.

    Args:
        rows: of ``rows.json``.
        check_only: no times.
    """
    numbers = range(len(rows))
    kernels = [i for i in numbers if "operands" not in rows[i]]
    networks = [i for i in numbers if "operands" in rows[i]]
    wanted = [i for i in kernels if rows[i].get("goal")]
    others = [i for i in kernels if not rows[i].get("goal")]
    timed = [i for i in wanted if rows[i]["timed"]]
    more = [i for i in others if rows[i]["timed"]]
    small = [i for i in kernels if not rows[i]["timed"]]
    found = [
        Phase("machine", (MACHINE,)),
        _phase("check", wanted),
        _phase("check", others, EARLY),
        _phase("time", sorted(timed, key=lambda i: not rows[i].get("default"))),
        _phase("network", networks),
        _phase("check", others),
        _phase("time", sorted(more, key=lambda i: not rows[i].get("default"))),
        Phase("sanitize", tuple(f"sanitize {tool}" for tool in TOOLS) if small else ()),
    ]
    unwanted = {"machine", "time", "sanitize"} if check_only else set()
    return [phase for phase in found if phase.jobs and phase.kind not in unwanted]


def _phase(kind: str, numbers: Iterable[int], share: float = 1.0) -> Phase:
    return Phase(kind, tuple(f"{kind} {i}" for i in numbers), share)


class Ledger:
    """The jobs that were begun and finished, as lines of a file that is only ever appended to.

    Attributes:
        done: what was found, by key.
        begun: how often each job was begun.
    """

    def __init__(self, path: Path):
        self.path = path
        self.done: dict[str, dict[str, Any]] = {}
        self.begun: dict[str, int] = {}
        self.last: str | None = None
        self._read = 0
        path.touch()
        self.refresh()

    def refresh(self) -> list[str]:
        """Reads what other processes have added; the keys that were finished since."""
        with self.path.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]  # a line may be half written
        self._read += len(whole)
        fresh = []
        for line in whole.splitlines():
            try:
                one = json.loads(line)
            except ValueError:  # torn, by a process that was killed
                continue
            if "begun" in one:
                self.last = one["begun"]
                self.begun[one["begun"]] = self.begun.get(one["begun"], 0) + 1
            elif "job" in one:
                self.done[one["job"]] = one
                fresh.append(one["job"])
        return fresh

    def begin(self, key: str) -> None:
        """Notes that a job begins: if it ends the process, it is to blame."""
        self._add({"begun": key})

    def finish(self, key: str, found: dict[str, Any]) -> None:
        """Notes what came of a job."""
        self._add({"job": key, **found})

    def left(self, phase: Phase) -> list[str]:
        """The jobs that are still to be done; what is wrong is not timed."""
        return [
            key for key in phase.jobs
            if key not in self.done and (phase.kind != "time" or self.is_right(key))
        ]  # fmt: skip

    def is_right(self, key: str) -> bool:
        """Whether the row of a job was checked and is right."""
        return bool(self.done.get(f"check {key.split()[1]}", {}).get("right"))

    def blamed(self) -> str | None:
        """The job that was begun last and not finished."""
        return self.last if self.last is not None and self.last not in self.done else None

    def _add(self, line: dict[str, Any]) -> None:
        before = self.path.read_bytes()[-1:]
        torn = b"\n" if before not in (b"", b"\n") else b""
        with self.path.open("ab") as file:
            file.write(torn + json.dumps(line).encode() + b"\n")


def gathered(rows: Sequence[Row], done: dict[str, dict[str, Any]]) -> list[Row]:
    """Every row with what was found of it; ``right`` is None where it was not reached."""
    made = []
    for i, row in enumerate(rows):
        found: dict[str, Any] = {"right": None, "why": "not reached"}
        for kind in ("check", "network", "time"):
            job = done.get(f"{kind} {i}", {})
            found |= {k: v for k, v in job.items() if k != "job"}
        made.append({**row, **found})
    return made
