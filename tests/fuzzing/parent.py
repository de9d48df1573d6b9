"""Sends mutants' numbers to a child, counts what they came to, and names those that went wrong."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 10.0
"""Of processor time that a mutant may take."""
PATIENCE = 900.0
"""Seconds of the clock after which a child that gives no answer waits for ever."""
HOPE = 60.0
"""Of processor time without an answer, after which there will be none; the first call imports."""


@dataclass
class Hunt:
    """Mutants, met by children in a folder of their own. Use it in a ``with``.

    Attributes:
        folder: empty; gets the seeds, and the folder that children run in.
        patience: `PATIENCE`.
        ends: how often mutants came to what.
        failures: those that went wrong, each with how to meet it again.
    """

    folder: Path
    patience: float = PATIENCE
    ends: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    _child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Hunt:
        for name in ("seeds", "here", "tmp"):
            (self.folder / name).mkdir()
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def plant(self, kind: str, seeds: Sequence[bytes]) -> None:
        """Gives a kind its seeds; before the first mutant is met."""
        place = self.folder / "seeds" / kind
        place.mkdir()
        for i, seed in enumerate(seeds):
            (place / f"{i:04}").write_bytes(seed)

    def run(self, kind: str, numbers: Iterable[int]) -> None:
        """Meets mutants; a child that dies or hangs is replaced."""
        for number in numbers:
            self._judge(kind, number, self._ask(kind, number))

    def _judge(self, kind: str, number: int, found: dict[str, Any]) -> None:
        self.ends[found["end"]] += 1
        wrong = found["escaped"]
        if found["left"]:
            wrong = f"left behind: {found['left']}"
        if found["seconds"] > SECONDS:
            wrong = f"took {found['seconds']:.0f} s"
        if wrong:
            again = f"python -m tests.fuzzing.child {self.folder}/seeds {kind} {number}"
            self.failures.append(f"{again}\n{wrong}")

    def _ask(self, kind: str, number: int) -> dict[str, Any]:
        child = self._child = self._child or self._start()
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(f"{kind} {number}\n".encode())
        ready = self._answers(child)
        line = child.stdout.readline() if ready else b""
        if line:
            return dict(json.loads(line))
        self._end()
        said = (self.folder / "said").read_text(errors="replace")[-3000:]
        why = f"exit code {child.returncode}\n{said}" if ready else "no answer: it hangs"
        end = "died" if ready else "hangs"
        return {"end": end, "escaped": why, "left": [], "seconds": 0.0}

    def _answers(self, child: subprocess.Popen[bytes]) -> bool:
        """Waits for an answer or the child's end; judged by its own time, for machines are busy."""
        start, end = _processor_time(child.pid), time.monotonic() + self.patience
        assert child.stdout is not None
        while time.monotonic() < end and _processor_time(child.pid) - start < HOPE:
            if select.select([child.stdout], [], [], 1.0)[0]:
                return True
        return False

    def _start(self) -> subprocess.Popen[bytes]:
        tmp = str(self.folder / "tmp")
        env = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": tmp, "NYBBLE_CACHE": tmp}
        with (self.folder / "said").open("wb") as said:
            return subprocess.Popen(
                [sys.executable, "-m", "tests.fuzzing.child", self.folder / "seeds"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said,
                cwd=self.folder / "here", env=env, bufsize=0,
            )  # fmt: skip

    def _end(self) -> None:
        """Ends the child; it has answered, or never will."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.communicate()  # closes its pipes


def _processor_time(pid: int) -> float:
    """Seconds that a process has computed, as Linux counts them."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, after_name[11:13])) / os.sysconf("SC_CLK_TCK")
