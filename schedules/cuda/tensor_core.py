"""The tensor cores' integer products, and what their operands look like.

One step multiplies 16 rows by 8 channels over 32 bytes of depth: 32 elements of 8 bits or 64 of 4.
A warp's 32 lanes hold the fragments; g = lane / 4, t = lane % 4, a register is 4 bytes of depth:

    rows (A)      a0: row g,     bytes 4t..   a1: row g + 8, bytes 4t..
                  a2: row g,     bytes 16 + 4t..   a3: row g + 8, bytes 16 + 4t..
    channels (B)  b0: channel g, bytes 4t..   b1: channel g, bytes 16 + 4t..
    sums (C)      c0, c1: row g, channels 2t and 2t + 1;   c2, c3: row g + 8

Ampere does a step in one instruction. Turing's has 8 rows and 16 bytes: the same registers in four
instructions. (PTX ISA, "Matrix multiply-accumulate operation using mma instruction".)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as script
from tvm.tirx.script.builder import ir as T

from nybble.ir import numerics
from nybble.schedules.cuda.arch import CudaTarget

ROWS, CHANNELS, STEP = 16, 8, 32
"""Rows, channels and bytes of depth of a step."""


@dataclass(frozen=True)
class TensorCore:
    """Instructions for one step.

    Attributes:
        types: of rows and channels as PTX spells them: ``u8``, ``s4``.
        wide: one instruction does a step; else four.
    """

    types: tuple[str, str]
    wide: bool

    @property
    def name(self) -> str:
        """The instruction."""
        bits = int(self.types[0][1:])
        shape = f"m16n8k{256 // bits}" if self.wide else f"m8n8k{128 // bits}"
        return f"mma.sync.aligned.{shape}.row.col.s32.{'.'.join(self.types)}.s32"

    def step(self, sums: Sequence[Any], a: Sequence[Any], b: Sequence[Any]) -> None:
        """Emits sums += a · b: registers of fragments as above, all of them ``uint32``."""
        mma = script.ptx[self.name]
        if self.wide:
            T.evaluate(mma(*sums, *a, *b, *sums))
            return
        for half in (0, 1):  # 8 rows
            mine = sums[2 * half : 2 * half + 2]
            for depth in (0, 1):  # 16 bytes
                T.evaluate(mma(*mine, a[half + 2 * depth], b[depth], *mine))


def tensor_core(target: CudaTarget, activations: str, weights: str, bits: int) -> TensorCore:
    """The instructions of a target for operands of these dtypes, held in ``bits``."""
    types = tuple("us"[numerics.width(dtype)[0]] + str(bits) for dtype in (activations, weights))
    return TensorCore((types[0], types[1]), target.has("mma_m16"))


Registers = Callable[[int], Any]
"""Gives the nth register of a fragment."""


def load_rows(into: Sequence[Any], address: Any) -> None:
    """Emits the load of a step's rows from shared memory: lane l gives 16 bytes of row l % 16.

    Args:
        into: the four registers a0 to a3.
        address: of bytes 16 · (lane / 16) of row lane % 16.
    """
    T.evaluate(script.ptx["ldmatrix.sync.aligned.m8n8.x4.shared.b16"](*into, address))
