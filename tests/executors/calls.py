"""What tests let workers do."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from nybble.executors.interface import Shared
from nybble.executors.serve import stage


def double(x: int) -> int:
    return 2 * x


def pid_of(_: int) -> int:
    return os.getpid()


def die(_: int) -> int:
    sys.stdout.write("last words\n")
    sys.stdout.flush()
    os.kill(os.getpid(), signal.SIGSEGV)
    return 0


def die_at(x: int, bad: int) -> int:
    return die(x) if x == bad else 2 * x


def die_once(x: int, mark: Path) -> int:
    """Dies unless the mark is there, which it makes."""
    if mark.exists():
        return 2 * x
    mark.touch()
    return die(x)


def sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def hang_in_stage(_: int) -> int:
    stage("measuring", 0.3)
    time.sleep(60)
    return 0


def stages(_: int) -> int:
    """Longer than its limit in all, but not stage by stage."""
    for _ in range(4):
        stage("a step", 0.5)
        time.sleep(0.2)
    return 1


def refuse(_: int) -> int:
    raise ValueError("seven is no even number")


def unsendable(_: int) -> object:
    return lambda: 0


def loaded(names: tuple[str, ...]) -> list[str]:
    return [name for name in names if name in sys.modules]


def wait_marked(mark: Path, seconds: float) -> Path:
    """Notes who started it, then waits."""
    mark.write_text(str(os.getppid()))
    time.sleep(seconds)
    return mark


def length_of(shared: Shared) -> int:
    return len(shared.read())
