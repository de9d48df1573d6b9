"""Layouts of tiles in shared memory that TMA writes and ``wgmma`` reads.

A swizzle exchanges the 16-byte pieces of 128 bytes (or 64, 32) by the number of the line, so that
eight lines at one column touch all banks: bits 4 … of the address are xored with bits 7 … (PTX ISA,
"Asynchronous Warpgroup Level Matrix Shared Memory Layout"; CuTe's ``Swizzle<B,4,3>``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from nybble.simt.errors import UnsupportedError
from nybble.simt.strand import Ints

PIECE = 16


def swizzled(address: Ints, span: int) -> Ints:
    """Where the byte of a plain address is; ``span`` is 128, 64, 32, or 16 for no swizzle."""
    return address ^ ((address >> 7) & (span // PIECE - 1)) << 4


@dataclass(frozen=True)
class Descriptor:
    """A matrix in shared memory as ``wgmma`` is told of it.

    Attributes:
        start: byte address.
        leading: bytes from one 16-byte column to the next without a swizzle; where the matrix lies
            along its rows or columns (``transposed``), from one span to the next.
        stride: bytes from eight rows to the next eight.
        span: bytes of the swizzle.
    """

    start: int
    leading: int
    stride: int
    span: int

    @staticmethod
    def of(bits: int) -> Descriptor:
        """From the 64 bits (PTX ISA, "Matrix Descriptor Format")."""
        if bits >> 49 & 7:
            raise UnsupportedError("a matrix descriptor with a base offset is not modelled")
        start, leading, stride = ((bits >> at & 0x3FFF) * 16 for at in (0, 16, 32))
        return Descriptor(start, leading, stride, (16, 128, 64, 32)[bits >> 62])

    def addresses(self, rows: int, width: int) -> Ints:
        """``(rows, width / 16)``: where the pieces of a matrix are whose depth is contiguous.

        Args:
            rows: of the matrix: along M, or N.
            width: bytes of depth.
        """
        row, piece = np.indices((rows, width // PIECE))
        if self.span == PIECE:
            plain = row % 8 * PIECE + row // 8 * self.stride + piece * self.leading
        else:
            plain = row % 8 * self.span + row // 8 * self.stride + piece * PIECE
        return swizzled(self.start + plain, self.span)

    def transposed(self, rows: int, depth: int) -> Ints:
        """``(depth, rows / 8)``: where pieces of eight 16-bit rows are, for each line of depth."""
        line, piece = np.indices((depth, rows // 8))
        pieces = self.span // PIECE
        if self.span == PIECE:
            plain = piece * self.stride + line % 8 * PIECE + line // 8 * self.leading
        else:
            plain = piece % pieces * PIECE + piece // pieces * self.leading
            plain = plain + line % 8 * self.span + line // 8 * self.stride
        return swizzled(self.start + plain, self.span)


def encode(start: Any, leading: Any, stride: Any, swizzle: int) -> Any:
    """The 64 bits of a descriptor.

    Args:
        start: byte address.
        leading: in 16 bytes.
        stride: in 16 bytes.
        swizzle: 0 to 3: none, 32, 64, 128 bytes.
    """
    fields = [np.asarray(one).astype(np.uint64) for one in (start, leading, stride)]
    kind = np.uint64((0, 3, 2, 1)[swizzle] << 62)
    address, lead, step = fields
    fourteen = np.uint64(0x3FFF)
    low = address >> np.uint64(4) & fourteen
    return low | (lead & fourteen) << np.uint64(16) | (step & fourteen) << np.uint64(32) | kind
