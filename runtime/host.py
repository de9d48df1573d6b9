"""What this machine is: its CPU's architecture, features and cores."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from nybble import cpuinfo, tiles
from nybble.errors import ArtifactError
from nybble.runtime import gpu
from nybble.runtime.manifest import Manifest

VARIANT = "NYBBLE_VARIANT"
_CPUINFO = Path("/proc/cpuinfo")
_TASKS = Path("/proc/self/task")
_V3 = frozenset(("avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"))


def arch() -> str:
    """The machine's architecture as Linux names it, ``x86_64``."""
    return platform.machine()


@cache
def features() -> frozenset[str]:
    """The CPU features that Linux reports; AMX only where it grants the tile registers.

    Raises:
        ArtifactError: this is no Linux machine, so no `.so` can be checked or run.
    """
    found = cpuinfo.parse(_cpuinfo())
    if not found:
        raise ArtifactError(
            f"{_CPUINFO} names no CPU features, so no .so can be checked or run here."
        )
    return tiles.available(found)


@cache
def model() -> str:
    """The CPU's name, ``Intel(R) Xeon(R) Processor``; the architecture where Linux gives none."""
    return cpuinfo.name(_cpuinfo()) or arch()


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
    choose((manifest,))


def choose(variants: Sequence[Manifest]) -> int:
    """Which variant of a file to run: the last one that this machine's CPU, or its GPU, can run.

    ``NYBBLE_VARIANT`` names the one to take of a file with several; it must run here all the same.

    Args:
        variants: of one file, the one that needs most last, and those for GPUs behind the others.

    Returns:
        Its position.

    Raises:
        ArtifactError: another architecture, or no variant fits; says what each one needs and what
            to compile for instead. ``NYBBLE_VARIANT`` names none of them.
    """
    if variants[0].arch != arch():
        raise ArtifactError(
            f"Compiled for {variants[0].arch} (target {variants[0].target!r}); this machine is "
            f"{arch()}. Compile the model again with target='native' here."
        )
    allowed = _forced(variants) if len(variants) > 1 else range(len(variants))
    refusals = {i: _refusal(variants[i]) for i in allowed}
    fitting = [i for i, refusal in refusals.items() if refusal is None]
    if fitting:
        return fitting[-1]
    lacking = "; ".join(filter(None, refusals.values()))
    on_gpu = any(variants[i].device for i in allowed)
    raise ArtifactError(f"{lacking}. Compile the model again with {_instead(on_gpu)}.")


def _refusal(manifest: Manifest) -> str | None:
    """Why this machine cannot run a library, None if it can."""
    lacking = missing(manifest)
    if lacking:
        names = f"{', '.join(lacking)}{_withheld(manifest)}"
        return f"Compiled for target {manifest.target!r}; this CPU lacks {names}"
    refusal = gpu.refusal(manifest.device) if manifest.device else None
    return refusal and f"Compiled for GPUs, target {manifest.target!r}, but {refusal}"


def _instead(on_gpu: bool) -> str:
    """What to compile for, for this machine; with its GPU if that was meant."""
    named = "x86-64-v3" if features() >= _V3 else "x86-64"
    found = f"target='native' here, or target='{named}'" if arch() == "x86_64" else "'native'"
    device = gpu.find() if on_gpu else None
    if isinstance(device, gpu.Gpu):
        found = f"target='cuda:sm_{device.capability}', or for the CPU {found}"
    return found


def missing(manifest: Manifest) -> list[str]:
    """The features that the library needs and this CPU lacks, sorted."""
    return sorted(set(manifest.features) - features())


def _withheld(manifest: Manifest) -> str:
    """Why AMX is missing where the CPU itself has it."""
    has_tiles = not tiles.FEATURES.isdisjoint(cpuinfo.parse(_cpuinfo()))
    if not has_tiles or tiles.FEATURES.isdisjoint(missing(manifest)):
        return ""
    return f" (Linux refuses AMX's tile registers: {tiles.refusal()})"


def _forced(variants: Sequence[Manifest]) -> Sequence[int]:
    """The variants that ``NYBBLE_VARIANT`` leaves."""
    name = os.environ.get(VARIANT)
    if not name:
        return range(len(variants))
    known = [variant.target for variant in variants]
    if name not in known:
        raise ArtifactError(f"{VARIANT}={name!r}: the file holds {', '.join(known)}.")
    return [known.index(name)]


def _cpuinfo() -> list[str]:
    if not _CPUINFO.exists():
        raise ArtifactError(f"No {_CPUINFO} here. Nybble's libraries run on Linux only.")
    return _CPUINFO.read_text().splitlines()
