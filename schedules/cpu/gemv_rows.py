"""What staging float and integer rows for `gemv_template` shares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

LANES = 8


def total(x: Any, begin: Any, count: int) -> Any:
    """The sum of ``count`` staged integers, a multiple of eight, as int32."""
    sums = T.alloc_buffer((1,), f"int32x{LANES}", scope="local", layout=None)
    T.buffer_store(sums, T.broadcast(tirx.const(0, "int32"), LANES), [0])
    with T.serial(count // LANES) as i:
        some = x.vload([begin + i * LANES], f"{x.dtype}x{LANES}")
        T.buffer_store(sums, sums[0] + T.Cast(f"int32x{LANES}", some), [0])
    return T.call_llvm_pure_intrin("int32", "llvm.vector.reduce.add", sums[0])


def sweep(visit: Callable[[Any, int], None], count: int, lanes: int = LANES) -> None:
    """Visits ``count`` elements in vectors; the last one may overlap its predecessor."""
    if count < lanes:
        with T.serial(count) as i:
            visit(i, 1)
        return
    with T.serial(count // lanes) as i:
        visit(i * lanes, lanes)
    if count % lanes:
        visit(count - lanes, lanes)
