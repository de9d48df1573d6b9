"""Words between global memory, shared memory and registers; indices without signs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script import tirx as script
from tvm.tirx.script.builder import ir as T

PIECE = 16
"""Bytes that a thread moves at once."""


def divmod_of(value: Any, by: int) -> tuple[Any, Any]:
    """Quotient and remainder of a value that is not negative."""
    if by == 1:
        return value, tirx.const(0, "int32")
    if by & (by - 1) == 0:
        bits = by.bit_length() - 1
        return tirx.shift_right(value, bits), tirx.bitwise_and(value, by - 1)
    return tirx.truncdiv(value, by), tirx.truncmod(value, by)


@dataclass(frozen=True)
class Lines:
    """The rows' part of a stage: ``slabs`` times ``rows`` lines of 64 or 128 bytes.

    Attributes:
        rows: of a block.
        slabs: of a stage.
        size: bytes of a line.
        threads: that bring them.
        held: as of `nybble.schedules.cuda.mma_plan.Plan`.
    """

    rows: int
    slabs: int
    size: int
    threads: int
    held: int = 0

    @property
    def pieces(self) -> int:
        """Of a line."""
        return self.size // PIECE

    @property
    def words(self) -> int:
        """Of a stage."""
        return self.slabs * self.rows * self.size // 4

    def place(self, line: Any, row: Any, piece: Any) -> Any:
        """The word where a piece begins; ``line`` is its row among those of all slabs and stages.

        Pieces are exchanged by the bits of the row that do not change the banks anyway.
        """
        fixed = 8 // self.pieces  # lines that all banks hold
        exchange = tirx.bitwise_and(divmod_of(row, fixed)[0], self.pieces - 1)
        return line * (self.size // 4) + tirx.bitwise_xor(piece, exchange) * 4


def copy(into: Any, source: Any, size: int, inside: Any = None) -> None:
    """Emits an asynchronous copy of 4, 8 or 16 bytes; zeros where ``inside`` is false."""
    name = "cp.async.cg.shared.global.L2::128B" if size == 16 else "cp.async.ca.shared.global"
    given = [] if inside is None else [tirx.Select(inside, T.uint32(size), T.uint32(0))]
    T.evaluate(script.ptx[name](T.address_of(into), T.address_of(source), size, *given))


def run(buffer: Any, index: Any, lanes: int) -> Any:
    """Elements that lie side by side and are aligned, loaded at once."""
    return buffer.vload([index], f"{buffer.dtype}x{lanes}") if lanes > 1 else buffer[index]


def ramp(first: Any, lanes: int) -> list[Any]:
    """The indices of as many elements."""
    return [T.ramp(first, 1, lanes)] if lanes > 1 else [first]


def load_early(into: Any, at: int, source: Any, words: int) -> None:
    """Emits a load of 1, 2 or 4 words from global memory, here and not where they are used."""
    name = "ld.global.nc.b32" if words == 1 else f"ld.global.nc.v{words}.b32"
    registers = [into[at + i] for i in range(words)]
    T.evaluate(script.ptx[name](*registers, T.address_of(source)))


def pack_nibbles(into: Any, at: int, words: tuple[Any, Any], signed: bool) -> None:
    """Emits the packing of eight values of 4 bits, one a byte in two words, into one word.

    Each word is put beside itself, shifted by half a byte, so that every other byte holds a pair; a
    permutation takes those. Signs fill the upper halves and are cut off before.
    """
    low, high = (w & T.uint32(0x0F0F0F0F) if signed else w for w in words)
    pairs = [T.Bind(w | (w >> T.uint32(4))) for w in (low, high)]
    T.evaluate(script.ptx["prmt.b32"](into[at], *pairs, T.uint32(0x6420)))
