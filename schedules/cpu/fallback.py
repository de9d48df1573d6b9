"""``cpu.generic`` convolution and linear: any attributes, any width, any target, int32 or float32.

Direct NHWC convolution, vectorised over output channels:

    weights [O/L][KH][KW][C/groups][L]        L output channels side by side
    for image, row, block of L channels (parallel)
      for tile of T columns:   T x L accumulators in registers
        for kh, kw, c:  T broadcast loads x one vector of weights

One multiply-add per lane and instruction: right everywhere, never the fastest. Weights below 8 bits
lie bit-packed; the blocks become the outermost (parallel) loop and each is unpacked into a scratch.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import te, tirx

from nybble.schedules.cpu import bits, elementwise, loops
from nybble.schedules.kernel import Constants, Kernel, Knobs, Problem

LANES = 16
COLUMNS = 2


def lanes(problem: Problem) -> int:
    """Output channels in a vector; with one group, O is padded up to whole vectors."""
    assert problem.weights is not None
    out_channels, groups = int(problem.weights.shape[0]), _groups(problem)
    per_group = out_channels // groups
    if groups == 1:
        return next((w for w in (LANES, 8) if out_channels % w == 0), LANES)
    return loops.lanes_of(per_group if per_group > 1 else out_channels)


def _groups(problem: Problem) -> int:
    return int(problem.attr("groups")) if problem.op == "conv2d" else 1


def pack(problem: Problem, constants: Constants, width: int | None = None) -> list[NDArray[Any]]:
    """Weights as [O/L][KH][KW][C/groups][L] (linear: [O/L][K][L]), bias, epilogue constants.

    Weights below 8 bits are packed: [O/L][bytes]. L is `lanes`, or ``width``.
    """
    assert problem.weights is not None
    w, width = constants["w"], width or lanes(problem)
    missing = -w.shape[0] % width
    padded = np.pad(w, ((0, missing), *[(0, 0)] * (w.ndim - 1)))
    blocked = np.moveaxis(padded.reshape(-1, width, *w.shape[1:]), 1, -1).copy()
    if is_packed(problem):
        blocked = bits.pack_rows(blocked.reshape(len(blocked), -1), problem.weights.dtype)
    names = ("bias", *elementwise.epilogue_names(problem.epilogue))
    spread = (np.broadcast_to(constants[name], w.shape[:1]) for name in names)  # of scalars too
    return [blocked, *map(np.ascontiguousarray, spread)]


def build(problem: Problem, _target: Any, _knobs: Knobs) -> Any:
    """The scheduled function of `pack`'s layout."""
    sch = define(problem)
    _schedule(sch, problem)
    return sch.mod["main"]


def has_padding(problem: Problem) -> bool:
    """Whether `define` has a block ``padded``."""
    return problem.op == "conv2d" and any(problem.attr("padding"))


def is_packed(problem: Problem) -> bool:
    """Whether `define` has a block ``unpacked``."""
    assert problem.weights is not None
    return bits.is_narrow(problem.weights.dtype)


