"""Quantizes float rows on the fly for weight-only layers: integers, their sums, and a scale each.

The largest magnitude of a row is found among the bit patterns without sign, as integers: infinity
and NaN are simply the largest, and no comparison can lose them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from nybble.ir.weight_only import LEAST, MOST
from nybble.schedules.cpu.gemv_layout import Layout
from nybble.schedules.cpu.gemv_registers import Registers
from nybble.schedules.cpu.gemv_rows import LANES, sweep, total

INFINITY = 0x7F800000
NAN = 0x7FC00000


@dataclass(frozen=True)
class Rows:
    """Quantized rows, all flat.

    Attributes:
        x: (rows, layout.row) integers, zeros where a group is padded.
        sums: (rows, groups) int32: the correction for the codes' zero, `factor`·Σ of a group.
        scale: (rows,) float32.
    """

    x: Any
    sums: Any
    scale: Any


def allocate(layout: Layout, count: Any) -> Rows:
    """Buffers for ``count`` rows."""
    return Rows(
        T.alloc_buffer((count * layout.row,), layout.dot.x, layout=None),
        T.alloc_buffer((count * layout.groups,), "int32", layout=None),
        T.alloc_buffer((count,), "float32", layout=None),
    )


def quantize(layout: Layout, source: Any, rows: Rows, row: Any, factor: int) -> None:
    """Emits the quantization of one row.

    Args:
        layout: of the weights that it will meet.
        source: float32 activations, flat.
        rows: where the results go.
        row: which.
        factor: what the sums are multiplied by; 0 for layers that need none.
    """
    begin, to = T.Bind(row * layout.k), T.Bind(row * layout.row)
    pattern = _top(layout, source, begin)
    bound = tirx.max(pattern, tirx.const(int(LEAST.view("int32")), "int32"))
    bound = T.Select(pattern >= INFINITY, tirx.const(NAN, "int32"), bound)
    top = T.Bind(T.reinterpret("float32", bound))
    most = tirx.const(float(MOST), "float32")
    T.buffer_store(rows.scale, top / most, [row])
    inverse = T.Bind(most / top)
    for count, repeat, stride in _spans(layout):
        with T.serial(repeat) as group:
            span = (begin + group * layout.group + stride * layout.group,
                    to + group * layout.padded + stride * layout.padded)  # fmt: skip
            _quantize_span(layout, source, rows.x, (*span, count), inverse)
    if factor:
        with T.serial(layout.groups) as group:
            summed = total(rows.x, to + group * layout.padded, layout.padded)
            T.buffer_store(rows.sums, summed * factor, [row * layout.groups + group])


def clear(layout: Layout, rows: Rows, first: Any, count: Any) -> None:
    """Zeros in staged rows that no quantization fills completely."""
    zero = T.broadcast(tirx.const(0, layout.dot.x), LANES)
    with T.serial(count * (layout.row // LANES)) as i:
        T.buffer_store(rows.x, zero, [T.ramp(first * layout.row + i * LANES, 1, LANES)])


def is_gapless(layout: Layout) -> bool:
    """Whether staged rows hold nothing but activations."""
    return layout.row == layout.k


def _spans(layout: Layout) -> Iterator[tuple[int, int, int]]:
    """Runs of activations that stay together: (length, how many, groups before them)."""
    if layout.padded == layout.group:
        yield layout.k, 1, 0
        return
    full, rest = divmod(layout.k, layout.group)
    if full:
        yield layout.group, full, 0
    if rest:
        yield rest, 1, full


def _top(layout: Layout, source: Any, begin: Any) -> Any:
    """The largest bit pattern without sign of a row."""
    best = Registers(1, "int32", LANES)
    best.clear()

    def visit(at: Any, lanes: int) -> None:
        bits = _bits(source, begin + at, lanes)
        wide = bits if lanes == LANES else T.broadcast(bits, LANES)
        best[0] = tirx.max(best[0], wide)

    sweep(visit, layout.k)
    return T.Bind(T.call_llvm_pure_intrin("int32", "llvm.vector.reduce.smax", best[0]))


def _bits(source: Any, at: Any, lanes: int) -> Any:
    if lanes == 1:
        return T.reinterpret("int32", source[at]) & tirx.const(0x7FFFFFFF, "int32")
    bits = T.reinterpret(f"int32x{lanes}", source.vload([at], f"float32x{lanes}"))
    return bits & T.broadcast(tirx.const(0x7FFFFFFF, "int32"), lanes)


def _quantize_span(
    layout: Layout, source: Any, to: Any, span: tuple[Any, Any, int], inverse: Any
) -> None:
    """``span[2]`` activations from ``span[0]`` on to ``span[1]`` and on."""
    begin, end, count = span

    def visit(at: Any, lanes: int) -> None:
        if lanes == 1:  # in one lane of a vector: the conversion rounds to even
            q = _rounded(T.broadcast(source[begin + at], LANES) * T.broadcast(inverse, LANES))
            first = T.call_llvm_pure_intrin("int32", "llvm.vector.reduce.smax", q)
            T.buffer_store(to, T.Cast(layout.dot.x, first), [end + at])
            return
        x = source.vload([begin + at], f"float32x{lanes}")
        q = _rounded(x * T.broadcast(inverse, lanes))
        T.buffer_store(to, T.Cast(f"{layout.dot.x}x{lanes}", q), [T.ramp(end + at, 1, lanes)])

    sweep(visit, count)


def _rounded(x: Any) -> Any:
    """To integers, half to even; NaN gives -2^31, whose low byte is 0."""
    return T.call_llvm_pure_intrin(f"int32x{LANES}", "llvm.x86.avx.cvt.ps2dq.256", x)
