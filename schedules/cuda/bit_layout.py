"""How layers of few bits lie in memory: bit planes in the order of 1-bit tensor-core fragments.

    Σ w·x = Σ_ij cw_i·cx_j·popcount(w_i & x_j)        planes i of weights, j of activations

(`nybble.schedules.cpu.bitserial_planes` has the factors, and what -1 and +1 in one bit add to it.)
The depth is words of 32 elements: of each tap of a window its channels, the last word filled up
with zeros. A *record* is 8 words of every plane of all tiles; with g = lane / 4 and t = lane % 4,

    record    [tiles of 16 channels][planes]: a lane holds 4 words of a plane
    words     channel g, word 2t | channel g + 8, word 2t | channel g, word 2t + 1 | g + 8, 2t + 1
    memory    [blocks of channels][records][tile and plane][32 lanes][4 words]

A step of Ampere's tensor cores multiplies 16 channels by 8 rows over these 8 words. Turing's counts
the bits that differ, 8 channels and 4 words at a time, from which

    2·Σ w_i & x_j = popcount(w_i) + popcount(x_j) - popcount(w_i ^ x_j)

follows: the sums of weights are packed, those of activations come from one more tile, of zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nybble.schedules.cpu.bitserial_planes import WORD, Planes
from nybble.schedules.cuda.matrix import Matrix, matrix_of
from nybble.schedules.kernel import Problem, TensorSpec

STEP = 8
"""Words of depth of a record."""
TILE = 16
"""Channels of a tensor-core operand."""
MOST = 8
"""Pairs of planes: beyond, 8-bit tensor cores need no more time."""


@dataclass(frozen=True)
class BitLayout:
    """One layer as it is packed.

    Attributes:
        matrix: the layer as a product of rows by channels.
        weights: their planes.
        activations: their planes.
    """

    matrix: Matrix
    weights: Planes
    activations: Planes

    @property
    def pairs(self) -> int:
        """Of planes."""
        return len(self.weights.coefs) * len(self.activations.coefs)

    @property
    def tiles(self) -> int:
        """Of a record: what leaves room for the sums of all pairs."""
        return 2 if self.pairs <= MOST // 2 else 1

    @property
    def width(self) -> int:
        """Channels of a block."""
        return TILE * self.tiles

    @property
    def blocks(self) -> int:
        """Of channels, the last one filled up."""
        return -(-self.matrix.channels // self.width)

    @property
    def padded(self) -> int:
        """Channels of all blocks."""
        return self.blocks * self.width

    @property
    def line(self) -> int:
        """Words of a tap, for each plane."""
        return -(-self.matrix.elements // WORD)

    @property
    def depth(self) -> int:
        """Words of a row, for each plane."""
        return self.matrix.taps * self.line

    @property
    def records(self) -> int:
        """Of a block of channels, the last one filled up."""
        return -(-self.depth // STEP)

    @property
    def words(self) -> int:
        """Of a lane in a record."""
        return self.tiles * len(self.weights.coefs) * 4

    @property
    def factors(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of every plane of weights, and of every plane of activations."""
        return tuple(
            tuple(-2 * c if planes.signs else c for c in planes.coefs)
            for planes in (self.weights, self.activations)
        )  # type: ignore[return-value]  # two of them

    @property
    def spec(self) -> TensorSpec:
        """The packed planes."""
        return TensorSpec((self.blocks, self.records, self.words // 4, 32, 4), "uint32")

    def pack(self, w: NDArray[Any]) -> NDArray[np.uint32]:
        """The planes of weights, (O, K) or OHWI."""
        matrix, planes = self.matrix, len(self.weights.coefs)
        lines = w.reshape(len(w), matrix.taps, matrix.elements)
        bits = self.weights.split(lines)
        full = np.zeros((self.blocks * self.width, matrix.taps, self.line * WORD, planes), np.uint8)
        full[: len(w), :, : matrix.elements] = bits
        packed = np.packbits(full, axis=2, bitorder="little").transpose(0, 3, 1, 2)
        words = np.ascontiguousarray(packed).reshape(len(full), planes, -1, 4).view(np.uint32)
        words = np.pad(words[..., 0], [(0, 0), (0, 0), (0, self.records * STEP - self.depth)])
        # axes: block, tile, row / 8, g; plane; record, t, which of two
        apart = words.reshape(self.blocks, self.tiles, 2, 8, planes, self.records, 4, 2)
        ordered = apart.transpose(0, 5, 1, 4, 3, 6, 7, 2)
        return np.ascontiguousarray(ordered).reshape(tuple(map(int, self.spec.shape)))

    def counts(self, w: NDArray[Any]) -> NDArray[np.int64]:
        """Σ_i cw_i·popcount(w_i) of every channel."""
        bits = self.weights.split(w.reshape(len(w), -1)).sum(axis=1, dtype=np.int64)
        return bits @ np.array(self.factors[0])


def bit_layout_of(problem: Problem) -> BitLayout:
    """The layout of a ``conv2d`` of one group, or of a ``linear`` problem."""
    assert problem.weights is not None
    weights, activations = Planes(problem.weights.dtype), Planes(problem.inputs[0].dtype)
    return BitLayout(matrix_of(problem), weights, activations)
