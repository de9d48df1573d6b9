"""Checks and times packed kernels on a machine with an NVIDIA GPU; needs NumPy, no network.

    python3 run.py                  # numerics of every kernel, then times
    python3 run.py --check          # numerics alone
    python3 run.py --limit 9m       # what counts most, within nine minutes

Every kernel is held against what the law expects of its layer, integers bit for bit, and networks
against their own code for CPUs. Kernels of large products are then timed by CUDA's events, as
graphs, in turns with the peers that are installed, on several sets of operands so that none stays
in a cache. Started again, it goes on where it was stopped; ``--again`` begins anew.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import cuda_goals, cuda_sanitizer
from benchmarks.cuda_clock import facts
from benchmarks.cuda_jobs import Ledger, Phase, gathered, phases
from nybble.runtime import gpu

PATIENCE = {"check": 90.0}  # seconds for a job
USUAL = 150.0
ATTEMPTS = {"time": 2}  # the second without what did not come with torch
SILENT = 2  # processes in a row that end before they begin a job
EVERY = 20.0  # seconds between two writings of the results
UNITS = {"s": 1, "m": 60, "h": 3600}


class Run:
    """One run of all jobs.

    Attributes:
        home: the archive's folder.
        out: where results go.
        rows: of ``rows.json``.
        ledger: what was done.
        ends: when it must be over, as `time.monotonic`; infinite without a limit.
    """

    def __init__(self, home: Path, out: Path, limit: float):
        self.home, self.out, self.limit = home, out, limit
        self.packed = json.loads((home / "rows.json").read_text())
        self.rows = self.packed["rows"]
        out.mkdir(parents=True, exist_ok=True)
        self.ledger = Ledger(out / "results.jsonl")
        self.start = time.monotonic()
        self.ends = self.start + limit
        self.before, self.after = facts(), dict[str, str]()

    def all(self, check_only: bool) -> None:
        """Every phase, as far as time allows."""
        try:
            for phase in phases(self.rows, check_only):
                until = min(self.ends, self.start + phase.share * self.limit)
                self.phase(phase, until)
                self.write()
        finally:
            self.after = facts()
            self.write()

    def phase(self, phase: Phase, until: float) -> None:
        """The jobs of a phase that are left, until they are done or the time is over."""
        silent = 0
        while (left := self.ledger.left(phase)) and time.monotonic() < until:
            say(f"-- {phase.kind}: {len(left)} left, {self.spent()} gone")
            if phase.kind == "sanitize":
                self.sanitize(left[0])
                continue
            before = dict(self.ledger.begun)
            code, seconds = self.process(left, phase.kind, until)
            began = self.ledger.begun != before
            blamed = self.ledger.blamed()
            if code == 0:
                return  # done, or time was over between two jobs
            if began and blamed is not None and not (code is None and time.monotonic() >= until):
                silent = 0
                self.blame(blamed, phase.kind, code, seconds)
            elif time.monotonic() < until:
                silent += 1
                say(f"   no job begins: {self.tail()}")
                if silent == SILENT:
                    self.give_up(left, phase.kind, f"no job begins: {self.tail()}")

    def blame(self, key: str, kind: str, code: int | None, seconds: float) -> None:
        """Notes what a job did to its process; one that may be tried again stays open."""
        why = (
            f"hangs: nothing for {seconds:.0f} s" if code is None
            else f"the process ends with {code}: {self.tail()}"
        )  # fmt: skip
        say(f"   {self.name(key)}: {why}")
        if self.ledger.begun[key] < ATTEMPTS.get(kind, 1):
            return
        self.give_up([key], kind, why)

    def give_up(self, keys: list[str], kind: str, why: str) -> None:
        """Notes that jobs will not be done; a kernel that cannot be timed is right all the same."""
        found = {"why_untimed": why} if kind == "time" else {"right": False, "why": why}
        for key in keys:
            self.ledger.finish(key, found)
        self.ledger.refresh()

    def process(self, keys: list[str], kind: str, until: float) -> tuple[int | None, float]:
        """A process that does jobs; its exit code, None if it was killed, and how long it hung."""
        wall = time.time() + (until - time.monotonic()) if until < float("inf") else float("inf")
        command = [sys.executable, str(self.home / "run.py"), "--work", "--out", str(self.out)]
        patience = PATIENCE.get(kind, USUAL)
        with (self.out / "worker.log").open("ab") as log:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log)
            assert process.stdin is not None
            process.stdin.write(json.dumps({"keys": keys, "until": wall}).encode())
            process.stdin.close()
            seen = written = time.monotonic()
            while process.poll() is None:
                time.sleep(0.1)
                for key in self.ledger.refresh():
                    seen = time.monotonic()
                    say(f"   {self.name(key)}: {told(self.ledger.done[key])}")
                now = time.monotonic()
                if now - written > EVERY:
                    self.write()
                    written = now
                if now - seen > patience or now > self.ends:
                    process.kill()
                    process.wait()
                    self.ledger.refresh()
                    return None, now - seen
        for key in self.ledger.refresh():
            say(f"   {self.name(key)}: {told(self.ledger.done[key])}")
        return process.returncode, 0.0

    def sanitize(self, key: str) -> None:
        """Small kernels that are right, under one of compute-sanitizer's tools."""
        small = [
            f"check {i}" for i, row in enumerate(self.rows)
            if "operands" not in row and not row["timed"] and self.ledger.is_right(f"check {i}")
        ]  # fmt: skip
        left = min(self.ends - time.monotonic(), cuda_sanitizer.PATIENCE)
        found = cuda_sanitizer.sanitize(key.split()[1], self.home, self.out, small, left)
        self.ledger.finish(key, found)
        self.ledger.refresh()
        say(f"   {key}: {found['why'] or str(found['kernels']) + ' kernels, no error'}")

    def write(self) -> None:
        """The results so far."""
        result = self.result()
        scratch = self.out / "results.json.new"
        scratch.write_text(json.dumps(result, indent=1))
        os.replace(scratch, self.out / "results.json")
        (self.out / "results.txt").write_text(cuda_goals.text(result))

    def result(self) -> dict[str, Any]:
        """What is known now."""
        found = gpu.find()
        return {
            "gpu": getattr(found, "name", str(found)), "driver": _driver(),
            "capability": getattr(found, "capability", None),
            "date": datetime.date.today().isoformat(), "target": self.packed["target"],
            "nybble": self.packed["nybble"], "before": self.before, "after": self.after,
            "seconds": time.monotonic() - self.start,
            "machine": self.ledger.done.get("machine 0", {}),
            "sanitizer": {k.split()[1]: v for k, v in self.ledger.done.items()
                          if k.startswith("sanitize")},
            "rows": gathered(self.rows, self.ledger.done),
        }  # fmt: skip

    def name(self, key: str) -> str:
        """A job in words."""
        kind, _, number = key.partition(" ")
        if kind not in ("check", "time", "network"):
            return key
        row = self.rows[int(number)]
        return f"{kind} {row['row']} {row.get('kernel', '')}".strip()

    def tail(self) -> str:
        """What a process said last."""
        path = self.out / "worker.log"
        lines = path.read_text(errors="replace").strip().splitlines() if path.exists() else []
        return lines[-1][:300] if lines else "nothing said"

    def spent(self) -> str:
        """Of the time."""
        return f"{time.monotonic() - self.start:.0f} s"


