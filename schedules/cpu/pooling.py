"""Pooling over NHWC windows: maxima, and integer sums with a fused requantization."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray
from tvm import te, tirx

from nybble.schedules.cpu import elementwise, loops
from nybble.schedules.kernel import Constants, Kernel, Knobs, Problem


def pack(problem: Problem, constants: Constants) -> list[NDArray[Any]]:
    """The epilogue's constants."""
    return [constants[name] for name in elementwise.epilogue_names(problem.epilogue)]


def build(problem: Problem, _target: Any, _knobs: Knobs) -> Any:
    """The scheduled function: one vector of channels over the whole window at a time."""
    sch, window = define(problem), problem.attr("pool_size")
    work = window[0] * window[1] * loops.static_size(problem.output.shape)
    _schedule(sch, problem.epilogue.kind != "none", work)
    return sch.mod["main"]


def define(problem: Problem) -> Any:
    """The function unscheduled: a block ``pooled``, and behind it ``out`` with an epilogue."""
    symbols, attrs = loops.Symbols(), dict(problem.attrs)
    x = symbols.tensor(problem.inputs[0], "x")
    shape = symbols.extents(problem.output.shape)
    names = elementwise.epilogue_names(problem.epilogue)
    constants = elementwise.vectors(names, problem.output.shape[-1], {})
    entries = symbols.optional(problem.entries, "entries")
    pooled = _pool(problem, x, shape, attrs)

    def value(*index: Any) -> Any:
        read = elementwise.reader(constants, index[-1])
        return elementwise.epilogue(problem, pooled(*index), None, read, entries)

    is_fused = problem.epilogue.kind != "none"
    out = te.compute(shape, value, "out") if is_fused else pooled
    return loops.function([x, *constants.values(), *([] if entries is None else [entries]), out])


def _pool(problem: Problem, x: te.Tensor, shape: list[Any], attrs: dict[str, Any]) -> te.Tensor:
    (top, left, _, _), (down, across) = attrs["padding"], attrs["strides"]
    along, beside = attrs.get("dilation", (1, 1))
    rows = te.reduce_axis((0, attrs["pool_size"][0]), "i")
    columns = te.reduce_axis((0, attrs["pool_size"][1]), "j")
    is_max = problem.op == "max_pool2d"
    dtype = str(x.dtype) if is_max else "int32"
    fill = te.min_value(dtype) if is_max else tirx.const(attrs["pad_value"], dtype)

    def value(n: Any, y: Any, z: Any, c: Any) -> Any:
        at, to = y * down + rows * along - top, z * across + columns * beside - left
        inside = tirx.all(at >= 0, at < x.shape[1], to >= 0, to < x.shape[2])
        tap = x[n, at, to, c].astype(dtype)
        if any(attrs["padding"]):
            tap = tirx.if_then_else(inside, tap, fill)
        return (te.max if is_max else te.sum)(tap, axis=[rows, columns])

    return te.compute(shape, value, "pooled")


def _schedule(sch: Any, is_fused: bool, work: int) -> None:
    pooled = sch.get_sblock("pooled")
    if is_fused:
        out = sch.get_sblock("out")
        *outer, channels = sch.get_loops(out)
        block, lane = sch.split(channels, [None, loops.lanes_of(sch.get(channels).extent)])
        sch.compute_at(pooled, block, preserve_unit_loops=True)
        sch.vectorize(lane)
        sch.set_scope(pooled, 0, "local")
        *_, inner, i, j = sch.get_loops(pooled)
        sch.reorder(i, j, inner)
    else:
        *outer, channels, i, j = sch.get_loops(pooled)
        width = loops.lanes_of(sch.get(channels).extent, 64)
        block, inner = sch.split(channels, [None, width])
        sch.reorder(*outer, block, i, j, inner)
    sch.vectorize(inner)
    loops.parallel(sch, [*outer, block], work)
    sch.decompose_reduction(pooled, i)


def _always(_problem: Problem, _target: Any) -> str | None:
    return None


MAX_POOL2D = Kernel(elementwise.NAME, "max_pool2d", _always, pack, build)
SUM_POOL2D = Kernel(elementwise.NAME, "sum_pool2d", _always, pack, build)
