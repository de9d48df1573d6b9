"""Sends numbers of mutants to a child, counts what they came to, and names those that went wrong."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 10.0
"""Of processor time that a mutant may take."""
PATIENCE = 90.0
"""Seconds of the clock after which a child that gives no answer hangs; a busy machine is slow."""


@dataclass
class Hunt:
    """Mutants of one kind, met by children in a folder of their own.

    Attributes:
        kind: one of `walks.KINDS`.
        folder: empty; holds the seeds, and the folder that children run in.
        ends: how often mutants came to what.
        failures: those that went wrong, each with how to meet it again.
    """

    kind: str
    folder: Path
    ends: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    slowest: float = 0.0
    _child: subprocess.Popen[bytes] | None = None

    def run(self, seeds: Sequence[bytes], numbers: Iterable[int]) -> None:
        """Meets mutants; a child that dies or hangs is replaced."""
        for name in ("seeds", "here", "tmp"):
            (self.folder / name).mkdir()
        for i, seed in enumerate(seeds):
            (self.folder / "seeds" / f"{i:04}").write_bytes(seed)
        try:
            for number in numbers:
                self._judge(number, self._ask(number))
        finally:
            self._end()

    def _judge(self, number: int, found: dict[str, Any]) -> None:
        self.ends[found["end"]] += 1
        self.slowest = max(self.slowest, found.get("seconds", 0.0))
        wrong = found.get("escaped")
        if found.get("left"):
            wrong = f"left behind: {found['left']}"
        if found.get("seconds", 0.0) > SECONDS:
            wrong = f"took {found['seconds']:.0f} s"
        if wrong:
            again = f"python -m tests.fuzzing.child {self.kind} {self.folder}/seeds {number}"
            self.failures.append(f"{again}\n{wrong}")

    def _ask(self, number: int) -> dict[str, Any]:
        child = self._child = self._child or self._start()
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(b"%d\n" % number)
        child.stdin.flush()
        ready, _, _ = select.select([child.stdout], [], [], PATIENCE)
        line = child.stdout.readline() if ready else b""
        if line:
            return dict(json.loads(line))
        self._end()
        said = (self.folder / "said").read_text(errors="replace")[-3000:]
        why = f"exit code {child.returncode}\n{said}" if ready else "no answer: it hangs"
        return {"end": "died" if ready else "hangs", "escaped": why}

    def _start(self) -> subprocess.Popen[bytes]:
        tmp = str(self.folder / "tmp")
        env = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": tmp, "NYBBLE_CACHE": tmp}
        with (self.folder / "said").open("wb") as said:
            return subprocess.Popen(
                [sys.executable, "-m", "tests.fuzzing.child", self.kind, self.folder / "seeds"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said,
                cwd=self.folder / "here", env=env, bufsize=0,
            )  # fmt: skip

    def _end(self) -> None:
        """The child is asked to end by the end of its input; one that hangs is killed."""
        child, self._child = self._child, None
        if child is None:
            return
        for pipe in self._pipes(child):
            pipe.close()
        try:
            child.wait(SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()

    @staticmethod
    def _pipes(child: subprocess.Popen[bytes]) -> Iterator[Any]:
        yield from (child.stdin, child.stdout)