def told(found: dict[str, Any]) -> str:
    """A job's outcome in a line."""
    if "ratios" in found:
        ratios = ", ".join(f"{ratio:.2f} × {name}" for name, ratio in found["ratios"].items())
        return f"{1e6 * found['seconds']:.1f} us {found.get('how', '')}; {ratios or 'no peer'}"
    if "copy" in found:
        return f"copies {found['copy'] / 1e12:.2f} TB/s, peak {found['peak'] / 1e12:.2f} TB/s"
    if found.get("why_untimed"):
        return str(found["why_untimed"])
    return str(found.get("why") or "right")


def work(home: Path, out: Path) -> None:
    """Does the jobs that stdin names, one after another; what CUDA fails at ends it."""
    asked = json.loads(sys.stdin.read())
    from benchmarks.cuda_work import JOBS  # noqa: PLC0415
    from nybble.runtime import engine  # noqa: PLC0415

    rows, ledger = (
        json.loads((home / "rows.json").read_text())["rows"],
        Ledger(out / "results.jsonl"),
    )
    engine.ffi()  # before torch, which peers import: then it comes without torch
    gpu.load_runtime()
    for key in asked["keys"]:
        if time.time() > asked["until"]:
            return
        kind, _, number = key.partition(" ")
        few = ledger.begun.get(key, 0) > 0
        ledger.begin(key)
        ledger.finish(key, JOBS[kind](home, rows[int(number)] if rows else {}, few))


def say(line: str) -> None:
    """A line of progress."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _driver() -> int:
    version = ctypes.c_int()
    ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    return version.value


def limit_of(text: str) -> float:
    """``540``, ``90s`` or ``9m`` in seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r}: expected something such as 90s or 9m")
    return float(found[1]) * UNITS[found[2] or "s"]


def main(home: Path) -> None:
    """Checks, times, writes.

    Args:
        home: the archive's folder, with ``run.py``, ``rows.json`` and ``data``.
    """
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="numerics alone")
    parser.add_argument("--limit", type=limit_of, default=float("inf"), help="such as 9m")
    parser.add_argument("--out", type=Path, default=home, help="where results go")
    parser.add_argument("--again", action="store_true", help="forget what was done")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    found = gpu.find()
    if isinstance(found, str):
        raise SystemExit(f"No GPU: {found}.")
    if args.work:
        work(home, args.out)
        return
    if args.again:
        (args.out / "results.jsonl").unlink(missing_ok=True)
    run = Run(home, args.out, args.limit)
    run.all(args.check)
    result = run.result()
    say(cuda_goals.text(result))
    say(f"Results: {args.out / 'results.json'}")
    raise SystemExit(any(row["right"] is False for row in result["rows"]))
