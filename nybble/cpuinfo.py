"""CPU features as Linux spells them in ``/proc/cpuinfo``; compiler and runtime both ask."""

from __future__ import annotations

from collections.abc import Iterable

_RISCV_G = frozenset("imafd")


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


def _riscv(isa: str) -> frozenset[str]:
    base, *extensions = isa.lower().split("_")
    letters = frozenset(base.removeprefix("rv64").removeprefix("rv32"))
    return letters | frozenset(extensions) | (_RISCV_G if "g" in letters else frozenset())
