"""Small kernels under NVIDIA's compute-sanitizer, which finds bad accesses and races."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.cuda_jobs import Ledger

PATIENCE = 240.0  # seconds for a tool
ENDING = 5  # of them for its summary
SUMMARY = r"(?:ERROR|RACECHECK) SUMMARY: (\d+) (?:error|hazard)"


def sanitize(tool: str, home: Path, out: Path, keys: list[str], seconds: float) -> dict[str, Any]:
    """Runs jobs under a tool; ``right`` is None where it says nothing.

    Args:
        tool: ``memcheck``, ``racecheck``.
        home: the archive's folder.
        out: for its log.
        keys: of jobs that were right without it.
        seconds: after which no further job begins.
    """
    program = shutil.which("compute-sanitizer")
    if program is None or not keys:
        why = "there is no compute-sanitizer here" if keys else "no small kernel is right"
        return {"right": None, "why": why, "kernels": 0}
    scratch = out / f"sanitizer-{tool}"
    scratch.mkdir(exist_ok=True)
    (scratch / "results.jsonl").unlink(missing_ok=True)
    command = [program, "--tool", tool, sys.executable, str(home / "run.py"), "--work",
               "--out", str(scratch)]  # fmt: skip
    asked = json.dumps({"keys": keys, "until": time.time() + seconds - ENDING})
    with (out / f"sanitizer-{tool}.log").open("w+") as log:
        try:
            subprocess.run(
                command,
                input=asked,
                stdout=log,
                stderr=log,
                text=True,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            log.write("stopped: time was over\n")
        log.seek(0)
        said = log.read()
    return summarized(said, len(Ledger(scratch / "results.jsonl").done))


def summarized(said: str, count: int) -> dict[str, Any]:
    """What compute-sanitizer said of so many kernels."""
    summary = re.search(SUMMARY, said)
    if summary is None:
        last = said.strip().splitlines()[-1:] or ["nothing said"]
        return {"right": None, "why": f"it gave no summary: {last[0][:200]}", "kernels": count}
    errors = int(summary[1])
    if errors:
        return {"right": False, "why": f"{errors} errors; see its log", "kernels": count}
    why = "" if count else "no kernel ran"
    return {"right": True if count else None, "why": why, "kernels": count}
