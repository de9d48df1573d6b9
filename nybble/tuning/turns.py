"""Locks between all processes of this machine that tune: one measures at a time.

They are file locks, which vanish with the process that holds them, however it ends.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def compiling() -> Iterator[None]:
    """Others may compile too, and measure on one thread."""
    with _locked("quiet", fcntl.LOCK_SH):
        yield


@contextmanager
def measuring(threads: int, device: str = "") -> Iterator[None]:
    """Nobody else measures; nobody compiles either, where a kernel uses several threads.

    Args:
        threads: of the kernels.
        device: which machine is measured on, "" for this one.
    """
    with _locked(f"measuring{device}", fcntl.LOCK_EX):
        if threads == 1 or device:
            yield
            return
        with _locked("quiet", fcntl.LOCK_EX):
            yield


@contextmanager
def _locked(name: str, kind: int) -> Iterator[None]:
    safe = "".join(c if c.isalnum() else "-" for c in name)
    path = Path(tempfile.gettempdir()) / f"nybble-{os.getuid()}-{safe}.lock"
    file = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, kind)
        yield
    finally:
        os.close(file)
