"""The schedule of TVM's float functions, with knobs.

    element-wise        vectors of the last axis, or of all axes as one (``flat``)
    reduction across    rows x vectors accumulators in registers, the reduction around them:
                        products of matrices, means over pixels
    reduction along     ``partial`` sums of a row in the lanes of a vector, added up at the end;
                        all stages of a row while it lies in the cache (``together``): softmax,
                        normalizations

A reduction runs *along* a row where consecutive steps read consecutive elements.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from nybble.schedules.cpu import loops
from nybble.schedules.kernel import PARALLEL, Knobs

REDUCE = 2  # tirx.IterVar.CommReduce
"""The iteration type of a reduction axis."""

WIDTHS = (1, 2, 4, 8, 16, 32, 64)
SHARE = 4  # a stage with less than this part of the largest one's work is not cut into tasks


@dataclass(frozen=True)
class Outline:
    """What there is to decide of a function.

    Attributes:
        work: element operations of its largest stage, symbolic extents counted as 1.
        plain: the output is an element-wise stage of several inner axes of known extents.
        row: the last extent of what is reduced across, 1 if symbolic; 0 without such a stage.
        height: the extent before it, 1 if symbolic or none.
        along: the largest width that divides what is reduced along rows; 0 without such a stage.
        stages: that remain after inlining.
    """

    work: int
    plain: bool
    row: int
    height: int
    along: int
    stages: int


@dataclass(frozen=True)
class Cut:
    """The decisions for a function.

    Attributes:
        parallel: whether several threads share the work.
        lanes: of vectors, at most.
        flat: an element-wise output is taken as one long row.
        rows: of accumulators in registers.
        vectors: of accumulators in a row.
        partial: sums of a row that is reduced.
        together: all stages of a row before the next row.
    """

    parallel: bool
    lanes: int
    flat: bool
    rows: int
    vectors: int
    partial: int
    together: bool


def outline(sch: Any) -> Outline:
    """What there is to decide of a function whose stages have been inlined."""
    found = stages(sch)
    across = [b for b in found if reduces(sch, b) and _spatial(sch, b) and not is_along(sch, b)]
    along = [b for b in found if reduces(sch, b) and is_along(sch, b)]
    ends = [sch.get(_spatial(sch, b)[-1]).extent for b in across]
    heights = [sch.get(s[-2]).extent for b in across if len(s := _spatial(sch, b)) > 1]
    steps = [sch.get(sch.get_loops(b)[-1]).extent for b in along]
    widths = [
        loops.lanes_of(extent, WIDTHS[-1] if _known(extent) and _has_parts(sch, block) else 1)
        for extent, block in zip(steps, along, strict=True)
    ]
    plain = len(nest := sch.get_loops(found[-1])) > 1 and not reduces(sch, found[-1])
    return Outline(
        max(_work(sch, block) for block in found),
        plain and len(_static(sch, nest)) > 1,
        _known(ends[-1]) if ends else 0,
        _known(heights[-1]) if heights else 1,
        min(widths, default=0),
        len(found),
    )


def decide(found: Outline, knobs: Knobs, registers: int = 8) -> Cut:
    """Asks for what matters to such a function.

    Args:
        found: the function.
        knobs: that are asked.
        registers: floats in the machine's widest one.
    """
    rows = vectors = 1
    partial, flat, together = 1, False, False
    parallel = knobs.pick(PARALLEL, (False, True), found.work >= loops.PARALLEL_WORK)
    lanes = knobs.pick("lanes", WIDTHS, registers if found.row else 16)
    if found.plain:
        flat = knobs.pick("flat", (False, True), default=False)
    if found.row:
        choices = [r for r in range(1, 9) if found.height % r == 0]
        rows = knobs.pick("rows", choices, max(r for r in choices if r <= 4))
        width = found.row // loops.lanes_of(found.row, lanes)
        choices = [v for v in (1, 2, 3, 4) if width % v == 0]
        vectors = knobs.pick("vectors", choices, max(v for v in choices if v <= 2))
    if found.along:
        choices = [w for w in WIDTHS if w <= found.along]
        partial = knobs.pick("partial", choices, min(registers, choices[-1]))
        large = found.work >= loops.PARALLEL_WORK  # stages by themselves are faster in the cache
        together = found.stages == 1 or knobs.pick("together", (False, True), large)
    return Cut(parallel, lanes, flat, rows, vectors, partial, together)


def scheduled(sch: Any, cut: Cut) -> Any:
    """The function with its decisions followed; ``sch`` is used up."""
    every = stages(sch)
    largest = max((_work(sch, block) for block in every), default=0)
    rows = [b for b in every if reduces(sch, b) and is_along(sch, b)]
    shared = len(_spatial(sch, rows[0])) if rows else 0
    alike = all(b in rows for b in every if reduces(sch, b))
    lanes: list[Any] = []
    if cut.partial > 1:
        lanes = [_lanes(sch, b, cut) for b in rows]
        for block, held in zip(rows, lanes, strict=True):
            every.insert(every.index(block), held)
    if cut.together and alike and shared:
        _join(sch, every, lanes, shared, cut)
        return sch.mod["main"]
    for block in every:
        _stage(sch, block, cut, cut.parallel and SHARE * _work(sch, block) >= largest)
    return sch.mod["main"]


# ---------------------------------------------------------------- what a stage is


def stages(sch: Any) -> list[Any]:
    """The blocks of a function in order."""
    return list(sch.get_child_blocks(sch.get_sblock("root")))


def _has_parts(sch: Any, block: Any) -> bool:
    """Whether a reduction can be split: TVM does so where it knows the neutral element.

    It fails in a check of its own where the result has no axes at all.
    """
    found = sch.get(block)
    is_known = isinstance(getattr(found.init, "value", None), tirx.FloatImm | tirx.IntImm)
    return is_known and bool(found.writes[0].region)


def reduces(sch: Any, block: Any) -> bool:
    """Whether a block has a reduction axis."""
    return any(int(v.iter_type) == REDUCE for v in sch.get(block).iter_vars)


def is_along(sch: Any, block: Any) -> bool:
    """Whether consecutive steps of the reduction read consecutive elements, if they read others."""
    found = sch.get(block)
    *_, last = [v.var for v in found.iter_vars if int(v.iter_type) == REDUCE]
    read = [[axis.min for axis in r.region] for r in found.reads]
    changing = [axes for axes in read if any(last.same_as(axis) for axis in axes)]
    return bool(changing) and all(last.same_as(axes[-1]) for axes in changing)


def _sorted(sch: Any, block: Any) -> tuple[list[Any], list[Any]]:
    """The spatial loops of a block whose loops are one to one with its axes, and the others."""
    nest = sch.get_loops(block)
    realized: Any = sch.get(nest[-1]).body if nest else None
    steps = (
        [
            value
            for v, value in zip(sch.get(block).iter_vars, realized.iter_values, strict=True)
            if int(v.iter_type) == REDUCE
        ]
        if nest
        else []
    )
    is_step = [any(sch.get(loop).loop_var.same_as(step) for step in steps) for loop in nest]
    spatial = [loop for loop, reduced in zip(nest, is_step, strict=True) if not reduced]
    return spatial, [loop for loop, reduced in zip(nest, is_step, strict=True) if reduced]


def _spatial(sch: Any, block: Any) -> list[Any]:
    return _sorted(sch, block)[0]


def _static(sch: Any, nest: Sequence[Any]) -> Sequence[Any]:
    """The inner loops of known extents; where there are none, the innermost one."""
    known = [isinstance(sch.get(loop).extent, tirx.IntImm) for loop in nest]
    first = max((i + 1 for i, is_known in enumerate(known) if not is_known), default=0)
    return nest[min(first, len(nest) - 1) :]


def _work(sch: Any, block: Any) -> int:
    """Element operations of a block, symbolic extents counted as 1."""
    return loops.static_size(sch.get(loop).extent for loop in sch.get_loops(block))


def _known(extent: Any) -> int:
    return int(extent) if isinstance(extent, int | tirx.IntImm) else 1


# ---------------------------------------------------------------- stages


def _stage(sch: Any, block: Any, cut: Cut, spread: bool) -> None:
    """One stage by itself."""
    nest = sch.get_loops(block)
    work = loops.PARALLEL_WORK if spread else 0
    if nest and not reduces(sch, block):
        if cut.flat:
            nest = [sch.fuse(*_static(sch, nest))]
        loops.rows(sch, block, work, loops.lanes_of(sch.get(nest[-1]).extent, cut.lanes))
        return
    spatial, steps = _sorted(sch, block)
    if not spatial:  # one number
        return
    if is_along(sch, block):
        sch.reorder(*spatial, *steps)
        loops.parallel(sch, spatial, work)
        sch.decompose_reduction(block, steps[0])
    else:
        _across(sch, block, cut, work)


def _across(sch: Any, block: Any, cut: Cut, work: int) -> None:
    """Accumulators in registers, around which the reduction runs."""
    extents = [sch.get(loop).extent for loop in _spatial(sch, block)]
    width = loops.lanes_of(extents[-1], cut.lanes)
    few = loops.divisor_of(_known(extents[-1]) // width, cut.vectors)
    tall = loops.divisor_of(extents[-2], cut.rows) if len(extents) > 1 else 1
    held = sch.cache_write(block, 0, "local") if few * tall > 1 else None
    spatial, steps = _sorted(sch, block)
    outer, vector, lane = sch.split(spatial[-1], [None, few, width])
    head, tile = [*spatial[:-1], outer], [vector, lane]
    if tall > 1:
        above, row = sch.split(spatial[-2], [None, tall])
        head, tile = [*spatial[:-2], above, outer], [row, vector, lane]
    sch.reorder(*head, *steps, *tile)
    if width > 1:
        sch.vectorize(lane)
    for loop in tile[:-1]:
        sch.unroll(loop)
    loops.parallel(sch, head, work)
    inside = len(steps) + len(tile)
    if held is not None:
        sch.reverse_compute_at(held, sch.get_loops(block)[-inside - 1])
        _vectorized(sch, sch.get_loops(held)[-1], width)
    sch.decompose_reduction(block, sch.get_loops(block)[-inside])


def _vectorized(sch: Any, loop: Any, most: int) -> None:
    width = loops.lanes_of(sch.get(loop).extent, most)
    if width > 1:
        _, lane = sch.split(loop, [None, width])
        sch.vectorize(lane)


def _lanes(sch: Any, block: Any, cut: Cut) -> Any:
    """The partial sums of a reduction along rows, a stage before it; it adds those up."""
    step = sch.get_loops(block)[-1]
    _, lane = sch.split(step, [None, loops.lanes_of(sch.get(step).extent, cut.partial)])
    return sch.rfactor(lane, len(sch.get(block).writes[0].region))


def _join(sch: Any, every: Sequence[Any], lanes: Sequence[Any], shared: int, cut: Cut) -> None:
    """All stages of a row before the next row."""
    *earlier, final = every
    head = sch.get_loops(final)[:shared]
    for block in reversed(earlier):
        sch.compute_at(block, head[-1])
    first: dict[Any, Any] = {}  # of the reductions' loops
    for block in every:
        inner = sch.get_loops(block)[len(head) :]
        if block in lanes:  # the lane's loop comes first
            lane, *inner = inner
            sch.reorder(*inner, lane)
            sch.vectorize(lane)
        if reduces(sch, block) and inner:
            first[block] = inner[0]
        elif inner:
            _vectorized(sch, inner[-1], cut.lanes)
    loops.parallel(sch, head, loops.PARALLEL_WORK if cut.parallel else 0)
    for block, loop in first.items():  # a loop cannot become parallel behind this
        sch.decompose_reduction(block, loop)
