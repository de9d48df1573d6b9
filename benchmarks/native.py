"""The small C files of the benchmarks, compiled when they are first needed."""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
from pathlib import Path

from benchmarks.output import RESULTS

HERE = Path(__file__).parent


def compiled(name: str) -> ctypes.CDLL:
    """Loads ``benchmarks/<name>``, compiled by ``cc`` into build/; made anew when it changes.

    Raises:
        FileNotFoundError: there is no ``cc``.
        subprocess.CalledProcessError: the compiler refused.
    """
    source = HERE / name
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:12]
    path = RESULTS / "native" / f"{source.stem}-{digest}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        half = path.with_suffix(f".{os.getpid()}")  # never load what another process is writing
        subprocess.run(
            ["cc", "-O2", "-shared", "-fPIC", "-pthread", "-o", str(half), str(source)], check=True
        )
        half.rename(path)
    return ctypes.CDLL(str(path))
