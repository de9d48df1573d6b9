"""What the threads of a warp do together: shuffles, votes, reductions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from nybble.simt.codes import Code, Kind, Scope
from nybble.simt.errors import UninitializedError
from nybble.simt.issue import Issue
from nybble.simt.strand import WARP, Strand
from nybble.simt.values import Mask, Value

Array = npt.NDArray[Any]


def shuffle(s: Strand, m: Mask, value: Value, source: Value) -> Array:
    """Each lane's ``value`` from lane ``source`` of its warp.

    Raises:
        UninitializedError: the source is no active lane.
    """
    lane = np.arange(s.lanes)
    origin = lane // WARP * WARP + s.full(source, np.int64)
    if m is not None:
        bad = m & ~m[origin]
        if bad.any():
            at = int(np.flatnonzero(bad)[0])
            what = f"shuffle from lane {int(origin[at]) % WARP}, which is not active"
            s.fail(UninitializedError, what, at)
    return s.full(value)[origin]


def _xor(lane: Value, offset: Value, width: Value) -> Value:
    return _bounded(lane, lane ^ offset, lane | (width - 1))


def _up(lane: Value, offset: Value, width: Value) -> Value:
    return np.where(lane % width >= offset, lane - offset, lane)


def _down(lane: Value, offset: Value, width: Value) -> Value:
    return _bounded(lane, lane + offset, lane | (width - 1))


def _index(lane: Value, offset: Value, width: Value) -> Value:
    return lane // width * width + offset % width


def _bounded(lane: Value, source: Value, last: Value) -> Value:
    return np.where(source <= last, source, lane)


def _shuffle_call(where: Callable[[Value, Value, Value], Value], name: str) -> Any:
    def translate(scope: Scope, node: Any) -> Code:
        mask, value, offset, width = (scope.expression(part) for part in node.args[:4])

        def run(s: Strand, m: Mask) -> Value:
            s.tally(name, m)
            members(s, m, mask.run(s, m), name)
            lane = np.arange(s.lanes) % WARP
            source = where(
                lane, s.full(offset.run(s, m), np.int64), s.full(width.run(s, m), np.int64)
            )
            return shuffle(s, m, value.run(s, m), source)

        return Code(run, Kind.VARYING)

    return translate


def members(s: Strand, m: Mask, named: Value, what: str) -> None:
    """Whether the lanes that a member mask names are the active ones of each warp."""
    if m is None and np.ndim(named) == 0 and int(named) & 0xFFFFFFFF == 0xFFFFFFFF:
        return
    bits = s.full(named).astype(np.int64) >> (np.arange(s.lanes) % WARP) & 1
    active = np.ones(s.lanes, np.bool_) if m is None else m
    if s.active is not None:
        bits = bits & s.active  # a last warp that is not full: its other lanes never run
    some = np.repeat(active.reshape(-1, WARP).any(axis=1), WARP)
    bad = some & ((bits != 0) & ~active | active & (bits == 0))
    if bad.any():
        s.diverged(f"{what}: its member mask is not what gets here", int(np.flatnonzero(bad)[0]))


def reduce(s: Strand, value: Value, combine: Callable[[Array, Array], Array], width: int) -> Array:
    """The butterfly of shuffles by which CUDA reduces groups of ``width`` lanes."""
    lane = np.arange(s.lanes)
    total, step = s.full(value).copy(), width // 2
    while step:
        total = combine(total, total[lane ^ step])
        step //= 2
    return total


_COMBINE: dict[str, Callable[[Array, Array], Array]] = {
    "sum": lambda a, b: a + b,
    "max": np.maximum,
    "min": np.minimum,
}


def _warp_reduce(scope: Scope, node: Any) -> Code:
    value = scope.expression(node.args[0])
    combine, width = _COMBINE[str(node.args[1].value)], int(node.args[2])

    def run(s: Strand, m: Mask) -> Value:
        s.tally("warp_reduce", m)
        s.whole(m, WARP, "warp_reduce")
        return reduce(s, value.run(s, m), combine, width)

    return Code(run, Kind.VARYING)


def ballot(s: Strand, m: Mask, predicate: Value) -> Array:
    """By lane, the bits of the active lanes of its warp for which the predicate holds."""
    holds = s.full(predicate) != 0
    if m is not None:
        holds = holds & m
    bits = (holds.reshape(-1, WARP) << np.arange(WARP, dtype=np.int64)).sum(axis=1)
    return np.repeat(bits.astype(np.uint32), WARP)


def _ballot(scope: Scope, node: Any) -> Code:
    mask, predicate = (scope.expression(part) for part in node.args[:2])

    def run(s: Strand, m: Mask) -> Value:
        members(s, m, mask.run(s, m), "ballot_sync")
        return ballot(s, m, predicate.run(s, m))

    return Code(run, Kind.VARYING)


def _active(scope: Scope, node: Any) -> Code:
    """``__activemask()``: the lanes that are here."""
    return Code(lambda s, m: ballot(s, s.active if m is None else m, np.bool_(True)), Kind.VARYING)


def _any(scope: Scope, node: Any) -> Code:
    inner = _ballot(scope, node)
    return Code(lambda s, m: (inner.run(s, m) != 0).astype(np.int32), Kind.VARYING)


def _elect(scope: Scope, node: Any) -> Code:
    """``elect.sync``: one lane of the warp, here the first."""

    def run(s: Strand, m: Mask) -> Value:
        s.whole(m, WARP, "elect_sync")
        return (np.arange(s.lanes) % WARP == 0).astype(np.uint32)

    return Code(run, Kind.VARYING)


def _ptx_shuffle(issue: Issue, s: Strand, m: Mask) -> None:
    """``shfl.sync``: c is the last lane of a segment and the segment's mask (PTX ISA, "shfl")."""
    members(s, m, issue.one("membermask", s, m), issue.text)
    lane = np.arange(s.lanes) % WARP
    offset = issue.one("b", s, m).astype(np.int64) & 31
    clamp = issue.one("c", s, m).astype(np.int64)
    segment, last = clamp >> 8 & 31, clamp & 31
    first, limit = lane & segment, (lane & segment) | (last & ~segment & 31)
    mode = issue.mods["mode"]
    moved = {
        "up": lane - offset,
        "down": lane + offset,
        "bfly": lane ^ offset,
        "idx": first | offset & ~segment & 31,
    }[mode]
    inside = moved >= limit if mode == "up" else moved <= limit
    source = np.where(inside, moved, lane)
    issue.write("d", s, m, shuffle(s, m, issue.one("a", s, m), source))


