"""The small C files of the benchmarks, compiled when they are first needed."""

from __future__ import annotations

import ctypes
from pathlib import Path

from benchmarks.output import RESULTS
from nybble import limits

HERE = Path(__file__).parent


def compiled(name: str) -> ctypes.CDLL:
    """Loads ``benchmarks/<name>`` from build/; errors as of `nybble.limits.compiled`."""
    return limits.compiled(HERE / name, RESULTS / "native")
