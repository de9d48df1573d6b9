"""Names of machines, resolved to what code generation and the loader need to know."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import tvm

from nybble import cpuinfo, tiles
from nybble.errors import NybbleError
from nybble.schedules.cuda import arch as cuda
from nybble.schedules.cuda.arch import CudaTarget

V3 = ("avx2", "bmi1", "bmi2", "f16c", "fma", "movbe")
V4 = (*V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
VNNI = (*V4, "avx512_vnni")
AMX = (  # and what every CPU with it has
    *VNNI, "amx_tile", "amx_int8", "avx512_bf16", "avx512_bitalg", "avx512_fp16", "avx512_vbmi2",
    "avx512_vpopcntdq", "avx512ifma", "avx512vbmi", "avx_vnni", "gfni",
)  # fmt: skip


@dataclass(frozen=True)
class CpuTarget:
    """A CPU to compile for.

    Attributes:
        name: what the user asked for.
        llvm: the TVM target as a dict, hashable as sorted pairs.
        features: CPU features (as Linux spells them) that the code needs to run.
        arch: ``x86_64``, ``aarch64``, ``riscv64``.
    """

    name: str
    llvm: tuple[tuple[str, Any], ...]
    features: frozenset[str]
    arch: str

    def tvm_target(self) -> tvm.target.Target:
        """The TVM target; to be used as `tvm.compile`'s target."""
        return tvm.target.Target({k: list(v) if isinstance(v, tuple) else v for k, v in self.llvm})

    @property
    def is_c(self) -> bool:
        """Whether kernels are written as C, without vectors and threads."""
        return ("kind", "c") in self.llvm

    def has(self, *features: str) -> bool:
        """Whether code may use all these features."""
        return self.features.issuperset(features)


Target = CpuTarget | CudaTarget
"""What code is generated for."""

_X86, _ARM, _RISCV = (f"{arch}-linux-gnu" for arch in ("x86_64", "aarch64", "riscv64"))
_NAMED = {
    "x86-64": ("x86-64", _X86, ()),
    "x86-64-v3": ("x86-64-v3", _X86, V3),
    "x86-64-v4": ("x86-64-v4", _X86, V4),
    "x86-64-v4-vnni": ("cascadelake", _X86, VNNI),
    "x86-64-v4-amx": ("sapphirerapids", _X86, AMX),
    "aarch64": ("generic", _ARM, ("asimd",)),
    "aarch64-dotprod": ("generic", _ARM, ("asimd", "asimddp")),
    "aarch64-i8mm": ("generic", _ARM, ("asimd", "asimddp", "i8mm")),
    "riscv64": ("generic-rv64", _RISCV, ()),
    "riscv64-v": ("generic-rv64", _RISCV, ("v",)),
}
_BASELINE = {"x86_64": "x86-64", "aarch64": "aarch64"}  # for the host code of GPUs
_ATTRIBUTES = {"asimddp": "+dotprod", "i8mm": "+i8mm", "v": "+v"}  # beyond what the CPU's name says
_MACHINES: dict[str, tuple[tuple[str, Any], ...]] = {  # what LLVM must be told of a whole family
    "riscv64": (("mabi", "lp64d"), ("mattr", ("+m", "+a", "+f", "+d", "+c"))),
}


def resolve(target: str | dict[str, Any]) -> Any:  # a `Target`; callers know of which kind
    """Turns ``"native"``, a named level, ``"cuda:sm_90"`` or a TVM target dict into a `Target`.

    ``native`` is the highest named level that this machine's CPU has. ``c`` writes portable C,
    which the C compiler of this machine (``c-riscv64``: of that architecture) turns into code.
    ``cuda:`` and architectures of one generation, ``cuda:sm_80+sm_89``, is for GPUs, with host code
    for any CPU of this machine's architecture.

    Raises:
        NybbleError: an unknown name, or a dict that is no LLVM target.
    """
    if isinstance(target, str) and target.partition(":")[0] == cuda.KIND:
        return cuda.named(target, resolve_cpu(_BASELINE.get(platform.machine(), "c")))
    return resolve_cpu(target)


