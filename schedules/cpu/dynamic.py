"""Float rows to integers and back, with scales that are found at run time.

Magnitudes are compared as bit patterns without sign, where infinity and NaN are simply the largest.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import te, tirx

from nybble.ir.weight_only import LEAST, MOST
from nybble.schedules.cpu import elementwise, loops
from nybble.schedules.kernel import Constants, Kernel, Knobs, Problem

INFINITY, NAN = 0x7F800000, 0x7FC00000


def _int(value: int) -> Any:
    return tirx.const(value, "int32")


def _magnitude(x: Any) -> Any:
    """The bit pattern of |x|."""
    return tirx.reinterpret("int32", x) & _int(0x7FFFFFFF)


def define_tops(problem: Problem) -> Any:
    """``row_tops``, unscheduled: a block ``largest`` that reduces, and ``out`` behind it."""
    x = loops.Symbols().tensor(problem.inputs[0], "x")
    k = te.reduce_axis((0, x.shape[-1]), "k")
    largest = te.compute(
        [*x.shape[:-1], 1],
        lambda *index: te.max(_magnitude(x(*index[:-1], k)), axis=k),
        "largest",
    )

    def top(*index: Any) -> Any:
        bits = tirx.max(largest(*index), _int(int(LEAST.view("int32"))))
        found = tirx.Select(largest(*index) < _int(INFINITY), bits, _int(NAN))
        return tirx.reinterpret("float32", found)

    return loops.function([x, te.compute(largest.shape, top, "out")])


def define_quantized(problem: Problem) -> Any:
    """``quantize_rows``, unscheduled: a block ``factor`` for each row; without one it is zeros."""
    symbols = loops.Symbols()
    x, top = (symbols.tensor(s, n) for s, n in zip(problem.inputs, ("x", "top"), strict=True))

    most, zero = tirx.const(float(MOST), "float32"), tirx.const(0.0, "float32")
    factor = te.compute(top.shape, lambda *index: most / top(*index), "factor")

    def value(*index: Any) -> Any:
        has_scale = _magnitude(factor(*index[:-1], 0)) < _int(INFINITY)
        steps = tirx.Select(has_scale, x(*index) * factor(*index[:-1], 0), zero)
        return tirx.nearbyint(steps).astype("int32").astype("int8")

    return loops.function([x, top, te.compute(x.shape, value, "out")])


def define_rescaled(problem: Problem) -> Any:
    """``rescale_rows``, unscheduled: a block ``factor`` for each row."""
    symbols, channels = loops.Symbols(), problem.output.shape[-1]
    acc, top = (symbols.tensor(s, n) for s, n in zip(problem.inputs, ("x", "top"), strict=True))
    scale, bias = (te.placeholder((channels,), "float32", n) for n in ("scale", "bias"))

    most = tirx.const(float(MOST), "float32")
    factor = te.compute(top.shape, lambda *index: top(*index) / most, "factor")

    def value(*index: Any) -> Any:
        product, row = acc(*index).astype("float32") * scale[index[-1]], factor(*index[:-1], 0)
        return tirx.call_llvm_pure_intrin("float32", "llvm.fma", product, row, bias[index[-1]])

    return loops.function([acc, top, scale, bias, te.compute(acc.shape, value, "out")])


def pack_rescaled(_problem: Problem, constants: Constants) -> list[NDArray[Any]]:
    """Scales and biases."""
    return [np.asarray(constants[name], np.float32) for name in ("scale", "bias")]


def _no_constants(_problem: Problem, _constants: Constants) -> list[NDArray[Any]]:
    return []


def _build_tops(problem: Problem, _target: Any, _knobs: Knobs) -> Any:
    sch = define_tops(problem)
    out, largest = sch.get_sblock("out"), sch.get_sblock("largest")
    *rows, one = sch.get_loops(out)
    sch.compute_at(largest, one, preserve_unit_loops=True)
    sch.set_scope(largest, 0, "local")
    sch.decompose_reduction(largest, sch.get_loops(largest)[-1])
    loops.parallel(sch, rows, loops.static_size(problem.inputs[0].shape))
    return sch.mod["main"]


def _build(define: Callable[[Problem], Any], problem: Problem, _target: Any, _knobs: Knobs) -> Any:
    sch = define(problem)
    factor, out = sch.get_sblock("factor"), sch.get_sblock("out")
    *rows, channels = sch.get_loops(out)
    width = loops.lanes_of(sch.get(channels).extent)
    if width > 1:
        sch.vectorize(sch.split(channels, [None, width])[1])
    row = loops.parallel(sch, rows, 2 * loops.static_size(problem.output.shape))
    sch.compute_at(factor, row, preserve_unit_loops=True)
    sch.set_scope(factor, 0, "local")
    return sch.mod["main"]


def _always(_problem: Problem, _target: Any) -> str | None:
    return None


KERNELS = (
    Kernel(elementwise.NAME, "row_tops", _always, _no_constants, _build_tops),
    Kernel(elementwise.NAME, "quantize_rows", _always, _no_constants,
           partial(_build, define_quantized)),
    Kernel(elementwise.NAME, "rescale_rows", _always, pack_rescaled,
           partial(_build, define_rescaled)),
)  # fmt: skip
