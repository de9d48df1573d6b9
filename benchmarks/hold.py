"""Holding a process to a lower x86-64 level, so that a peer uses what the code beside it may.

Linux can fault on CPUID (x86, ``cpuid_fault`` in /proc/cpuinfo); ``hold.c`` answers in its place.
glibc has looked before and may go on copying memory with wider vectors; nothing else does.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from benchmarks.native import compiled

LEVELS = {"x86-64-v3": 3, "x86-64-v4": 4, "x86-64-v4-vnni": 5}
FEATURES = {  # name: leaf, subleaf, register (EAX … EDX), bit
    "avx2": (7, 0, 1, 5),
    "avx512f": (7, 0, 1, 16),
    "avx512_vnni": (7, 0, 2, 11),
    "avx512_vpopcntdq": (7, 0, 2, 14),
    "amx_int8": (7, 0, 3, 25),
    "avx_vnni": (7, 1, 0, 4),
}


def possible() -> bool:
    """Whether this kernel and CPU can fault on CPUID."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return False
    flags = next((line for line in info.read_text().splitlines() if line.startswith("flags")), "")
    return "cpuid_fault" in flags.split()


def hold(isa: str) -> None:
    """Hides from this thread, and from threads that it starts, what ``isa`` lacks.

    To be called before a library that looks at the CPU is loaded; there is no way back.

    Args:
        isa: ``native`` (nothing is hidden) or one of `LEVELS`.

    Raises:
        OSError: the kernel or the CPU cannot do it.
    """
    if isa == "native":
        return
    error = compiled("hold.c").hold(LEVELS[isa])
    if error:
        raise OSError(error, f"cannot hold this process to {isa}: {os.strerror(error)}")


def features() -> frozenset[str]:
    """Which of `FEATURES` CPUID shows to this thread."""
    registers = (ctypes.c_uint * 4)()
    library = compiled("hold.c")
    found = set()
    for name, (leaf, sub, register, bit) in FEATURES.items():
        library.ask(leaf, sub, registers)
        if registers[register] >> bit & 1:
            found.add(name)
    return frozenset(found)
