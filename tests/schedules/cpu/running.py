"""Compiles one kernel for one case and runs it with sentinels around the output."""

from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray

import nybble.ir
from nybble.ir import numerics
from nybble.schedules.kernel import Kernel, Knobs
from nybble.schedules.target import CpuTarget
from tests.cases import Arrays, Case

GUARD = 256
SENTINEL = 0xA5


def compiled(kernel: Kernel, case: Case, target: CpuTarget, knobs: Knobs | None = None) -> Any:
    """The kernel's function, compiled."""
    function = kernel.build(case.problem(), target, knobs or Knobs())
    module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    return tvm.compile(module, target=target.tvm_target())["main"]


def arguments(kernel: Kernel, case: Case, arrays: Arrays) -> list[Any]:
    """Activations and packed constants as tensors, in the order of the parameters."""
    constants = {name: values for name, values in arrays.items() if name not in ("x", "b")}
    activations = [arrays[name] for name in ("x", "b") if name in arrays]
    packed = kernel.constants(case.problem(), constants)
    return [tvm.runtime.tensor(np.ascontiguousarray(a)) for a in (*activations, *packed)]


def run(kernel: Kernel, case: Case, function: Any, arrays: Arrays) -> NDArray[Any]:
    """The kernel's output; raises AssertionError if it wrote beside its output."""
    dtype = numerics.storage(case.dtypes[1])
    size = int(np.prod(case.y)) * dtype.itemsize
    raw = np.full(size + 2 * GUARD + 64, SENTINEL, np.uint8)
    start = GUARD + -(raw.ctypes.data + GUARD) % 64  # kernels may rely on tensors' alignment
    view = raw[start : start + size].view(dtype).reshape(case.y)
    function(*arguments(kernel, case, arrays), tvm.runtime.from_dlpack(view))
    assert (raw[:start] == SENTINEL).all(), "wrote before its output"
    assert (raw[start + size :] == SENTINEL).all(), "wrote behind its output"
    return view


def check(kernel: Kernel, case: Case, target: CpuTarget, knobs: Knobs | None = None) -> None:
    """Compiles, runs, and compares with the law bit for bit."""
    arrays = case.data()
    got = run(kernel, case, compiled(kernel, case, target, knobs), arrays)
    np.testing.assert_array_equal(got, case.law(arrays), err_msg=f"{kernel.name} {case.name}")


__all__ = ["arguments", "check", "compiled", "nybble", "run"]
