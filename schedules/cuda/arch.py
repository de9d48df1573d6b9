"""NVIDIA's architectures, and what code for them may use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import tvm

from nybble.errors import NybbleError

if TYPE_CHECKING:
    from nybble.schedules.target import CpuTarget

KIND = "cuda"

_TURING = frozenset({"ldmatrix", "mma_s8", "mma_s4", "mma_b1_xor", "dp4a"})
_AMPERE = _TURING | {"cp_async", "mma_m16", "mma_b1_and", "bf16", "redux"}
_HOPPER = (_AMPERE - {"mma_s4"}) | {"wgmma", "tma"}  # 4-bit integers would be emulated there

GENERATIONS: dict[str, tuple[frozenset[str], tuple[str, ...]]] = {
    "turing": (_TURING, ("sm_75",)),
    "ampere": (_AMPERE, ("sm_80", "sm_86", "sm_89")),
    "hopper": (_HOPPER, ("sm_90",)),
}
"""By name: what the tensor cores and copy engines can do, and the architectures.

    ldmatrix    8x8 matrices from shared memory to fragments
    mma_s8      8-bit integer products: m8n8k16, with ``mma_m16`` m16n8k32
    mma_s4      4-bit integer products in hardware: m8n8k32, with ``mma_m16`` m16n8k64
    mma_b1_xor  1-bit products by exclusive or, m8n8k128
    mma_b1_and  1-bit products by conjunction, m16n8k256
    mma_m16     the larger shapes, which sm_80 brought
    redux       sums and maxima over a warp in one instruction
    cp_async    copies from global to shared memory that do not wait
    wgmma, tma  products of four warps from shared memory, copies of tensors by descriptor (sm_90a)
"""


_SHARED = {"sm_75": 64, "sm_80": 163, "sm_86": 99, "sm_89": 99, "sm_90": 227}  # KiB of a block


@dataclass(frozen=True)
class CudaTarget:
    """GPUs of one generation to compile for.

    Attributes:
        name: what the user asked for: ``cuda:sm_80``, ``cuda:sm_80+sm_89``.
        archs: the architectures, oldest first: ``("sm_80", "sm_89")``.
        generation: a key of `GENERATIONS`; kernels are the same for all of it.
        host: the CPU that launches the kernels.
    """

    name: str
    archs: tuple[str, ...]
    generation: str
    host: CpuTarget

    arch = KIND  # as `nybble.schedules.kernel.Kernel.arch` names it
    is_c = False  # as of `CpuTarget`

    @property
    def features(self) -> frozenset[str]:
        """What code may use; see `GENERATIONS`."""
        return GENERATIONS[self.generation][0]

    @property
    def capability(self) -> int:
        """The lowest compute capability: 80 for sm_80."""
        return min(int(arch.removeprefix("sm_")) for arch in self.archs)

    def has(self, *features: str) -> bool:
        """Whether code may use all these features."""
        return self.features.issuperset(features)

    @property
    def shared_memory(self) -> int:
        """Bytes of shared memory that a block may use on every one of the architectures."""
        return min(_SHARED[arch] for arch in self.archs) << 10

    def tvm_target(self) -> tvm.target.Target:
        """The TVM target, with the host's."""
        return tvm.target.Target(
            {
                "kind": "cuda",
                "arch": self.machine_codes[0],
                "max_threads_per_block": 1024,
                "max_shared_memory_per_block": self.shared_memory,
                "thread_warp_size": 32,
                "host": dict(self.host.tvm_target().export()),
            }
        )

    @property
    def portable(self) -> int | None:
        """The compute capability of the portable code beside the machine code.

        None for Hopper, whose own instructions later GPUs do not have.
        """
        newest = self.machine_codes[-1].removeprefix("sm_")
        return int(newest) if newest.isdecimal() else None

    @property
    def machine_codes(self) -> tuple[str, ...]:
        """The architectures as compilers are told: Hopper's with its own instructions, sm_90a."""
        return tuple(f"{arch}a" if arch == "sm_90" else arch for arch in self.archs)


def named(name: str, host: CpuTarget) -> CudaTarget:
    """The target that a user calls ``cuda:sm_90`` or, with several, ``cuda:sm_80+sm_89``.

    Args:
        name: ``cuda:`` and architectures of one generation.
        host: the CPU that launches the kernels.

    Raises:
        NybbleError: an unknown architecture, or several generations; says what to write instead.
    """
    asked = sorted(
        set(name.removeprefix(f"{KIND}:").split("+")), key=lambda arch: (len(arch), arch)
    )
    known = [arch for _, archs in GENERATIONS.values() for arch in archs]
    strange = [arch for arch in asked if arch not in known]
    if strange:
        raise NybbleError(
            f"Target {name!r}: no kernels for {', '.join(map(repr, strange))}. Write 'cuda:' and "
            f"one of {', '.join(known)}, or several of one generation: 'cuda:sm_80+sm_86+sm_89'."
        )
    generations = [g for g, (_, archs) in GENERATIONS.items() if not set(archs).isdisjoint(asked)]
    if len(generations) > 1:
        lists = [[a for a in asked if a in GENERATIONS[g][1]] for g in generations]
        apart = ", ".join(f"'{KIND}:{'+'.join(archs)}'" for archs in lists)
        raise NybbleError(
            f"Target {name!r}: {' and '.join(generations)} GPUs get different kernels. Give a list "
            f"of targets for one file with several variants: {apart}."
        )
    return CudaTarget(f"{KIND}:{'+'.join(asked)}", tuple(asked), generations[0], host)
