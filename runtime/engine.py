"""The TVM runtime, found and loaded without the ``tvm`` Python package.

``import tvm`` maps the compiler, 260 MB of it. Running a library takes ``libtvm_runtime.so`` and
``tvm_ffi`` alone. The same files are mapped as ``import tvm`` would map, so a process that has
loaded a network may import the compiler afterwards.
"""

from __future__ import annotations

import ctypes
import importlib.util
import itertools
import os
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from nybble.errors import ArtifactError
from nybble.runtime import gpu, host, parameters
from nybble.runtime.manifest import Manifest, Variant
from nybble.torchless import without_torch

_CPU = 1  # kDLCPU
_POOLED = 2  # the VM's allocator that keeps freed storage for the next call
_MAIN, _GRAPHED, _BOUND = "main", "graphed", "bound"  # entries; the last one with its parameters
_SHARE_ALL_CPUS = -3  # TVM's ThreadGroup::kSpecifyThreadShareAllCore
_THREADS = "TVM_NUM_THREADS"
_loads = itertools.count()
_pool = threading.local()  # what we know of the calling thread's pool
T = TypeVar("T")


@cache
def ffi() -> Any:
    """The ``tvm_ffi`` package with the TVM runtime behind it.

    Raises:
        ArtifactError: the runtime is not installed.
    """
    package = importlib.util.find_spec("tvm")  # finds, imports nothing
    if package is None or package.origin is None or importlib.util.find_spec("tvm_ffi") is None:
        raise ArtifactError("The TVM runtime is missing. Install it: pip install apache-tvm.")
    library = Path(package.origin).parent / "lib" / "libtvm_runtime.so"
    with without_torch():
        import tvm_ffi  # noqa: PLC0415  (torch is hidden only in here)
    try:
        ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise ArtifactError(f"The TVM runtime cannot be loaded: {error}.") from error
    os.register_at_fork(after_in_child=_forget_threads)
    return tvm_ffi


def release_memory() -> None:
    """Gives back what the virtual machines' allocators keep for their next calls.

    They keep every buffer under its size, so a network that is called with ever other shapes would
    keep the buffers of all of them.
    """
    ffi().get_global_func("vm.builtin.memory_manager.clear")()


class Memory:
    """This machine's own memory, which kernels on the CPU read and write where it is."""

    def __init__(self) -> None:
        self._tensor = ffi().from_dlpack

    def take(self, arrays: Sequence[NDArray[Any]]) -> list[Any]:
        """The arrays as tensors, in their places."""
        return [self._tensor(array) for array in arrays]

    def give(self, tensor: Any) -> NDArray[Any]:
        """A tensor as an array that owns its memory through the runtime's tensor."""
        return np.from_dlpack(tensor)

    def wait(self) -> None:
        """Nothing: calls return when they are done."""


class Machine(NamedTuple):
    """A Relax virtual machine, for one call at a time."""

    run: Callable[..., Any]
    """The network."""
    traced: Callable[..., Any]
    """The same kernel after kernel, without graphs."""
    instrument: Callable[[Any], None]
    """Sets what is called around every function; None for nothing."""


class Library:
    """An opened library, whose machines share its code and its constants.

    Args:
        module: TVM's executable.
        places: devices and allocators of a virtual machine.
        parameters: constants that its entry takes behind the inputs.
        entry: what a call runs.
    """

    def __init__(self, module: Any, places: Sequence[int], parameters: Sequence[Any], entry: str):
        self._module = module
        self._places = places
        self._parameters = parameters
        self._entry = entry

    def machine(self) -> Machine:
        """A further virtual machine; on a CPU it takes next to nothing."""
        vm = self._module["vm_load_executable"]()
        vm["vm_initialization"](*self._places)
        entry = self._entry
        if self._parameters:
            vm["save_function"](_MAIN, _BOUND, True, *self._parameters)
            entry = _BOUND
        traced = vm[_BOUND if self._parameters else _MAIN]
        return Machine(vm[entry], traced, vm["set_instrument"])


