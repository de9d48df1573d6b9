"""``wgmma``: products of four warps, with operands in shared memory, that run on their own.

The result's registers count as on their way, and the shared memory as being read, until the wait
for the group (PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions"). The wait ends a group
for all four warps at once; so one thread of them may hand the memory back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from nybble.simt.codes import Code, Kind, Scope
from nybble.simt.errors import MisalignedError, OutOfBoundsError, RaceError, UninitializedError
from nybble.simt.fences import check_fences
from nybble.simt.issue import Array, Issue
from nybble.simt.matrices import (
    BITS,
    a_fragment,
    accumulate,
    c_fragment,
    integer_product,
    shape_of,
    unpack,
)
from nybble.simt.memory import Pointer
from nybble.simt.registers import FLYING, SET, UNSET, Local
from nybble.simt.strand import WARP, Ints, Strand
from nybble.simt.swizzles import PIECE, Descriptor, encode
from nybble.simt.values import Mask

WARPS = 4
GROUP = WARPS * WARP
ROWS = 64


@dataclass
class Product:
    """An instruction whose group has not been waited for.

    Attributes:
        mask: its lanes.
        registers: the arrays that it writes or reads, with the bytes: (array, start, count).
        reads: the lanes that stand for its reads of shared memory, and the grains.
        group: how many groups had been committed before it.
    """

    mask: Mask
    registers: list[tuple[Local, int, int]]
    reads: list[tuple[Ints, Ints]] = field(default_factory=list)
    group: int = 0


def _result(issue: Issue, s: Strand, m: Mask) -> tuple[Local, int, int]:
    pointer, index, count = issue.destination("d", s, m)
    first = int(np.ravel(index)[0])
    if (np.ravel(index) != np.arange(first, first + count)).any():
        raise issue.scope.refuse("wgmma with a result in scattered registers")
    local: Local = pointer.memory
    return local, first, count


def _product(issue: Issue, s: Strand, m: Mask) -> None:
    groups = s.whole(m, GROUP, issue.text)
    _, columns, depth = shape_of(issue)
    kind_a, kind_b = issue.mods["atype"], issue.mods["btype"]
    product = Product(m, [], [], s.products_committed)
    if issue.has("a_desc"):
        transposed = _flag(issue, s, "trans_a")
        a = _shared(issue, s, groups, ("a_desc", ROWS, depth, kind_a, transposed), product)
    else:
        a = _from_registers(issue, s, m, groups, depth)
        product.registers += [_source(issue, s, m)]
    transposed = _flag(issue, s, "trans_b")
    b = _shared(issue, s, groups, ("b_desc", columns, depth, kind_b, transposed), product)
    b = b.swapaxes(1, 2)
    local, first, count = _result(issue, s, m)
    _check_fenced(s, local, range(first, first + count), issue.text)
    total = _total(issue, s, m, (groups, a, b), (local, first, count))
    view = local.view(total.dtype)
    target = view[:, first : first + count]
    np.copyto(target, total, where=True if m is None else m[:, None])
    product.registers.append((local, first * local.item, count * local.item))
    local.mark(m, first * local.item, count * local.item, FLYING)
    s.products.append(product)


def _flag(issue: Issue, s: Strand, name: str) -> bool:
    return issue.has(name) and issue.number(name, s) == 1


def _total(
    issue: Issue,
    s: Strand,
    m: Mask,
    operands: tuple[Ints, Array, Array],
    result: tuple[Local, int, int],
) -> Array:
    """The accumulators after the product, ``(lanes, registers)``."""
    groups, a, b = operands
    local, first, count = result
    integer = issue.mods["dtype"] == "s32"
    if issue.mods["dtype"] == "f16":
        raise issue.scope.refuse(issue.text)
    view = local.view(np.dtype(np.int32 if integer else np.float32))[:, first : first + count]
    keep = s.full(issue.one("scale_d", s, m)) != 0
    unset = keep[:, None] & (local.state[:, first : first + count] == UNSET)
    if m is not None:
        unset &= m[:, None]
    if unset.any():
        lane, i = (int(v[0]) for v in np.nonzero(unset))
        s.fail(UninitializedError, f"register {local.name}[{first + i}] used before set", lane)
    at = _accumulator(a.shape[1], b.shape[2])
    before = np.where(keep[:, None], view, 0).reshape(s.lanes // GROUP, -1)[groups][:, at]
    if integer:
        products = integer_product(a, b, issue.mods.get("bitop", ""))
        after: Array = accumulate(before, products, bool(issue.mods.get("satfinite")))
    else:
        signs = [issue.number(name, s) for name in ("scale_a", "scale_b") if issue.has(name)]
        wide = np.matmul(a.astype(np.float64), b.astype(np.float64)) * np.prod(signs)
        after = (wide + before).astype(np.float32)
    flat = np.zeros((s.lanes // GROUP, at.size), after.dtype)
    rows = np.empty((len(groups), at.size), after.dtype)
    rows[:, at.ravel()] = after.reshape(len(groups), -1)
    flat[groups] = rows
    return flat.reshape(s.lanes, -1)


def _accumulator(rows: int, columns: int) -> Ints:
    """``(64, columns)``: where sums are; each warp has 16 rows, as of `c_fragment`."""
    one = c_fragment(16, columns)
    return np.concatenate([one + i * one.size for i in range(rows // 16)])


def _from_registers(issue: Issue, s: Strand, m: Mask, groups: Ints, depth: int) -> Array:
    words, kind = issue.read("a", s, m), issue.mods["atype"]
    at = a_fragment(16, depth, BITS[kind])
    tiles = unpack(words, kind).reshape(s.lanes // WARP, -1)[:, at]
    return tiles.reshape(-1, ROWS, depth)[groups]


def _source(issue: Issue, s: Strand, m: Mask) -> tuple[Local, int, int]:
    local, first, count = issue.source("a", s)
    _check_fenced(s, local, range(first, first + count), issue.text)
    for i in range(first, first + count):
        local.pinned[i] += 1
    return local, first * local.item, count * local.item


def _check_fenced(s: Strand, local: Local, elements: range, text: str) -> None:
    for i in elements:
        if local.stamps[i] > s.fence:
            what = f"register {local.name}[{i}] written after the last wgmma.fence before {text}"
            s.fail(RaceError, what, 0)


def _shared(
    issue: Issue,
    s: Strand,
    groups: Ints,
    what: tuple[str, int, int, str, bool],
    product: Product,
) -> npt.NDArray[np.float32]:
    """An operand in shared memory: ``(groups, rows, depth)``."""
    name, rows, depth, kind, transposed = what
    bits = issue.one(name, s, None)
    shared = s.launch.shared
    found = []
    for group in groups:
        lane = int(group) * GROUP
        mine = bits[lane : lane + GROUP]
        if (mine != mine[0]).any():
            s.diverged(f"{issue.text}: the descriptor differs between threads", lane)
        descriptor = Descriptor.of(int(mine[0]))
        if transposed:
            at = descriptor.transposed(rows, depth)
        else:
            at = descriptor.addresses(rows, depth * BITS[kind] // 8)
        if at.max() + PIECE > shared.limit:
            s.fail(OutOfBoundsError, f"{issue.text}: byte {int(at.max())} of {shared.limit}", lane)
        _note(s, lane, (f"{issue.text}, {name}", at.ravel()), product)
        base = int(s.block[lane]) * shared.size
        data = shared.data[(base + at)[..., None] + np.arange(PIECE)].reshape(len(at), -1)
        matrix = unpack(np.ascontiguousarray(data).view(np.uint32), kind)
        found.append(matrix.T if transposed else matrix)
    return np.stack(found)


def _note(s: Strand, lane: int, place: tuple[str, Ints], product: Product) -> None:
    """Checks the four warps' reads, and keeps the memory from being written until the wait."""
    name, at = place
    shared = s.launch.shared
    chosen = np.repeat(lane + WARP * np.arange(WARPS), len(at))  # a lane for each warp
    grains = shared.check_read(s, chosen, (name, np.tile(at, WARPS), PIECE))
    product.reads.append((chosen, grains))
    check_fences(s, chosen, grains, name)
    grains = grains[: len(at)]
    shared.pinned[grains] += 1


