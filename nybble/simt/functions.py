"""Functions by name: CUDA's own, and the meanings that kernel authors give injected ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm

from nybble.simt.codes import Code, Kind, Scope, build, np_dtype
from nybble.simt.errors import UnsupportedError
from nybble.simt.memory import Pointer
from nybble.simt.strand import Strand
from nybble.simt.values import Mask, Value, fma

EXTERNAL = frozenset({"tirx.call_pure_extern", "tirx.call_extern"})


@dataclass(frozen=True)
class Window:
    """Memory behind a pointer argument of an injected function: ``window[i]`` as in C.

    Reading gives an array, one element a lane; assigning writes the active lanes' elements.
    """

    strand: Strand
    mask: Mask
    pointer: Pointer
    dtype: np.dtype[Any]

    def __getitem__(self, index: Value) -> Value:
        place = (self.pointer.name, self.dtype.itemsize)
        found = self.pointer.memory.read(self.strand, self.mask, self._at(index), place)
        return found.view(self.dtype)[:, 0]

    def __setitem__(self, index: Value, value: Value) -> None:
        data = np.ascontiguousarray(self.strand.full(value, self.dtype)).view(np.uint8)
        place = (self.pointer.name, data.reshape(self.strand.lanes, -1))
        self.pointer.memory.write(self.strand, self.mask, self._at(index), place)

    def _at(self, index: Value) -> Value:
        return self.pointer.offset + np.asarray(index).astype(np.int64) * self.dtype.itemsize


def injected(scope: Scope, node: Any) -> Code:
    """A call of CUDA source that the kernel carries with it."""
    name = str(node.args[0].value)
    meaning = scope.meanings.get(name)
    if meaning is None:
        raise UnsupportedError(
            f"{scope.kernel}: the injected function {name} has no meaning here; "
            f"give one: run(…, functions={{{name!r}: a function of NumPy arrays}})"
        )
    nodes = list(node.args[1:-1])
    parts = [scope.expression(part).run for part in nodes]
    dtypes = [_pointed(part.ty) for part in nodes]
    for kind in dtypes:
        if kind is not None:
            scope.access(kind.itemsize)  # it may point to shared memory
    result_type = str(node.ty.dtype)
    dtype = np_dtype(result_type) if result_type not in ("", "void") else None

    def run(s: Strand, m: Mask) -> Value:
        s.tally(name, m)
        values = [
            s.full(part(s, m)) if kind is None else Window(s, m, part(s, m), kind)
            for part, kind in zip(parts, dtypes, strict=True)
        ]
        result = meaning(*values)
        return None if dtype is None else s.full(result, dtype)

    return Code(run, Kind.VARYING)


def _pointed(ty: Any) -> np.dtype[Any] | None:
    if isinstance(ty, tvm.ir.PointerType):
        element = ty.element_type
        return (
            np_dtype(str(element.dtype))
            if isinstance(element, tvm.ir.PrimType)
            else np.dtype(np.uint8)
        )
    return None


def external(scope: Scope, node: Any) -> Code:
    """A call of a function that CUDA brings."""
    name = str(node.args[0].value)
    meaning = _CUDA.get(name, scope.meanings.get(name))
    if meaning is None:
        raise scope.refuse(f"the function {name}")
    dtype = np_dtype(str(node.ty.dtype))

    def run(*values: Value) -> Value:
        return np.asarray(meaning(*values)).astype(dtype)[()]

    return build(scope, run, *(scope.expression(part) for part in node.args[1:]))


def popcount(value: Value) -> Value:
    """Set bits; NumPy's own counts those of the magnitude."""
    return np.bitwise_count(value.astype(f"u{value.dtype.itemsize}"))


def leading_zeros(value: Value) -> Value:
    """Zero bits above the highest set one, of 32 or 64."""
    bits = value.dtype.itemsize * 8
    unsigned = value.astype(f"u{value.dtype.itemsize}")
    for shift in (1, 2, 4, 8, 16, 32)[: bits.bit_length() - 1]:
        unsigned = unsigned | unsigned >> np.asarray(shift).astype(unsigned.dtype)
    return bits - np.bitwise_count(unsigned)


def high_product(a: Value, b: Value) -> Value:
    """The upper 32 bits of a product of 32-bit integers."""
    wide = np.int64 if a.dtype.kind == "i" else np.uint64
    return (a.astype(wide) * b.astype(wide) >> np.asarray(32).astype(wide)).astype(a.dtype)


def dot4(a: Value, b: Value, c: Value, signed: tuple[bool, bool] = (True, True)) -> Value:
    """``dp4a``: four products of bytes, added to c (PTX ISA, "dp4a")."""
    total = c.astype(np.int64)
    for i in range(4):
        one, two = (
            ((v.view(np.uint32) if np.ndim(v) else v.astype(np.uint32)) >> np.uint32(8 * i))
            .astype(np.int8 if s else np.uint8)
            .astype(np.int64)
            for v, s in ((a, signed[0]), (b, signed[1]))
        )
        total = total + one * two
    return total.astype(c.dtype)


_CUDA: dict[str, Callable[..., Value]] = {
    "__popc": popcount,
    "__popcll": popcount,
    "__clz": leading_zeros,
    "__clzll": leading_zeros,
    "__mulhi": high_product,
    "__umulhi": high_product,
    "__dp4a": dot4,
    "fmaf": fma,
    "__fmaf_rn": fma,
    "hfma": fma,
    "__hfma": fma,
    "abs": np.abs,
    "fabsf": np.abs,
    "__habs": np.abs,
    "floorf": np.floor,
    "hfloor": np.floor,
    "ceilf": np.ceil,
    "hceil": np.ceil,
    "truncf": np.trunc,
    "htrunc": np.trunc,
    "roundf": lambda a: np.copysign(np.floor(np.abs(a) + np.float32(0.5)), a),
    "rintf": np.rint,
    "nearbyintf": np.rint,
    "hrint": np.rint,
    "sqrtf": np.sqrt,
    "hsqrt": np.sqrt,
    "hexp": np.exp,
    "hexp2": np.exp2,
    "hlog": np.log,
    "htanh": np.tanh,
    "hrsqrt": lambda a: (1 / np.sqrt(a.astype(np.float32))).astype(a.dtype),
    "erff": np.vectorize(math.erf, otypes=[np.float32]),
    "rsqrtf": lambda a: 1 / np.sqrt(a),
    "expf": np.exp,
    "exp2f": np.exp2,
    "logf": np.log,
    "log2f": np.log2,
    "tanhf": np.tanh,
    "sinf": np.sin,
    "cosf": np.cos,
    "powf": np.power,
    "fminf": np.fmin,
    "fmaxf": np.fmax,
}
"""CUDA C++ Programming Guide, "Mathematical Functions"; transcendental ones round as NumPy's."""
