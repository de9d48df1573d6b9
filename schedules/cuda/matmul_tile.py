"""A warp's sums where both operands are tensors: `nybble.schedules.cuda.mma_tile` and zero points.

Fragments of the second operand come as `nybble.schedules.cuda.matmul_loads` says. A zero point's
product with ones has the sums of columns (rows) in the registers that need them.
"""

from __future__ import annotations

from itertools import product
from typing import Any

from tvm.tirx.script.builder import ir as T

from nybble.schedules.cuda.matmul_loads import Across, Along
from nybble.schedules.cuda.mma_tile import WarpTile
from nybble.schedules.cuda.tensor_core import CHANNELS

ONES = 0x01010101


class Pair(WarpTile):
    """A warp's sums where both operands come from tensors."""

    def read(self, right: Along | Across, zeros: tuple[int, int]) -> None:
        """Emits what reading the second operand needs; ``zeros`` are the zero points."""
        self.right, self.zeros = right, zeros
        right.aim(self.lane, self.channel)
        down, across = self.plan.units
        self.beside = [self._counters(count) for count in (across, down)]

    def _counters(self, units: int) -> Any:
        sums = T.alloc_buffer((4 * units,), "uint32", scope="local", layout=None)
        with T.unroll(4 * units) as i:
            T.buffer_store(sums, T.uint32(0), [i])
        return sums

    def at(self, row: int, channel: int) -> int:
        """The register with the sum of the lane's nth row and channel."""
        if not self.right.transposes:
            return super().at(row, channel)
        group, n = divmod(channel, 4)
        line = row // 2 * (self.width // CHANNELS) + 2 * group + n % 2
        return line * 4 + row % 2 * 2 + n // 2

    def _load_weights(self, b: Any, stage: Any, slab: Any) -> None:
        across = self.plan.units[1]
        slab = T.Bind(stage * self.plan.slabs + slab)
        for step in (0, 1):
            for group in range(across // 2):
                first = (step * across + 2 * group) * 2
                self.right.load([b[first + i] for i in range(4)], slab, step, group)

    def _products(self, a: Any, b: Any, step: int) -> None:
        super()._products(a, b, step)
        down, across = self.plan.units
        ones = [T.uint32(ONES)] * 4
        for n in range(across if self.zeros[0] else 0):
            columns = [b[(step * across + n) * 2 + i] for i in (0, 1)]
            self.core.step([self.beside[0][4 * n + i] for i in range(4)], ones, columns)
        for m in range(down if self.zeros[1] else 0):
            rows = [a[(step * down + m) * 4 + i] for i in range(4)]
            self.core.step([self.beside[1][4 * m + i] for i in range(4)], rows, ones[:2])

    def settle(self) -> None:
        """Emits what the zero points take off the sums."""
        down, across = self.plan.units
        factors = [T.uint32(-zero & 0xFFFFFFFF) for zero in self.zeros]
        for m, n, i in product(range(down), range(across), range(4)):
            at = (m * across + n) * 4 + i
            own = self.beside[0][4 * n + i], self.beside[1][4 * m + i]
            taken = [f * one for zero, f, one in zip(self.zeros, factors, own, strict=True) if zero]
            if taken:
                T.buffer_store(self.sums, sum(taken, self.sums[at]), [at])
