"""Weights of one to seven bits lie packed in the library and are decoded a panel at a time.

A panel is all of K for one vector of output channels: ``length`` bytes of s8 in the order in which
the inner loop reads them. It is packed in planes of 4, 2 and 1 bits (5 = 4 + 1, 7 = 4 + 2 + 1), in
groups of ``8 / narrowest plane`` vectors of ``chunk`` bytes, so that a mask and a shift take out
the codes of ``chunk`` consecutive weights:

    plane of 4 bits    byte j of the group = code[0][j] | code[1][j] << 4
    plane of 2 bits    code[0][j] | code[1][j] << 2 | code[2][j] << 4 | code[3][j] << 6
    plane of 1 bit     bit i is code[i][j]

value = low + step·code; the step is 1, but 2 for ``int1``, whose values are -1 and +1. Decoding
costs about one cycle for a vector of weights, once for each block of channels and task.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from nybble.errors import ScheduleError
from nybble.ir import numerics

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Panels:
    """How panels of weights of one dtype are packed.

    Attributes:
        dtype: of the weights: ``int1`` to ``int7``, ``uint1`` to ``uint7``.
        length: weights in a panel, a multiple of ``chunk``.
        chunk: bytes of one vector: lanes × depth of the dot product.
    """

    dtype: str
    length: int
    chunk: int

    @property
    def bits(self) -> int:
        """Width of a weight."""
        return numerics.width(self.dtype)[1]

    @property
    def planes(self) -> tuple[int, ...]:
        """Widths of the planes, widest first."""
        return tuple(width for width in (4, 2, 1) if self.bits & width)

    @property
    def group(self) -> int:
        """Vectors of weights that are decoded together."""
        return 8 // self.planes[-1]

    @property
    def groups(self) -> int:
        """Groups in a panel; the last one is filled up."""
        return -(-self.length // (self.group * self.chunk))

    @property
    def packed(self) -> int:
        """Bytes of a packed panel."""
        return self.groups * self.group * self.chunk * self.bits // 8

    @property
    def decoded(self) -> int:
        """Bytes that decoding a panel writes: at least ``length``."""
        return self.groups * self.group * self.chunk

    @property
    def affine(self) -> tuple[int, int]:
        """(low, step): the value of code c is low + step·c."""
        return numerics.limits(self.dtype)[0], 2 if self.dtype == "int1" else 1


def panels_of(dtype: str, length: int, chunk: int, padded: bool) -> Panels | None:
    """The layout for weights of ``dtype``; None for 8 bits and floats, which lie as they are.

    Args:
        dtype: of the weights.
        length: weights in a panel.
        chunk: bytes of one vector.
        padded: whether panels need zeros between the weights, which ``int1`` does not have.
    """
    if dtype.startswith("float") or numerics.width(dtype)[1] == 8:
        return None
    return Panels("int2" if dtype == "int1" and padded else dtype, length, chunk)


def filler(dtype: str) -> int:
    """A weight for channels that do not exist: 0 where the dtype has it."""
    return -1 if dtype == "int1" else 0


# ---------------------------------------------------------------- pack


def pack(panels: Panels, values: NDArray[np.int8]) -> Bytes:
    """Packs whole panels.

    Args:
        panels: the layout.
        values: (panels, length) weights.

    Returns:
        (panels, packed) bytes.

    Raises:
        ScheduleError: a value that the dtype does not have.
    """
    low, step = panels.affine
    filled = np.zeros((len(values), panels.decoded), np.int16)
    codes, rest = np.divmod(values.astype(np.int16) - low, step)
    if rest.any() or codes.min(initial=0) < 0 or codes.max(initial=0) >> panels.bits:
        raise ScheduleError(f"weights hold values that {panels.dtype} does not have")
    filled[:, : panels.length] = codes
    grouped = filled.reshape(len(values), panels.groups, panels.group, panels.chunk)
    parts, taken = [], panels.bits
    for width in panels.planes:
        taken -= width
        parts.append(_plane((grouped >> taken) & ((1 << width) - 1), width))
    return np.concatenate(parts, axis=2).reshape(len(values), panels.packed)


def _plane(codes: NDArray[np.int16], width: int) -> Bytes:
    """One plane: (panels, groups, group, chunk) codes -> (panels, groups, group·width/8, chunk)."""
    panels, groups, group, chunk = codes.shape
    split = codes.astype(np.uint8).reshape(panels, groups, group * width // 8, 8 // width, chunk)
    shifts = np.arange(0, 8, width, dtype=np.uint8)[:, None]
    packed: Bytes = np.bitwise_or.reduce(split << shifts, axis=3)
    return packed


# ---------------------------------------------------------------- emit


def decode(panels: Panels, packed: Any, row: Any, scratch: Any, start: Any) -> None:
    """Emits the decoding of one panel.

    Args:
        panels: the layout.
        packed: uint8 buffer of shape (panels, packed).
        row: which panel.
        scratch: flat int8 buffer.
        start: where in ``scratch`` the panel goes; ``decoded`` bytes are written.
    """
    low, step = panels.affine
    wide = f"uint8x{panels.chunk}"

    def every(value: int) -> Any:
        return T.broadcast(tirx.const(value % 256, "uint8"), panels.chunk)

    with T.serial(panels.groups) as g:
        base = T.Bind(g * (panels.packed // panels.groups))
        loaded, at = [], 0
        for width in panels.planes:
            count = panels.group * width // 8
            loaded.append(
                [
                    T.Bind(packed.vload([row, base + (at + i) * panels.chunk], wide))
                    for i in range(count)
                ]
            )
            at += count
        for i in range(panels.group):
            code, taken = None, panels.bits
            for width, vectors in zip(panels.planes, loaded, strict=True):
                taken -= width
                share = 8 // width
                part = _field(vectors[i // share], i % share * width, width, taken, every)
                code = part if code is None else code | part
            value = code * every(step) if step > 1 else code
            value = value + every(low) if low else value
            there = start + (g * panels.group + i) * panels.chunk
            signed = T.reinterpret(f"int8x{panels.chunk}", value)
            T.buffer_store(scratch, signed, [T.ramp(there, 1, panels.chunk)])


def _field(vector: Any, at: int, width: int, to: int, every: Any) -> Any:
    """Bits at..at+width of every byte, moved to bit ``to``; one shift and one mask."""
    by = at - to
    if by > 0:
        vector = vector >> every(by)
    elif by < 0:
        vector = vector << every(-by)
    return vector & every(((1 << width) - 1) << to)
