"""TensorIR functions to CUDA machine code for all architectures of a generation.

    PrimFunc -> host function + device functions -> CUDA source -> nvcc -> fat binary

Functions of TensorIR schedules (``T.prim_func(s_tir=True)``) and those written for threads, with
``T.device_entry`` and ``T.ptx``, are lowered by different passes of TVM: ``s_tir`` and ``tirx``.
The functions' attribute ``s_tir``, which TVM's parser and builder set, tells which.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.tirx.build import codegen_build, split_host_device_mods

from nybble.errors import NybbleError, ScheduleError
from nybble.schedules.cuda import nvcc, toolkit
from nybble.schedules.cuda.arch import CudaTarget
from nybble.schedules.cuda.nvcc import Usage

_COMPILE, _POSTPROC = "tvm_callback_cuda_compile", "tvm_callback_cuda_postproc"
_lock = threading.RLock()  # the callbacks are the process's


@dataclass(frozen=True)
class Compiled:
    """One or several functions as machine code.

    Attributes:
        functions: the device functions as CUDA source was made of them.
        source: the CUDA source.
        binary: the fat binary.
        usage: registers, spills and memory by kernel and architecture.
        module: TVM's module: host code that launches, with the binary inside.
        takes_workspace: the host code takes memory of the thread's pool for what device functions
            share; see `nybble.schedules.cuda.workspace`.
    """

    functions: tuple[tirx.PrimFunc, ...]
    source: str
    binary: bytes
    usage: tuple[Usage, ...]
    module: Any
    takes_workspace: bool = False


def lowered(func: Any, target: CudaTarget) -> tuple[tirx.PrimFunc, ...]:
    """The device functions of a TensorIR function, right before CUDA source is made of them.

    Threads are bound, shared memory is planned, barriers stand.

    Args:
        func: a PrimFunc, or a module of PrimFuncs of one kind, with global symbols.
        target: the GPUs.
    """
    return tuple(_split(func, target)[1].functions.values())


def device_code(func: Any, target: CudaTarget) -> Compiled:
    """Machine code of a TensorIR function.

    Args:
        func: a PrimFunc, or a module of PrimFuncs of one kind, with global symbols.
        target: the GPUs.

    Raises:
        NybbleError: there is no ``nvcc``, or TVM's CUDA runtime does not load.
        ScheduleError: nothing of the function runs on the device, or ``nvcc`` refuses it.
    """
    toolkit.load_backend()
    host, device = _split(func, target)
    if not device.functions:
        names = ", ".join(str(name.name_hint) for name in host.functions)
        raise ScheduleError(f"{names}: no thread is bound, so nothing of it would run on a GPU.")
    source = _source(device, target)
    binary = nvcc.binary_of(source, target)
    on_device = _generated(device, target, lambda _source: binary.data)
    if on_device.kind != "cuda":
        raise NybbleError(f"TVM made a module of {on_device.kind} in place of machine code.")
    module = codegen_build(host, target.host.tvm_target())
    module.import_module(on_device)
    asked = _shared_at_launch(host, device)
    usage = tuple(replace(u, shared=u.shared + asked.get(u.kernel, 0)) for u in binary.usage)
    found = tuple(device.functions.values())
    return Compiled(found, source, binary.data, usage, module, _takes_workspace(host))


def prepare(funcs: Iterable[Any], target: CudaTarget) -> Iterator[int]:
    """Compiles functions side by side into the cache, from which `device_code` takes them.

    Args:
        funcs: as of `device_code`.
        target: the GPUs.

    Yields:
        How many are done.

    Raises:
        NybbleError, ScheduleError: as of `device_code`.
    """
    toolkit.load_backend()
    jobs: dict[str, Any] = {}
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for func in funcs:
            device = _split(func, target)[1]
            source = _source(device, target) if device.functions else ""
            if source and source not in jobs:
                jobs[source] = pool.submit(nvcc.binary_of, source, target)
        for done, job in enumerate(jobs.values(), 1):
            job.result()
            yield done


# ---------------------------------------------------------------- TVM


def _split(func: Any, target: CudaTarget) -> tuple[tvm.IRModule, tvm.IRModule]:
    """Host and device functions, lowered to the end."""
    mod = func if isinstance(func, tvm.IRModule) else tvm.IRModule.from_expr(func)
    attrs = [one.attrs for one in mod.functions.values()]
    (is_scheduled,) = {bool(found and found.get("s_tir")) for found in attrs}
    lower, finish_host, finish_device = tirx.get_tir_pipeline("s_tir" if is_scheduled else "tirx")
    given = target.tvm_target()
    with given:
        mod = lower(tirx.transform.BindTarget(given)(mod))
        host, devices = split_host_device_mods(mod)
        made = [finish_device()(device) for device in devices.values()]
        return finish_host()(host), made[0] if made else tvm.IRModule({})


def _source(device: tvm.IRModule, target: CudaTarget) -> str:
    """The CUDA source of device functions.

    It is compiled outside of TVM's callback: an error loses its kind on the way through C++.
    """
    found: list[str] = []

    def keep(source: str) -> bytes:
        found.append(source)
        return b"/"  # TVM looks at the first byte only

    _generated(device, target, keep)
    (source,) = found
    return source


def _generated(device: tvm.IRModule, target: CudaTarget, compiled: Callable[[str], bytes]) -> Any:
    """TVM's module of device functions; ``compiled`` gets the source."""
    with _callbacks({_COMPILE: compiled, _POSTPROC: lambda source, _target: source}):
        return codegen_build(device, target.tvm_target())


