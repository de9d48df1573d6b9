"""A scheduled module compiled: an LLVM module per kernel, behind the Relax VM's bytecode."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import relax, tirx

from nybble.schedules import bytecode
from nybble.schedules.cuda import build as cuda
from nybble.schedules.cuda.arch import CudaTarget
from nybble.schedules.cuda.nvcc import Usage
from nybble.schedules.target import CpuTarget, Target

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Built:
    """A compiled module.

    Attributes:
        executable: the Relax VM's.
        usage: what its kernels take of a GPU's resources; empty for CPUs.
        graphed: there is a second entry, which launches CUDA graphs.
    """

    executable: Any
    usage: tuple[Usage, ...] = ()
    graphed: bool = False


def build(mod: tvm.IRModule, target: Target, progress: Progress | None = None) -> Any:
    """`built`, the executable alone."""
    return built(mod, target, progress).executable


def built(mod: tvm.IRModule, target: Target, progress: Progress | None = None) -> Built:
    """Compiles a scheduled module to a Relax VM executable.

    No op is legalized and no function scheduled here: what `lower` wrote is what runs. Reshapes
    become views; intermediate tensors share memory where their lives do not overlap.

    Args:
        mod: stage ``scheduled``.
        target: what it runs on.
        progress: called with (kernels compiled, kernels in all). Compiling them one by one costs
            no more than all at once, and there is something to tell in the meantime.

    Raises:
        NybbleError: for GPUs, there is no ``nvcc``, or TVM's CUDA runtime does not load.
        ScheduleError: ``nvcc`` refuses a kernel.
    """
    if isinstance(target, CudaTarget):
        return Built(*cuda.build(mod, target, progress), cuda.is_static(mod))
    with target.tvm_target():
        mod = bytecode.lowered(mod)
    functions = dict(mod.functions.items())
    kernels = [g for g, f in functions.items() if isinstance(f, tirx.PrimFunc)]
    libraries = []
    # The first goes with the bytecode: TVM wants one there. All of them do as C, whose modules have
    # global names in common.
    for kernel in [] if target.is_c else kernels[1:]:
        alone = tvm.IRModule({kernel: functions.pop(kernel)})
        libraries.append(kernel_library(alone, target))
        if progress is not None:
            progress(len(libraries), len(kernels))
    rest = tvm.IRModule(functions).with_attr("external_mods", libraries)
    with _settings(target):
        executable = relax.build(rest, target=target.tvm_target(), relax_pipeline=None)
    if progress is not None:
        progress(len(kernels), len(kernels))
    return Built(executable)


def kernel_library(mod: tvm.IRModule, target: CpuTarget) -> Any:
    """TVM's module of machine code for TensorIR functions with global symbols."""
    with _settings(target):
        return tirx.build(mod, target=target.tvm_target())


def _settings(target: CpuTarget) -> tvm.transform.PassContext:
    """C has no vectors. On RISC-V with V, TVM would mask loads and fails where lanes are mixed."""
    masked = {"tirx.enable_buffer_level_predication": False}
    return tvm.transform.PassContext(config={**masked, "tirx.disable_vectorize": target.is_c})