def _vote(issue: Issue, s: Strand, m: Mask) -> None:
    """``vote.sync.ballot``, ``.any``, ``.all``."""
    members(s, m, issue.one("membermask", s, m), issue.text)
    bits = ballot(s, m, issue.one("a", s, m))
    here = ballot(s, m, np.bool_(True))
    mode = issue.mods["mode"]
    result = {"ballot": bits, "any": bits != 0, "all": bits == here}.get(mode)
    if result is None:
        raise issue.scope.refuse(issue.text)
    issue.write("d", s, m, result.astype(np.uint32))


_REDUX: dict[str, Callable[[Array, Array], Array]] = {
    **_COMBINE,
    "add": np.add,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}


def _redux(issue: Issue, s: Strand, m: Mask) -> None:
    """``redux.sync``: a reduction of whole warps."""
    s.whole(m, WARP, issue.text)
    a = issue.one("a", s, m)
    value = a.view(np.int32 if issue.mods["type"] == "s32" else np.uint32)
    issue.write("d", s, m, reduce(s, value, _REDUX[issue.mods["op"]], WARP))


def _ptx_elect(issue: Issue, s: Strand, m: Mask) -> None:
    """``elect.sync``: one lane of the warp, here the first; d is its number."""
    s.whole(m, WARP, issue.text)
    issue.write("d", s, m, np.zeros(s.lanes, np.uint32))
    issue.write("p", s, m, (np.arange(s.lanes) % WARP == 0).astype(np.uint32))


INSTRUCTIONS: dict[str, Callable[[Issue, Strand, Mask], None]] = {
    "shfl_sync": _ptx_shuffle,
    "vote_sync": _vote,
    "vote_sync_ballot": _vote,
    "redux_sync": _redux,
    "redux_sync_bitwise": _redux,
    "elect_sync": _ptx_elect,
}
CALLS: dict[str, Callable[[Scope, Any], Code]] = {
    "tirx.cuda.__shfl_sync": _shuffle_call(_index, "shfl_sync"),
    "tirx.cuda.__shfl_xor_sync": _shuffle_call(_xor, "shfl_xor_sync"),
    "tirx.cuda.__shfl_up_sync": _shuffle_call(_up, "shfl_up_sync"),
    "tirx.cuda.__shfl_down_sync": _shuffle_call(_down, "shfl_down_sync"),
    "tirx.tvm_warp_shuffle": _shuffle_call(_index, "shfl_sync"),
    "tirx.tvm_warp_shuffle_xor": _shuffle_call(_xor, "shfl_xor_sync"),
    "tirx.tvm_warp_shuffle_up": _shuffle_call(_up, "shfl_up_sync"),
    "tirx.tvm_warp_shuffle_down": _shuffle_call(_down, "shfl_down_sync"),
    "tirx.cuda.warp_reduce": _warp_reduce,
    "tirx.cuda.ballot_sync": _ballot,
    "tirx.cuda.any_sync": _any,
    "tirx.cuda.__activemask": _active,
    "tirx.tvm_warp_activemask": _active,
    "tirx.cuda.elect_sync": _elect,
}
