"""CPU features as Linux spells them in ``/proc/cpuinfo``; compiler and runtime both ask."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_RISCV_G = frozenset("imafd")
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def parse(lines: Iterable[str]) -> frozenset[str]:
    """The features that the first processor lists; empty where none are listed.

    x86 writes ``flags``, ARM ``Features``: names with blanks between. RISC-V writes one word,
    ``isa : rv64imafdcv_zicsr_zvl128b``: its single letters are features, and so are the words
    behind underscores.

    Args:
        lines: of ``/proc/cpuinfo``.
    """
    for line in lines:
        key, _, value = (part.strip() for part in line.partition(":"))
        if key in {"flags", "Features"}:
            return frozenset(value.split())
        if key == "isa":
            return _riscv(value)
    return frozenset()


def name(lines: Iterable[str]) -> str:
    """The first processor's name: ``Intel(R) Xeon(R) Processor``, or ARM's numbers; or nothing.

    Args:
        lines: of ``/proc/cpuinfo``.
    """
    found: dict[str, str] = {}
    for line in lines:
        key, _, value = (part.strip() for part in line.partition(":"))
        found.setdefault(key, value)
    numbers = (found.get(f"CPU {what}") for what in ("implementer", "part"))
    named = found.get("model name") or found.get("uarch")
    return named or " ".join(number for number in numbers if number)


def caches(folder: Path = CACHES) -> tuple[int, ...]:
    """Bytes of the data caches that the first processor uses, nearest first; empty if unknown.

    Args:
        folder: Linux's, with a folder for each cache.
    """
    sizes: dict[int, int] = {}
    for one in sorted(folder.glob("index*")):
        level, kind, size = ((one / part).read_text().strip() for part in ("level", "type", "size"))
        if kind != "Instruction":
            sizes[int(level)] = int(size.rstrip("KMG")) * _UNITS.get(size[-1], 1)
    return tuple(size for _, size in sorted(sizes.items()))


def _riscv(isa: str) -> frozenset[str]:
    base, *extensions = isa.lower().split("_")
    letters = frozenset(base.removeprefix("rv64").removeprefix("rv32"))
    return letters | frozenset(extensions) | (_RISCV_G if "g" in letters else frozenset())