_VALUE = 15  # of TVM's fields of an argument: what it holds


def _shared_at_launch(host: tvm.IRModule, device: tvm.IRModule) -> dict[str, int]:
    """Bytes of shared memory that host functions ask for, by kernel: each launch's last argument.

    Arguments are written one by one to the places of an array: (array, place, field, value).
    """
    asking = {
        str(name.name_hint)
        for name, func in device.functions.items()
        if "tirx.use_dyn_shared_memory" in func.attrs["tirx.kernel_launch_params"]
    }
    found: dict[str, int] = {}
    written: dict[int, Any] = {}

    def look(call: Any) -> None:
        name = str(getattr(call.op, "name", ""))
        if name == "tirx.tvm_struct_set" and int(call.args[2]) == _VALUE:
            written[int(call.args[1])] = getattr(call.args[3], "value", call.args[3])
        elif name == "tirx.tvm_call_packed_lowered":
            kernel, last = str(call.args[0].value), written.get(int(call.args[3]) - 1)
            if kernel in asking and isinstance(last, tirx.IntImm | int):
                found[kernel] = int(last)

    for func in host.functions.values():
        tvm_ffi.structural_walk(func.body, [(tvm.ir.Call, look)], order="pre")
    return found


def _takes_workspace(host: tvm.IRModule) -> bool:
    found: list[Any] = []

    def look(call: Any) -> None:
        if str(getattr(call.op, "name", "")).endswith("TVMBackendAllocWorkspace"):
            found.append(call)

    for func in host.functions.values():
        tvm_ffi.structural_walk(func.body, [(tvm.ir.Call, look)], order="pre")
    return bool(found)


@contextmanager
def _callbacks(ours: dict[str, Callable[..., Any]]) -> Iterator[None]:
    """Puts our functions in the place of those that TVM's code generation calls."""
    with _lock:
        before = {name: tvm_ffi.get_global_func(name, allow_missing=True) for name in ours}
        for name, function in ours.items():
            tvm_ffi.register_global_func(name, function, override=True)
        try:
            yield
        finally:
            for name, old in before.items():
                if old is None:
                    tvm_ffi.registry.remove_global_func(name)
                else:
                    tvm_ffi.register_global_func(name, old, override=True)