def define(problem: Problem, width: int | None = None) -> Any:
    """The function of `pack`'s layout unscheduled: ``padded``, ``unpacked``, ``acc``, ``out``."""
    assert problem.weights is not None
    symbols, width = loops.Symbols(), width or lanes(problem)
    out_channels = problem.weights.shape[0]
    x = symbols.tensor(problem.inputs[0], "x")
    other = symbols.optional(problem.epilogue.other, "other")
    given, weights = _weights(problem, width)
    is_float = problem.inputs[0].dtype == "float32"
    names = ("bias", *elementwise.epilogue_names(problem.epilogue))
    dtypes = {"bias": "float32" if is_float else "int32"}
    constants = elementwise.vectors(names, out_channels, dtypes)
    entries = symbols.optional(problem.entries, "entries")
    lead = symbols.extents(problem.output.shape[:-1])
    acc = _accumulate(problem, lead, _padded(problem, x), weights)

    def value(*index: Any) -> Any:
        read = elementwise.reader(constants, index[-1])
        total = acc(*index[:-1], index[-1] // width, index[-1] % width) + read("bias")
        if problem.epilogue.kind == "none":
            return total
        beside = None if other is None else other(*index)
        return elementwise.epilogue(problem, total, beside, read, entries)

    out = te.compute([*lead, out_channels], value, "out")
    tensors = [x, other, given, *constants.values(), entries, out]
    return loops.function([tensor for tensor in tensors if tensor is not None])


def _weights(problem: Problem, width: int) -> tuple[te.Tensor, te.Tensor]:
    """The parameter, and the weights one by one: the same tensor unless they are packed."""
    assert problem.weights is not None
    dtype = problem.weights.dtype
    out_channels, *inner = (int(extent) for extent in problem.weights.shape)
    shape = (-(-out_channels // width), *inner, width)
    if not is_packed(problem):
        plain = te.placeholder(shape, loops.stored(dtype), "w")
        return plain, plain
    packed = te.placeholder((shape[0], bits.row_bytes(prod(shape[1:]), dtype)), "uint8", "w")

    def value(block: Any, *index: Any) -> Any:
        at: Any = 0
        for extent, i in zip(shape[1:], index, strict=True):
            at = at * extent + i
        return bits.element(packed, block, at, dtype)

    return packed, te.compute(shape, value, "unpacked")


def _padded(problem: Problem, x: te.Tensor) -> te.Tensor:
    if not has_padding(problem):
        return x
    top, left, bottom, right = problem.attr("padding")
    n, h, w, c = x.shape
    fill = tirx.const(problem.attr("pad_value"), str(x.dtype))

    def value(i: Any, y: Any, z: Any, k: Any) -> Any:
        inside = tirx.all(y >= top, y < top + h, z >= left, z < left + w)
        return tirx.if_then_else(inside, x[i, y - top, z - left, k], fill)

    return te.compute((n, h + top + bottom, w + left + right, c), value, "padded")


def _accumulate(problem: Problem, lead: list[Any], x: te.Tensor, w: te.Tensor) -> te.Tensor:
    dtype = "float32" if problem.inputs[0].dtype == "float32" else "int32"
    blocks, width = w.shape[0], w.shape[-1]
    steps = [te.reduce_axis((0, extent), f"r{i}") for i, extent in enumerate(w.shape[1:-1])]

    def linear(*index: Any) -> Any:
        *rows, block, lane = index
        product = x(*rows, steps[0]).astype(dtype) * w(block, steps[0], lane).astype(dtype)
        return te.sum(product, axis=steps)

    def conv2d(n: Any, y: Any, z: Any, block: Any, lane: Any) -> Any:
        (down, across), (along, beside) = problem.attr("strides"), problem.attr("dilation")
        per_group = int(problem.output.shape[-1]) // _groups(problem)
        group = (block * width + lane) // per_group if _groups(problem) > 1 else 0
        i, j, c = steps
        tap = x(n, y * down + i * along, z * across + j * beside, group * w.shape[3] + c)
        return te.sum(tap.astype(dtype) * w(block, i, j, c, lane).astype(dtype), axis=steps)

    compute = conv2d if problem.op == "conv2d" else linear
    return te.compute([*lead, blocks, width], compute, "acc")


def _schedule(sch: Any, problem: Problem) -> None:
    if has_padding(problem):
        loops.rows(sch, sch.get_sblock("padded"), loops.static_size(problem.inputs[0].shape))
    width, lead = lanes(problem), problem.output.shape[:-1]
    tile = loops.divisor_of(lead[-1], COLUMNS)
    *outer, columns, channels = sch.get_loops(sch.get_sblock("out"))
    column, inner = sch.split(columns, [None, tile])
    block, lane = sch.split(channels, [None, width])
    head = [block, *outer] if is_packed(problem) else [*outer, block]
    sch.reorder(*head, column, inner, lane)
    acc = sch.get_sblock("acc")
    sch.compute_at(acc, column, preserve_unit_loops=True)
    if is_packed(problem):
        sch.compute_at(sch.get_sblock("unpacked"), block)
    # Around acc now: …, column, then lead (all 1 but the tile), block, lane, reduction.
    nested = sch.get_loops(acc)[len(outer) + 2 :]
    spatial, steps = nested[: len(lead) + 2], nested[len(lead) + 2 :]
    sch.reorder(*steps, *spatial)
    sch.vectorize(spatial[-1])
    for loop in spatial[:-1]:
        sch.unroll(loop)
    sch.set_scope(acc, 0, "local")
    if int(problem.output.shape[-1]) % width == 0:
        sch.vectorize(lane)
    loops.parallel(sch, [block] if is_packed(problem) else head, problem.macs)
    sch.decompose_reduction(acc, steps[0])


def _always(_problem: Problem, _target: Any) -> str | None:
    return None


CONV2D = Kernel(elementwise.NAME, "conv2d", _always, pack, build)
LINEAR = Kernel(elementwise.NAME, "linear", _always, pack, build)
