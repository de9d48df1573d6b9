"""What this machine is: its CPU's architecture, features and cores."""

from __future__ import annotations

import contextlib
import os
import platform
from functools import cache
from pathlib import Path

from nybble.errors import ArtifactError
from nybble.runtime.manifest import Manifest

_CPUINFO = Path("/proc/cpuinfo")
_TASKS = Path("/proc/self/task")
_V3 = frozenset(("avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"))


def arch() -> str:
    """The machine's architecture as Linux names it, ``x86_64``."""
    return platform.machine()


@cache
def features() -> frozenset[str]:
    """The CPU features that Linux reports.

    Raises:
        ArtifactError: this is no Linux machine, so no `.so` can be checked or run.
    """
    for line in _cpuinfo():
        if line.startswith(("flags", "Features")):
            return frozenset(line.split(":", 1)[1].split())
    raise ArtifactError(f"{_CPUINFO} names no CPU features, so no .so can be checked or run here.")


def cpus() -> list[int]:
    """The CPUs that this process may use, whatever single threads of it have been bound to.

    TVM's own thread pool binds the thread that calls it to one CPU, so one thread's word is not
    enough.
    """
    allowed: set[int] = set()
    for task in _TASKS.iterdir():
        with contextlib.suppress(ProcessLookupError):  # a thread that ended meanwhile
            allowed |= os.sched_getaffinity(int(task.name))
    return sorted(allowed)


@cache
def physical_cores() -> int:
    """Cores that this process may use, hyper-threads counted once; at least 1."""
    allowed, cores, processor, package = cpus(), set[tuple[str, str]](), -1, ""
    for line in _cpuinfo():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "processor":
            processor = int(value)
        elif key == "physical id":
            package = value
        elif key == "core id" and processor in allowed:
            cores.add((package, value))
    return len(cores) or len(allowed)  # ARM reports no core ids and has no hyper-threads


def check(manifest: Manifest) -> None:
    """Refuses a library that this CPU cannot run.

    Raises:
        ArtifactError: another architecture, or features that the CPU lacks; says which, and what
            to compile for instead.
    """
    if manifest.arch != arch():
        raise ArtifactError(
            f"Compiled for {manifest.arch} (target {manifest.target!r}); this machine is {arch()}. "
            "Compile the model again with target='native' here."
        )
    missing = sorted(set(manifest.features) - features())
    if missing:
        named = "x86-64-v3" if features() >= _V3 else "x86-64"
        instead = f"target='native' here, or target='{named}'" if arch() == "x86_64" else "'native'"
        raise ArtifactError(
            f"Compiled for target {manifest.target!r}; this CPU lacks {', '.join(missing)}. "
            f"Compile the model again with {instead}."
        )


def _cpuinfo() -> list[str]:
    if not _CPUINFO.exists():
        raise ArtifactError(f"No {_CPUINFO} here. Nybble's libraries run on Linux only.")
    return _CPUINFO.read_text().splitlines()