def resolve_cpu(target: str | dict[str, Any]) -> CpuTarget:
    """`resolve` for CPUs alone.

    Raises:
        NybbleError: an unknown name, or what is no LLVM target.
    """
    if isinstance(target, dict):
        return _from_dict(target)
    if target == "native":
        return _native()
    if str(target).partition("-")[0] == "c":
        arch = target.removeprefix("c").removeprefix("-") or platform.machine()
        return CpuTarget(target, (("kind", "c"),), frozenset(), arch)
    if target not in _NAMED:
        raise NybbleError(
            f"Unknown target {target!r}. Use 'native', {', '.join(map(repr, _NAMED))}, 'c', "
            "'c-' and an architecture, 'cuda:' and an architecture of GPUs ('cuda:sm_90'), or a "
            "TVM target dict such as {'kind': 'llvm', 'mcpu': 'znver3'}."
        )
    mcpu, triple, features = _NAMED[target]
    arch = triple.split("-")[0]
    llvm: dict[str, Any] = {"kind": "llvm", "mcpu": mcpu, "mtriple": triple}
    llvm.update(_MACHINES.get(arch, ()))
    added = tuple(_ATTRIBUTES[name] for name in features if name in _ATTRIBUTES)
    if added:
        llvm["mattr"] = (*llvm.get("mattr", ()), *added)
    return CpuTarget(target, tuple(llvm.items()), frozenset(features), arch)


def resolve_all(targets: Sequence[str | dict[str, Any]]) -> tuple[Target, ...]:
    """Targets that may share a file: CPUs by what they need, then GPUs by their capability.

    Raises:
        NybbleError: none at all, an unknown one, two of one name, or several architectures.
    """
    found = sorted(map(resolve, targets), key=_order)
    if not found:
        raise NybbleError("No target: give at least one, such as 'native'.")
    names = [target.name for target in found]
    if len(set(names)) < len(names):
        raise NybbleError(f"Targets {', '.join(names)}: every variant must have its own name.")
    machines = {host_of(target).arch for target in found}
    if len(machines) > 1:
        raise NybbleError(
            f"Targets {', '.join(names)}: one file holds variants for one architecture. Compile "
            f"once for each of {', '.join(sorted(machines))}."
        )
    return tuple(found)


def host_of(target: Target) -> CpuTarget:
    """The CPU that a network's code is loaded on: the target itself, or the GPU's host."""
    return target if isinstance(target, CpuTarget) else target.host


def _order(target: Target) -> tuple[int, int]:
    if isinstance(target, CpuTarget):
        return 0, len(target.features)
    return target.capability, 0


def _native() -> CpuTarget:
    arch, have = platform.machine(), host_features()
    levels = [cpu for cpu in map(resolve_cpu, _NAMED) if cpu.arch == arch and cpu.features <= have]
    if not levels:
        raise NybbleError(f"No target is known for this machine ({arch}); give a TVM target dict.")
    return max(levels, key=lambda cpu: len(cpu.features))


def _from_dict(target: dict[str, Any]) -> CpuTarget:
    if target.get("kind") != "llvm":
        raise NybbleError(f"Target {target}: only LLVM targets are built here (kind='llvm').")
    triple = str(target.get("mtriple", f"{platform.machine()}-linux-gnu"))
    mcpu = str(target.get("mcpu", "generic"))
    known = {  # TVM knows what LLVM would enable for this CPU
        "avx2": "avx2", "fma": "fma", "f16c": "f16c", "bmi": "bmi1", "bmi2": "bmi2",
        "movbe": "movbe", "avx512f": "avx512f", "avx512bw": "avx512bw", "avx512cd": "avx512cd",
        "avx512dq": "avx512dq", "avx512vl": "avx512vl", "avx512vnni": "avx512_vnni",
        "avxvnni": "avx_vnni", "avx512vpopcntdq": "avx512_vpopcntdq", "avx512vbmi": "avx512vbmi",
        "amx-tile": "amx_tile", "amx-int8": "amx_int8",
        "neon": "asimd", "dotprod": "asimddp", "i8mm": "i8mm", "v": "v",
    }  # fmt: skip
    # LLVM itself would print a line and compile for a generic CPU; it crashes on unknown triples.
    if not tvm.target.codegen.llvm_is_valid_cpu(mcpu, triple):
        raise NybbleError(f"Target {target}: LLVM knows no CPU '{mcpu}' for '{triple}'.")
    try:
        made = tvm.target.Target(target)
    except ValueError as error:
        raise NybbleError(f"Target {target}: {error}") from error
    enabled = set(tvm.target.codegen.llvm_get_cpu_features(made))
    llvm = tuple((k, tuple(v) if isinstance(v, list) else v) for k, v in sorted(target.items()))
    features = frozenset(ours for llvms, ours in known.items() if llvms in enabled)
    return CpuTarget(f"llvm:{mcpu}", llvm, features, triple.partition("-")[0])


@cache
def host_features() -> frozenset[str]:
    """The CPU features that code may use here, as Linux reports them; empty where it does not.

    Asks for AMX's tile registers where the CPU has them; they count only when Linux grants them.
    """
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return frozenset()
    return tiles.available(cpuinfo.parse(info.read_text().splitlines()))
