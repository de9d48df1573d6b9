"""Resizing of NHWC images: pixels copied, and weighted sums of four with a fused requantization."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import te, tirx

from nybble.ir.resampling import places
from nybble.schedules.cpu import elementwise, loops, pooling
from nybble.schedules.kernel import Kernel, Knobs, Problem

TAPS = 4  # pixels that one of a bilinear result is made of


def define(problem: Problem) -> Any:
    """The function unscheduled: one block ``out``."""
    symbols, fused = loops.Symbols(), problem.epilogue.kind != "none"
    x = symbols.tensor(problem.inputs[0], "x")
    shape = symbols.extents(problem.output.shape)
    names = elementwise.epilogue_names(problem.epilogue)
    constants = elementwise.vectors(names, problem.output.shape[-1], {})
    entries = symbols.optional(problem.entries, "entries")
    pixel = (_copied if problem.op == "nearest2d" else _interpolated)(problem, x)

    def value(*index: Any) -> Any:
        read = elementwise.reader(constants, index[-1])
        found = pixel(*index)
        return elementwise.epilogue(problem, found, None, read, entries) if fused else found

    out = te.compute(shape, value, "out")
    return loops.function([x, *constants.values(), *([] if entries is None else [entries]), out])


def _copied(problem: Problem, x: te.Tensor) -> Callable[..., Any]:
    (up, over), (down, under) = problem.attr("up"), problem.attr("down")
    return lambda n, y, z, c: x[n, y * down // up, z * under // over, c]


def _interpolated(problem: Problem, x: te.Tensor) -> Callable[..., Any]:
    spec, mode = problem.inputs[0].shape, problem.attr("mode")
    axes = [
        places(mode, up, down, extent if isinstance(extent, int) else None)
        for extent, up, down in zip(
            spec[1:3], problem.attr("up"), problem.attr("down"), strict=True
        )
    ]

    def value(n: Any, y: Any, z: Any, c: Any) -> Any:
        total = tirx.const(0, "int32")
        for row, high in _neighbours(axes[0], y, x.shape[1]):
            for column, wide in _neighbours(axes[1], z, x.shape[2]):
                total = total + x[n, row, column, c].astype("int32") * (high * wide)
        return total

    return value


def _neighbours(axis: Any, at: Any, extent: Any) -> list[tuple[Any, Any]]:
    """(index, weight) of the two pixels around a place; an index beyond the image is its border."""
    place = at * axis.slope + axis.offset
    low, rest = tirx.floordiv(place, axis.unit), tirx.floormod(place, axis.unit).astype("int32")
    return [
        (tirx.max(tirx.min(low + step, extent - 1), 0), weight)
        for step, weight in enumerate((axis.unit - rest, rest))
    ]


def _build(problem: Problem, _target: Any, _knobs: Knobs) -> Any:
    sch = define(problem)
    taps = 1 if problem.op == "nearest2d" else TAPS
    loops.rows(sch, sch.get_sblock("out"), taps * loops.static_size(problem.output.shape))
    return sch.mod["main"]


def _always(_problem: Problem, _target: Any) -> str | None:
    return None


KERNELS = tuple(
    Kernel(elementwise.NAME, op, _always, pooling.pack, _build)
    for op in ("nearest2d", "bilinear2d")
)
