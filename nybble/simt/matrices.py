"""``mma`` and ``ldmatrix``: products of a warp's registers, and how these are loaded.

Fragments are as the PTX ISA draws them ("Matrix Fragments for mma.m16n8k16 …", for each type). All
of them follow one rule. With ``E`` elements in a 32-bit register, lane ``4g + t`` holds in

    A, register r, element i:  row g + 8 (r mod 2), column E t + i + 4 E (r div 2)
    B, register r, element i:  row E t + i + 4 E r, column g
    C, element i:              row g + 8 (i div 2), column 2 t + i mod 2

where an A of 8 rows has no second half of rows, and its registers follow along the columns. CuTe
writes the same as strides (``MMA_Traits<SM80_16x8x32_S32S8S8S32_TN>`` and its like).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from nybble.simt.issue import Array, Issue
from nybble.simt.memory import Pointer
from nybble.simt.strand import WARP, Ints, Strand
from nybble.simt.values import Mask

BITS = {"s8": 8, "u8": 8, "s4": 4, "u4": 4, "b1": 1, "f16": 16, "bf16": 16}


@functools.cache
def a_fragment(rows: int, depth: int, bits: int) -> Ints:
    """``(rows, depth)``: where A's elements are among the warp's: lane, register, element."""
    per = 32 // bits
    registers = rows * depth // (WARP * per)
    row, column = np.indices((rows, depth))
    low, register = row % 8, row // 8
    ahead = column // (4 * per)
    register = ahead if rows == 8 else register + 2 * ahead
    lane = 4 * low + column % (4 * per) // per
    return (lane * registers + register) * per + column % per


@functools.cache
def b_fragment(depth: int, bits: int) -> Ints:
    """``(depth, 8)``: where B's elements are."""
    per = 32 // bits
    registers = depth * 8 // (WARP * per)
    row, column = np.indices((depth, 8))
    lane = 4 * column + row % (4 * per) // per
    return (lane * registers + row // (4 * per)) * per + row % per


@functools.cache
def c_fragment(rows: int, columns: int = 8) -> Ints:
    """``(rows, columns)``: where C's elements are, in elements of 32 bits: lane, element."""
    row, column = np.indices((rows, columns))
    lane = 4 * (row % 8) + column % 8 // 2
    element = column % 2 + 2 * (row // 8) + column // 8 * 2 * (rows // 8)
    return lane * (rows * columns // WARP) + element


def unpack(words: Array, kind: str) -> npt.NDArray[np.float32]:
    """The elements of registers: (…, registers) of 32 bits -> (…, elements).

    Args:
        words: registers.
        kind: PTX's type of the elements: ``s4``, ``f16``.
    """
    data = np.ascontiguousarray(words)
    if kind in ("s8", "u8"):
        return data.view(np.int8 if kind == "s8" else np.uint8).astype(np.float32)
    if kind == "f16":
        return data.view(np.float16).astype(np.float32)
    if kind == "bf16":
        return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    bits = BITS[kind]
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    fields = data.view(np.uint32)[..., None] >> shifts & np.uint32((1 << bits) - 1)
    codes = fields.reshape(*data.shape[:-1], -1).astype(np.float32)
    if kind == "s4":
        codes -= 16 * (codes > 7)
    return codes


def integer_product(a: Array, b: Array, operation: str = "") -> npt.NDArray[np.int64]:
    """Products of matrices of small integers, exact; of bits by ``and`` or ``xor``.

    Single precision is exact: no sum of one instruction reaches 2^24.
    """
    both = np.matmul(a, b).astype(np.int64)
    if operation != "xor":
        return both
    ones = a.sum(axis=-1, keepdims=True) + b.sum(axis=-2, keepdims=True)
    return ones.astype(np.int64) - 2 * both


def accumulate(
    total: Array, products: npt.NDArray[np.int64], saturate: bool
) -> npt.NDArray[np.int32]:
    """Adds to 32-bit sums, which wrap around, or stay at the limits with ``.satfinite``."""
    wide = total.astype(np.int64) + products
    if saturate:
        limits = np.iinfo(np.int32)
        wide = np.clip(wide, limits.min, limits.max)
    return wide.astype(np.int32)


def shape_of(issue: Issue) -> tuple[int, int, int]:
    """m, n and k of an instruction."""
    found = re.fullmatch(r"m(\d+)n(\d+)k(\d+)", issue.mods["shape"])
    if found is None:
        raise issue.scope.refuse(issue.text)
    m, n, k = (int(part) for part in found.groups())
    return m, n, k


def _operands(issue: Issue, s: Strand, m: Mask, groups: Ints) -> tuple[Array, Array]:
    rows, _, depth = shape_of(issue)
    kind_a, kind_b = issue.mods["atype"], issue.mods["btype"]
    if not BITS.keys() >= {kind_a, kind_b} or issue.mods["shape"] == "m8n8k4":
        raise issue.scope.refuse(issue.text)
    a, b = issue.read("a", s, m), issue.read("b", s, m)
    a = a.reshape(-1, WARP, a.shape[1])[groups]
    b = b.reshape(-1, WARP, b.shape[1])[groups]
    at_a, at_b = a_fragment(rows, depth, BITS[kind_a]), b_fragment(depth, BITS[kind_b])
    left = unpack(a, kind_a).reshape(len(groups), -1)[:, at_a]
    return left, unpack(b, kind_b).reshape(len(groups), -1)[:, at_b]


def _spread(s: Strand, groups: Ints, matrix: Array, at: Ints) -> Array:
    """Registers of all lanes, ``(lanes, n)``, from the matrices of some warps."""
    flat = np.zeros((s.lanes // WARP, at.size), matrix.dtype)
    rows = np.empty((len(groups), at.size), matrix.dtype)
    rows[:, at.ravel()] = matrix.reshape(len(groups), -1)
    flat[groups] = rows
    return flat.reshape(s.lanes, -1)


def _mma_int(issue: Issue, s: Strand, m: Mask) -> None:
    """``mma`` of integers (PTX ISA, "Warp Level Matrix Multiply-Accumulate Instructions: mma")."""
    groups = s.whole(m, WARP, issue.text)
    a, b = _operands(issue, s, m, groups)
    at = c_fragment(a.shape[1])
    c = issue.read("c", s, m).view(np.int32).reshape(s.lanes // WARP, -1)[groups][:, at]
    products = integer_product(a, b, issue.mods["bitop"])
    total = accumulate(c, products, bool(issue.mods["satfinite"]))
    issue.write("d", s, m, _spread(s, groups, total, at))


def _mma_float(issue: Issue, s: Strand, m: Mask) -> None:
    """``mma`` of 16-bit floats, summed exactly and rounded once.

    The hardware's sum has "at least single precision" for float32 and an order that is not said;
    comparisons need a tolerance.
    """
    groups = s.whole(m, WARP, issue.text)
    a, b = _operands(issue, s, m, groups)
    at = c_fragment(a.shape[1])
    c = issue.read("c", s, m)
    half = issue.mods["ctype"] == "f16"
    values = np.ascontiguousarray(c).view(np.float16 if half else np.float32)
    values = values.reshape(s.lanes // WARP, -1)[groups][:, at]
    total = np.matmul(a.astype(np.float64), b.astype(np.float64)) + values
    spread = _spread(s, groups, total.astype(np.float16 if half else np.float32), at)
    issue.write("d", s, m, spread.view(np.uint32) if half else spread)


def _ldmatrix(issue: Issue, s: Strand, m: Mask) -> None:
    """``ldmatrix``: 8 rows of 16 bytes a matrix, row i of matrix j at lane 8j + i's address."""
    groups = s.whole(m, WARP, issue.text)
    count = int(issue.mods["num"][1:])
    pointer = issue.address("p", s, m)
    lane = np.arange(s.lanes)
    givers = (lane % WARP < 8 * count) & np.isin(lane // WARP, groups)
    offset = s.full(pointer.offset, np.int64)
    rows = pointer.memory.read(s, givers, offset, (pointer.name, 16))
    halves = rows.view(np.uint16).reshape(-1, WARP, 8)[:, : 8 * count]
    halves = halves.reshape(-1, count, 8, 8)
    if issue.mods["trans"]:
        halves = halves.swapaxes(2, 3)
    words = np.ascontiguousarray(halves).view(np.uint32)  # warp, matrix, row, word of row
    issue.write("r", s, m, words.transpose(0, 2, 3, 1).reshape(s.lanes, count))


def _stmatrix(issue: Issue, s: Strand, m: Mask) -> None:
    """``stmatrix``: the reverse of ``ldmatrix``."""
    groups = s.whole(m, WARP, issue.text)
    count = int(issue.mods["num"][1:])
    words = issue.read("r", s, m).view(np.uint32).reshape(-1, 8, 4, count).transpose(0, 3, 1, 2)
    halves = np.ascontiguousarray(words).view(np.uint16)
    if issue.mods["trans"]:
        halves = halves.swapaxes(2, 3)
    rows = np.zeros((s.lanes // WARP, WARP, 8), np.uint16)
    rows[:, : 8 * count] = halves.reshape(-1, 8 * count, 8)
    lane = np.arange(s.lanes)
    takers = (lane % WARP < 8 * count) & np.isin(lane // WARP, groups)
    pointer: Pointer = issue.address("p", s, m)
    data = rows.reshape(s.lanes, 8).view(np.uint8)
    pointer.memory.write(s, takers, s.full(pointer.offset, np.int64), (pointer.name, data))


INSTRUCTIONS: dict[str, Callable[[Issue, Strand, Mask], None]] = {
    "mma": _mma_float,
    "mma_f16acc": _mma_float,
    "mma_int": _mma_int,
    "ldmatrix": _ldmatrix,
    "stmatrix": _stmatrix,
}