def _fence(issue: Issue, s: Strand, m: Mask) -> None:
    s.whole(m, GROUP, issue.text)
    s.fence = s.stamp


def _commit(issue: Issue, s: Strand, m: Mask) -> None:
    s.whole(m, GROUP, issue.text)
    s.products_committed += 1


def _wait(issue: Issue, s: Strand, m: Mask) -> None:
    groups = s.whole(m, GROUP, issue.text)
    first = s.products_committed - issue.number("group", s)
    done = [one for one in s.products if one.group < first]
    s.products = [one for one in s.products if one.group >= first]
    shared = s.launch.shared
    for product in done:
        for i, (local, start, count) in enumerate(product.registers):
            if i == len(product.registers) - 1:
                local.mark(product.mask, start, count, SET)
            else:
                for element in range(start // local.item, (start + count) // local.item):
                    local.pinned[element] -= 1
        for chosen, grains in product.reads:
            shared.note_read(s, chosen, grains)
            shared.pinned[grains[: len(grains) // WARPS]] -= 1
    for product in s.products:  # of the same registers, still on their way
        local, start, count = product.registers[-1]
        local.mark(product.mask, start, count, FLYING)
    for group in groups:
        lane = int(group) * GROUP
        warps = s.warp[lane] + np.arange(WARPS)
        s.launch.order.meet(s.block[lane : lane + 1], warps)


def _descriptor_call(scope: Scope, node: Any) -> Code:
    """``T.cuda.wgmma.encode_matrix_descriptor``."""
    parts = [scope.expression(part).run for part in node.args]

    def run(s: Strand, m: Mask) -> None:
        target, pointer, leading, stride, swizzle = (part(s, m) for part in parts)
        source: Pointer = pointer
        start = source.offset + source.memory.start
        if np.any(np.asarray(start) % PIECE):
            s.fail(MisalignedError, f"a descriptor of {source.name} that begins within 16 bytes", 0)
        bits = s.full(encode(start, leading, stride, int(swizzle)))
        data = np.ascontiguousarray(bits)[:, None].view(np.uint8)
        target.memory.write(s, m, target.offset, (target.name, data))

    return Code(run, Kind.VARYING)


def _keep(scope: Scope, node: Any) -> Code:
    """``T.cuda.wgmma.noop_barrier``: an empty assembly statement."""
    return Code(lambda s, m: None, Kind.VARYING)


INSTRUCTIONS: dict[str, Callable[[Issue, Strand, Mask], None]] = {
    **{
        f"wgmma_{kind}_{how}": _product
        for kind in ("int", "b1", "f16", "bf16")
        for how in ("ss", "rs")
    },
    "wgmma_fence": _fence,
    "wgmma_commit_group": _commit,
    "wgmma_wait_group": _wait,
}
CALLS: dict[str, Callable[[Scope, Any], Code]] = {
    "tirx.cuda.wgmma_encode_matrix_descriptor": _descriptor_call,
    "tirx.cuda.wgmma_noop_barrier": _keep,
}