def open_variant(path: Path, variant: Variant) -> Library:
    """One library of a file whose bytes have been verified.

    The dynamic linker opens whole files only, so a variant behind others is copied to one that
    lives in memory and has no name (or to a temporary file, where the kernel has no
    ``memfd_create``).

    Raises:
        ArtifactError: the copy cannot be made, or the dynamic linker or the runtime refuses the
            library, or of a GPU's, the runtime for it is missing; its file of parameters is missing
            or another one.
    """
    if variant.offset == 0:
        return _open(path.resolve(), path, variant.manifest)
    try:
        with _nameless() as copy, path.open("rb") as file:
            file.seek(variant.offset)
            copy.write(file.read(variant.size))
            copy.flush()
            return _open(Path(f"/proc/self/fd/{copy.fileno()}"), path, variant.manifest)
    except OSError as error:
        raise ArtifactError(
            f"{path}: the variant {variant.manifest.target} cannot be copied to be opened: {error}."
        ) from error


def _nameless() -> BinaryIO:
    """A file that vanishes when it is closed and no longer mapped."""
    try:
        return os.fdopen(os.memfd_create("nybble", os.MFD_CLOEXEC), "w+b")
    except OSError:  # an old kernel, or one that forbids it
        return cast("BinaryIO", tempfile.TemporaryFile())


def _open(library: Path, shown: Path, manifest: Manifest) -> Library:
    ffi()
    if manifest.device:
        gpu.load_runtime()
    stored = parameters.load(shown, manifest.parameters) if manifest.parameters else []
    load = ffi().get_global_func("ffi.Module.load_from_file.so")  # whatever the file is called
    keep = ffi().get_global_func("ffi.ModuleGlobalsAdd")
    try:
        module = load(_fresh_name(library), "so")
        keep(module)  # tensors and functions of the library may outlive the virtual machine
    except (RuntimeError, AttributeError) as error:
        raise ArtifactError(f"{shown}: the TVM runtime refuses it: {error}") from error
    places = [*((*gpu.DEVICE, _POOLED) if manifest.device else ()), _CPU, 0, _POOLED]
    entry = _GRAPHED if manifest.device and manifest.device["graphed"] else _MAIN
    return Library(module, places, list(map(ffi().from_dlpack, stored)), entry)


def _fresh_name(path: Path) -> str:
    """The path, spelled as never before in this process.

    ``dlopen`` returns an open library of the same name without looking at the file, so a network
    that was compiled again to the same place would run its old code.
    """
    detour = f"{next(_loads):b}".replace("0", "/").replace("1", "./")
    return f"{path.parent}/{detour}{path.name}"


def default_threads() -> int:
    """Threads where nobody says how many: of a session, and of what is tuned for one.

    ``TVM_NUM_THREADS`` where it is set, else the physical cores; at most the CPUs of the process.
    """
    chosen = os.environ.get(_THREADS, "")
    is_set = chosen.isdecimal() and int(chosen) > 0
    return min(int(chosen) if is_set else host.physical_cores(), len(host.cpus()))


def run(count: int, work: Callable[[], T]) -> T:
    """Calls ``work`` with its kernels on ``count`` threads.

    TVM keeps one pool of workers for each calling thread, and a pool never grows. Where another
    user of TVM has started this thread's pool too small, or the process is a fork of the one whose
    workers they were, the work goes to a thread of our own.

    Args:
        count: at most the CPUs that the process may use.
        work: calls a library.

    Raises:
        ArtifactError: TVM starts fewer workers than that.
    """
    if _configure(count):
        return work()
    return _own_thread().submit(_run_here, count, work).result()


def _run_here(count: int, work: Callable[[], T]) -> T:
    if not _configure(count):
        raise ArtifactError(f"TVM's thread pool does not start {count} workers on this machine.")
    return work()


@cache
def _own_thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "nybble")


def _forget_threads() -> None:
    """After a fork: only the thread that forked lives on, in its pool nobody works."""
    _own_thread.cache_clear()
    _pool.is_dead = True


def _configure(count: int) -> bool:
    """Sets this thread's pool to ``count`` workers; False where it was started smaller, or is dead.

    TVM is given the CPUs by name: left to itself it counts hyper-threads as half a core, launches
    nothing in parallel on a machine of two, and binds the caller to one CPU.
    """
    if getattr(_pool, "is_dead", False):
        return False
    if getattr(_pool, "count", None) == count:
        return True
    if count > getattr(_pool, "largest", count):
        return False
    names = [str(cpu) for cpu in host.cpus()]
    ffi().get_global_func("runtime.config_threadpool")(_SHARE_ALL_CPUS, count, names)
    _pool.count = ffi().get_global_func("runtime.NumThreads")()
    if _pool.count < count:
        _pool.largest = _pool.count
    return bool(_pool.count == count)
