"""A scheduled module compiled for GPUs: a fat binary per kernel, behind the Relax VM's bytecode.

Constants are loaded to the device once, intermediate tensors share its memory where their lives do
not overlap. A network of static shapes is there twice, with the same kernels and constants:

    main     launches kernel after kernel, so that an instrument can stand between them
    graphed  captures what lies between inputs and outputs as a CUDA graph in its first call, and
             launches it as a whole in later ones
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import tvm
from tvm import relax, tirx

from nybble.errors import ScheduleError
from nybble.ir import graph
from nybble.schedules import bytecode
from nybble.schedules.cuda import compile as code
from nybble.schedules.cuda import workspace
from nybble.schedules.cuda.arch import CudaTarget
from nybble.schedules.cuda.nvcc import Usage

GRAPHED = "graphed"  # as `nybble.runtime.session` calls it
_GRAPHS = "relax.backend.use_cuda_graph"
Progress = Callable[[int, int | None], None]


def build(
    mod: tvm.IRModule, target: CudaTarget, progress: Progress | None = None
) -> tuple[Any, tuple[Usage, ...]]:
    """Compiles a scheduled module to a Relax VM executable.

    Args:
        mod: stage ``scheduled``; every function binds threads.
        target: the GPUs.
        progress: called with (kernels compiled, kernels in all).

    Returns:
        The executable, and what its kernels take.

    Raises:
        NybbleError: there is no ``nvcc``, or TVM's CUDA runtime does not load.
        ScheduleError: ``nvcc`` refuses a kernel, or one takes memory that no graph may hold.
    """
    mod = workspace.planned(mod) if is_static(mod) else mod
    kernels = {name: f for name, f in mod.functions.items() if isinstance(f, tirx.PrimFunc)}
    for done in code.prepare(kernels.values(), target):
        if progress is not None:
            progress(done, len(kernels))
    given, rest = target.tvm_target(), tvm.IRModule(_bytecode(mod, target))
    compiled = [code.device_code(f, target) for f in kernels.values()]
    if is_static(mod):
        _check_memory(kernels, compiled)
    rest = rest.with_attr("external_mods", [one.module for one in compiled])
    executable = relax.build(rest, target=given, relax_pipeline=None)
    return executable, tuple(usage for one in compiled for usage in one.usage)


def _check_memory(kernels: Iterable[Any], compiled: Iterable[code.Compiled]) -> None:
    names = [str(k.name_hint) for k, c in zip(kernels, compiled, strict=True) if c.takes_workspace]
    if names:
        raise ScheduleError(
            f"{', '.join(names)}: memory of TVM's pool, which moves it, would stand in a CUDA "
            "graph. This is a defect of Nybble: please report it."
        )


def is_static(mod: tvm.IRModule) -> bool:
    """Whether the inputs have no symbolic extents, so that a call can be captured as a graph."""
    return all(isinstance(d, int) for p in graph.inputs(mod) for d in graph.shape_of(p))


def _bytecode(mod: tvm.IRModule, target: CudaTarget) -> dict[Any, Any]:
    """The functions that become bytecode, and the host's own: without the kernels."""
    kernels = {str(name.name_hint) for name, f in mod.functions.items() if _is_tensorir(f)}
    found = dict(_to_vm(mod, target, False).functions.items())
    if is_static(mod):
        renamed = {_graphed(name): f for name, f in mod.functions.items()}
        captured = _to_vm(tvm.IRModule(renamed), target, True).functions.items()
        found |= {name: f for name, f in captured if not _is_tensorir(f)}
    return {name: f for name, f in found.items() if str(name.name_hint) not in kernels}


def _is_tensorir(func: Any) -> bool:
    return isinstance(func, tirx.PrimFunc)


def _graphed(name: Any) -> Any:
    return tvm.ir.GlobalVar(GRAPHED) if str(name.name_hint) == "main" else name


def _to_vm(mod: tvm.IRModule, target: CudaTarget, has_graphs: bool) -> tvm.IRModule:
    with target.tvm_target(), tvm.transform.PassContext(config={_GRAPHS: has_graphs}):
        return bytecode.lowered(mod, has_graphs)
