"""What staging float and integer rows for `gemv_template` shares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.tirx.script.builder import ir as T

from nybble.schedules.cpu.gemv_registers import Registers

LANES = 8


def total(x: Any, begin: Any, count: int) -> Any:
    """The sum of ``count`` staged integers, a multiple of eight, as int32."""
    sums = Registers(1, "int32", LANES)
    sums.clear()
    with T.serial(count // LANES) as i:
        some = x.vload([begin + i * LANES], f"{x.dtype}x{LANES}")
        sums[0] = sums[0] + T.Cast(f"int32x{LANES}", some)
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
