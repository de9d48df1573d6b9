"""Kinds of machines: a measured time holds for the same kind only."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nybble import cpuinfo
from nybble.schedules.cuda.arch import CudaTarget
from nybble.schedules.target import Target, host_features

CPUINFO = Path("/proc/cpuinfo")
NVCC = "nvcc"  # the compiler of GPUs' kernels


@dataclass(frozen=True)
class Machine:
    """A kind of machine, and what code for it may use.

    Attributes:
        arch: ``x86_64``, ``aarch64``; of a GPU its own, ``sm_90``.
        features: CPU features that the code uses, sorted (`Target.features`); of a GPU those of
            its generation.
        cpu: the processor's name, ``NVIDIA H200``.
        caches: bytes of its data caches, nearest first; of a GPU none.
        compiler: ``llvm``, ``c`` for kernels written as C, ``nvcc`` for GPUs.
    """

    arch: str
    features: tuple[str, ...]
    cpu: str
    caches: tuple[int, ...]
    compiler: str = "llvm"

    @staticmethod
    def here(target: Target) -> Machine:
        """This machine, running code for a target."""
        found = CPUINFO.read_text().splitlines() if CPUINFO.exists() else []
        return Machine.of(target, cpuinfo.name(found) or platform.machine(), cpuinfo.caches())

    @staticmethod
    def of(
        target: Target, cpu: str, caches: Iterable[int], capability: int | None = None
    ) -> Machine:
        """A machine somewhere, running code for a target.

        Args:
            target: CPU or GPUs.
            cpu: the processor's name.
            caches: bytes of its data caches.
            capability: of a GPU: 90 for sm_90; the target's first one when omitted.
        """
        if isinstance(target, CudaTarget):
            arch = f"sm_{capability or target.capability}"
            return Machine(arch, tuple(sorted(target.features)), cpu, tuple(caches), NVCC)
        compiler = "c" if target.is_c else "llvm"
        return Machine(target.arch, tuple(sorted(target.features)), cpu, tuple(caches), compiler)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Machine:
        """What ``dataclasses.asdict`` made of one, read back from JSON.

        Raises:
            TypeError, KeyError: it is no machine.
        """
        lists = {name: tuple(data[name]) for name in ("features", "caches")}
        made = Machine(**{**data, **lists})
        hash(made)
        return made

    def fits(self, target: Target) -> bool:
        """Whether it was measured with the code that is made for a target."""
        if isinstance(target, CudaTarget):
            return (self.features, self.compiler) == (tuple(sorted(target.features)), NVCC)
        made = Machine.of(target, self.cpu, self.caches)
        return (self.arch, self.features, self.compiler) == (
            made.arch, made.features, made.compiler
        )  # fmt: skip

    def is_like(self, other: Machine) -> bool:
        """Whether times of one hold for the other; shared outer caches vary with the host."""
        return (self.arch, self.features, self.cpu, self.compiler, self.caches[:2]) == (
            other.arch, other.features, other.cpu, other.compiler, other.caches[:2]
        )  # fmt: skip


def runs_here(target: Target) -> bool:
    """Whether this machine can run code for a target."""
    return target.arch == platform.machine() and target.features <= host_features()
