"""How weight-only layers lie in memory: records in the order of tensor-core fragments.

The weights are the 16-row operand, the activations the 8-column one: few rows of activations waste
no tensor core, and sums stay in float32. With g = lane / 4 and t = lane % 4, one *record* is what a
warp multiplies by 64 activations of each row:

    record    [tiles of 16 channels][64 inputs]: of a tile a lane holds one unit of 16 pairs
    pair      4s + r of step s = 0 … 3: channel g + 8·(r % 2), inputs 32·(s / 2) + 8t + 4·(s % 2) +
              2·(r / 2) and the next: so that of each 32 inputs a lane needs 8 in a row
    memory    [blocks of channels][records][vectors][32 lanes][4 words]: loads of 16 bytes a lane

Groups are *runs* of whole records: those of up to 32 inputs are filled up to 32, two to a record,
longer ones to a multiple of 64, and those beyond 128 are several runs; activations are filled up
with zeros in the same places. A scale is stored in half precision as a share of the channel's
largest one, 2^15, which stays float32 (as does the scale of a channel that has but one).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nybble.ir import code_books, numerics
from nybble.schedules.cuda.books import OFFSET, BookCodes
from nybble.schedules.cuda.halves import BIAS, PAIRS, Codes, stored_bits
from nybble.schedules.kernel import Constants, Problem, TensorSpec

DEPTH = 64
"""Inputs of a record."""
TILE = 16
"""Channels of a tensor-core operand."""
LARGEST = np.float32(2.0**15)
"""The largest share of a channel, so that shares down to 2^-29 of it keep their precision."""
SHORT = 32
"""Groups up to this long lie two to a record."""


@dataclass(frozen=True)
class Layout:
    """One layer as it is packed.

    Attributes:
        o: output channels.
        k: inputs.
        group: inputs that share a scale; at least ``k`` for one scale a channel.
        bits: of a stored code.
        zero: the code of 0 that all groups share, None where they have their own.
        tiles: of a record.
        book: the code book of the weights, empty without one.
    """

    o: int
    k: int
    group: int
    bits: int
    zero: int | None
    tiles: int
    book: str = ""

    @property
    def codes(self) -> Codes | BookCodes:
        """How codes lie in words."""
        return BookCodes(self.book) if self.book else Codes(self.bits)

    @property
    def is_grouped(self) -> bool:
        """Whether a channel has several scales."""
        return self.group < self.k

    @property
    def parts(self) -> int:
        """Groups in a run."""
        return 2 if self.is_grouped and self.group <= SHORT else 1

    @property
    def padded(self) -> int:
        """Inputs of a group, filled up; of a record where a channel has one scale."""
        if not self.is_grouped:
            return DEPTH
        return SHORT if self.group <= SHORT else -(-self.group // DEPTH) * DEPTH

    @property
    def is_gapless(self) -> bool:
        """Whether inputs lie as in the row of activations."""
        return not self.is_grouped or self.padded == self.group

    @property
    def span(self) -> int:
        """Records of a run: two, unless that cuts a group into unequal parts."""
        return 2 if self.padded % (2 * DEPTH) == 0 else 1

    @property
    def pieces(self) -> int:
        """Runs of a long group: they share its scale."""
        return max(self.padded // (DEPTH * self.span), 1)

    @property
    def scaled(self) -> int:
        """Pieces with numbers of their own, `parts` groups each."""
        groups = -(-self.k // (self.group if self.is_grouped else DEPTH))
        return -(-groups // self.parts)

    @property
    def runs(self) -> int:
        """Of a channel."""
        return self.scaled * self.pieces

    @property
    def records(self) -> int:
        """Of a block of channels."""
        return self.runs * self.span

    @property
    def width(self) -> int:
        """Channels of a block."""
        return TILE * self.tiles

    @property
    def blocks(self) -> int:
        """Of channels, the last one filled up."""
        return -(-self.o // self.width)

    @property
    def words(self) -> int:
        """Of a lane in a record."""
        return self.tiles * self.bits

    @property
    def vector(self) -> int:
        """Words that a lane loads at once."""
        return gcd(self.words, 4)

    @property
    def numbers(self) -> int:
        """Words for two channels of a group: their scales, if grouped; their zeros, if any."""
        return self.is_grouped + (self.zero is None)

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """Packed weights, the numbers of groups if there are any, factor and bias of channels."""
        shape = (self.blocks, self.records, self.words // self.vector, 32, self.vector)
        found = [TensorSpec(shape, "uint32")]
        if self.numbers:
            scaled = self.scaled if self.is_grouped else 1
            shape = (self.blocks, scaled, 8, self.parts * self.numbers, self.tiles)
            found.append(TensorSpec(shape, "uint32"))
        return (*found, TensorSpec((2, self.blocks * self.width), "float32"))

    def pack(self, problem: Problem, constants: Constants) -> list[NDArray[Any]]:
        """The constants that `specs` describes."""
        assert problem.weights is not None
        lowest = numerics.limits(problem.weights.dtype)[0]
        scale = np.asarray(constants["scale"], np.float32)
        factor = scale[:, 0]
        if self.is_grouped:
            factor = np.abs(scale).max(axis=1) / LARGEST
            factor = np.where(factor > 0, factor, np.float32(1))
        table = np.zeros((2, self.blocks * self.width), np.float32)
        table[0, : self.o], table[1, : self.o] = factor, constants["bias"]
        zeros, w = np.asarray(constants["zero_point"], np.int64) - lowest, constants["w"]
        codes = code_books.numbers(w, self.book) if self.book else w.astype(np.int64) - lowest
        made: list[NDArray[Any]] = [self._weights(codes)]
        if self.numbers:
            made.append(self._numbers(scale / factor[:, None], zeros))
        return [*made, table]

    def _weights(self, codes: NDArray[Any]) -> NDArray[np.uint32]:
        """Codes (O, K) as records."""
        group = self.group if self.is_grouped else DEPTH
        short = np.zeros((self.blocks * self.width, -(-self.k // group) * group), np.uint8)
        short[: self.o, : self.k] = codes
        apart = short.reshape(len(short), -1, group)
        missing = self.scaled * self.parts - apart.shape[1]
        full = np.pad(apart, [(0, 0), (0, missing), (0, self.padded - group)])
        # axes: block, tile, row / 8, g; record, half, t, s % 2, r / 2, low or high
        full = full.reshape(self.blocks, self.tiles, 2, 8, self.records, 2, 4, 2, 2, 2)
        # block, record, tile, lane = (g, t), s = (half, s % 2), r = (r / 2, row / 8), low or high
        ordered = full.transpose(0, 4, 1, 3, 6, 5, 7, 8, 2, 9)
        ordered = ordered.reshape(self.blocks, self.records, self.tiles, 32, PAIRS, 2)
        words = self.codes.pack(ordered).swapaxes(2, 3)  # block, record, lane, tile, word
        lanes = words.reshape(self.blocks, self.records, 32, -1, self.vector)
        return np.ascontiguousarray(lanes.swapaxes(2, 3))

    def _numbers(self, shares: NDArray[Any], zeros: NDArray[Any]) -> NDArray[np.uint32]:
        """(block, run, g, part and kind, tile): two halves, those of channels g and g + 8."""
        kinds = [shares.astype(np.float16)] if self.is_grouped else []
        if self.zero is None:
            kinds.append((zeros + BIAS).astype(np.float16))
        groups = (self.scaled if self.is_grouped else 1) * self.parts
        full = np.zeros((len(kinds), self.blocks * self.width, groups), np.float16)
        for whole, kind in zip(full, kinds, strict=True):
            whole[: self.o, : kind.shape[1]] = kind
        apart = full.reshape(len(kinds), self.blocks, self.tiles, 2, 8, -1, self.parts)
        ordered = np.ascontiguousarray(apart.transpose(1, 5, 4, 6, 0, 2, 3))
        return ordered.view(np.uint32).reshape(*map(int, self.specs[1].shape))


def layout_of(problem: Problem, tiles: int) -> Layout:
    """The layout of a ``weight_only`` problem for records of ``tiles`` tiles."""
    assert problem.weights is not None
    (o, k), dtype = map(int, problem.weights.shape), problem.weights.dtype
    common, book = problem.attr("zero_point"), str(dict(problem.attrs).get("book", ""))
    if book:
        bits = code_books.BITS
        return Layout(o, k, int(problem.attr("group")), bits, OFFSET, tiles, book)
    zero = None if common is None else int(common) - numerics.limits(dtype)[0]
    bits = stored_bits(numerics.width(dtype)[1])
    return Layout(o, k, int(problem.attr("group")), bits, zero, tiles)
