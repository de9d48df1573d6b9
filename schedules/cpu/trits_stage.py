"""The staging copy of `nybble.schedules.cpu.trits`: tables of sums of three activations.

Activations are centred: u - 128 of eight bits. A sum v of three, |v| <= 384, becomes two signed
bytes, v = low + 31·high with |low| <= 15 and |high| <= 12, so that eight of each sum up in a byte
whatever their signs.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import ceil
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from nybble.ir import numerics
from nybble.schedules.cpu.gemv_rows import sweep
from nybble.schedules.cpu.geometry import Geometry, geometry_of
from nybble.schedules.cpu.lut_scheme import ENTRIES, vector_of
from nybble.schedules.kernel import Problem

GROUPS = 8  # that share a byte of signs, and whose sums fit a byte
SPAN = 3 * GROUPS
BASE = 31
TABLE = 2 * ENTRIES  # bytes of a group's tables
WEIGHTS = [t for t in product((-1, 0, 1), repeat=3) if t >= (0, 0, 0)]
"""The weights of a table's entries: zero, and those whose first weight beside 0 is 1."""


@dataclass(frozen=True)
class TritStaging:
    """The tables of one layer's rows; a unit is a span of eight groups.

    Attributes:
        geometry: of the layer.
        centre: what is taken off the activations.
    """

    geometry: Geometry
    centre: int

    @classmethod
    def of(cls, problem: Problem) -> TritStaging:
        """The tables of a problem."""
        high = numerics.limits(problem.inputs[0].dtype)[1]
        return cls(geometry_of(problem), 128 if high > 127 else 0)

    @property
    def dtype(self) -> str:
        """Of the copy."""
        return "int8"

    @property
    def spans(self) -> int:
        """Spans of a row."""
        return ceil(self.geometry.c / SPAN)

    @property
    def padded(self) -> int:
        """Activations of all spans of a row."""
        return SPAN * self.spans

    per_channels = per_pixel = pitch = spans

    def size(self, rows: int) -> int:
        """Bytes of the tables that ``rows`` rows read."""
        return rows * self.spans * GROUPS * TABLE

    def emit(self, source: Any, scratch: Any, rows: int, where: tuple[Any, Any]) -> None:
        """Emits the copy.

        Args:
            source: the input as a flat buffer.
            scratch: flat int8 buffer of `size` bytes.
            rows: that are computed from it.
            where: (first element of the image in ``source``, first row).
        """
        flat = T.alloc_buffer((self.padded + 1,), "uint8", layout=None)
        with T.serial(self.padded + 1 - self.geometry.c) as i:
            T.buffer_store(flat, tirx.const(128, "uint8"), [self.geometry.c + i])
        with T.serial(rows) as row:
            begin = T.Bind(where[0] + (where[1] + row) * self.geometry.c)
            self._copy(source, begin, flat)
            with T.serial(self.spans * GROUPS) as group:
                to = T.Bind((row * (self.spans * GROUPS) + group) * TABLE)
                table = self._table(flat, T.Bind(group * 3))
                T.buffer_store(scratch, table, [T.ramp(to, 1, TABLE)])

    def _copy(self, source: Any, begin: Any, flat: Any) -> None:
        """One row as bytes that are 128 more than the centred activations."""
        flip = tirx.const(0 if self.centre else 128, "uint8")

        def move(at: Any, lanes: int) -> None:
            kind = f"{source.dtype}x{lanes}" if lanes > 1 else str(source.dtype)
            value = source.vload([begin + at], kind) if lanes > 1 else source[begin + at]
            value = T.reinterpret(kind.replace("uint", "int").replace("int", "uint"), value)
            value = value ^ (T.broadcast(flip, lanes) if lanes > 1 else flip)
            T.buffer_store(flat, value, [T.ramp(at, 1, lanes) if lanes > 1 else at])

        sweep(move, self.geometry.c, 32)

    def _table(self, flat: Any, at: Any) -> Any:
        """Both tables of three activations: int8x32."""
        entries = [*WEIGHTS, *[(0, 0, 0)] * (ENTRIES - len(WEIGHTS))]
        sums = vector_of([-128 * sum(w) for w in entries], "int16")
        for first, used in ((0, (0, 1)), (2, (2,))):
            pair = T.reinterpret("int16", flat.vload([at + first], "uint8x2"))
            bytes_ = T.reinterpret("uint8x32", T.broadcast(pair, ENTRIES))
            weights = [w[j] if j in used else 0 for w in entries for j in (first, first + 1)]
            sums = sums + _words("pmadd.ub.sw", bytes_, vector_of(weights, "int8"))
        sums = T.Bind(sums)
        share = T.broadcast(tirx.const(round(2**15 / BASE), "int16"), ENTRIES)
        high = T.Bind(_words("pmul.hr.sw", sums, share))
        low = sums - high * T.broadcast(tirx.const(BASE, "int16"), ENTRIES)
        packed = T.call_llvm_pure_intrin("int8x32", "llvm.x86.avx2.packsswb", low, high)
        ordered = T.Shuffle([T.reinterpret("int64x4", packed)], [0, 2, 1, 3])
        return T.reinterpret("int8x32", ordered)


def _words(name: str, a: Any, b: Any) -> Any:
    return T.call_llvm_pure_intrin(f"int16x{ENTRIES}", f"llvm.x86.avx2.{name}", a, b)
