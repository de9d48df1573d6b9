"""Where benchmarks put what they found: a table on the screen, JSON under build/."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "build" / "benchmarks"
console = Console(width=None if sys.stdout.isatty() else 150)


def table(title: str, rows: Sequence[dict[str, str]]) -> None:
    """Prints rows of equal keys; the first column is text, the others are numbers."""
    made = Table(title=title)
    for i, column in enumerate(rows[0]):
        made.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        made.add_row(*row.values())
    console.print(made)


def record(name: str, rows: Sequence[dict[str, Any]]) -> Path:
    """Writes the rows to build/benchmarks/<name>.json, with the CPU's name."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"cpu": cpu(), "rows": list(rows)}, indent=2) + "\n")
    return path


def cpu() -> str:
    """The CPU's name as Linux gives it, else the architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
