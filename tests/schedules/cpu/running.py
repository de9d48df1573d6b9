"""Compiles one kernel for one case and runs it with sentinels around the output."""

from typing import Any

import numpy as np
import tvm
import tvm_ffi
from numpy.typing import NDArray

import nybble.ir
from nybble.ir import numerics
from nybble.schedules.cpu import elementwise
from nybble.schedules.kernel import Kernel, Knobs
from nybble.schedules.target import CpuTarget
from tests.cases import Arrays, Case

GUARD = 256
SENTINEL = 0xA5
ODD = 5  # elements beyond a cache line at which activations begin


def compiled(kernel: Kernel, case: Case, target: CpuTarget, knobs: Knobs | None = None) -> Any:
    """The kernel's function, compiled."""
    function = kernel.build(case.problem(), target, knobs or Knobs())
    module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    return tvm.compile(module, target=target.tvm_target())["main"]


def arguments(kernel: Kernel, case: Case, arrays: Arrays) -> list[Any]:
    """Activations and packed constants as tensors, in the order of the parameters.

    The session aligns what a caller hands over, as TVM's own schedules of `cpu.generic` need it;
    all others must take activations from anywhere.
    """
    constants = {name: values for name, values in arrays.items() if name not in ("x", "b")}
    activations = [arrays[name] for name in ("x", "b") if name in arrays]
    packed = kernel.constants(case.problem(), constants)
    loose = [tensor(placed(a, kernel)[1]) for a in activations]
    return [*loose, *(tvm.runtime.tensor(np.ascontiguousarray(a)) for a in packed)]


def placed(array: NDArray[Any], kernel: Kernel) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """A copy amid sentinels: (the memory around it, the copy itself)."""
    raw = np.full(array.nbytes + 2 * GUARD + 64, SENTINEL, np.uint8)
    start = GUARD + -(raw.ctypes.data + GUARD) % 64
    start += 0 if kernel.name == elementwise.NAME else ODD * array.itemsize
    view = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    view[...] = array
    return raw, view


def tensor(array: NDArray[Any]) -> Any:
    """A tensor that shares the array's memory, wherever it begins."""
    return tvm_ffi.from_dlpack(array, require_alignment=1)


def run(kernel: Kernel, case: Case, function: Any, arrays: Arrays) -> NDArray[Any]:
    """The kernel's output; raises AssertionError if it wrote beside its output."""
    fill = np.frombuffer(bytes([SENTINEL]) * 4, numerics.storage(case.dtypes[1]))[0]
    raw, view = placed(np.full(case.y, fill), kernel)
    function(*arguments(kernel, case, arrays), tensor(view))
    check_around(raw, view)
    return view


def check_around(raw: NDArray[np.uint8], view: NDArray[Any]) -> None:
    """Raises AssertionError if a kernel wrote beside a copy that `placed` made."""
    start = view.ctypes.data - raw.ctypes.data
    assert (raw[:start] == SENTINEL).all(), "wrote before its output"
    assert (raw[start + view.nbytes :] == SENTINEL).all(), "wrote behind its output"


def check(kernel: Kernel, case: Case, target: CpuTarget, knobs: Knobs | None = None) -> None:
    """Compiles, runs, and compares with the law bit for bit."""
    arrays = case.data()
    got = run(kernel, case, compiled(kernel, case, target, knobs), arrays)
    np.testing.assert_array_equal(got, case.law(arrays), err_msg=f"{kernel.name} {case.name}")


__all__ = ["arguments", "check", "compiled", "nybble", "run"]
