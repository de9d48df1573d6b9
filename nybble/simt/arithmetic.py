"""Arithmetic between two operands, where C is told apart from TensorIR.

Undefined in C, and so an error: division by zero, shifts by the width or more. And C computes what
TensorIR calls int8 or int16 in 32 bits: where such a sum is used without having been stored, it may
not have wrapped around. (Integers of 32 bits wrap around, as NVIDIA's compiler lets them.)
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm

from nybble.simt.codes import Code, Kind, Run, Scope, build, np_dtype, once
from nybble.simt.errors import SimtError
from nybble.simt.strand import Strand
from nybble.simt.values import BINARY, Mask, Value

_DIVISIONS = frozenset({"Div", "Mod", "FloorDiv", "FloorMod"})
_SHIFTS = frozenset({"LShift", "RShift"})
_GROWING = frozenset({"Add", "Sub", "Mul", "LShift"})  # the same in any width, if wrapped at last
_TELLING = frozenset({"EQ", "NE", "LT", "LE", "GT", "GE", "Min", "Max", "RShift", *_DIVISIONS})


def binary(scope: Scope, node: Any) -> Code:
    """Code for a node of two operands."""
    name = type(node).__name__
    parts = (node.a, node.b)
    a, b = (
        unwrapped(scope, part) if name in _TELLING else scope.expression(part) for part in parts
    )
    if name in _SHIFTS or (name in _DIVISIONS and _kind(node.b) != "f"):
        return _guarded(scope, name, a, b)
    return build(scope, BINARY[name], a, b)


def _kind(node: Any) -> str:
    return np_dtype(str(node.ty.dtype)).kind


def _guarded(scope: Scope, name: str, a: Code, b: Code) -> Code:
    """A shift or a division, whose second operand has to be right."""
    operation = BINARY[name]

    def fault(value: Value) -> Value:
        if name in _DIVISIONS:
            return value == 0
        return (value < 0) | (value >= 8 * value.dtype.itemsize)

    what = "division by zero" if name in _DIVISIONS else "shift by the width or more"
    if b.kind == Kind.CONSTANT:
        if np.any(fault(b.value)):
            raise SimtError(f"{scope.kernel}: {what}")
        return build(scope, operation, a, b)
    first, second = once(scope, a).run, once(scope, b).run

    def run(s: Strand, m: Mask) -> Value:
        value = second(s, m)
        _refuse(s, m, fault(value), what)
        return operation(first(s, m), value)

    return Code(run, Kind.VARYING)


def _refuse(s: Strand, m: Mask, bad: Value, what: str) -> None:
    if np.any(bad):
        rows = s.full(bad).reshape(s.lanes, -1).any(axis=1)
        wrong = np.flatnonzero(rows if m is None else rows & m)
        if wrong.size:
            s.fail(SimtError, what, int(wrong[0]))


def unwrapped(scope: Scope, node: Any) -> Code:
    """Code for an operand whose value C may hold in more bits than TensorIR says."""
    code = scope.expression(node)
    narrow = isinstance(node.ty, tvm.ir.PrimType) and str(node.ty.dtype) in _NARROW
    if not narrow or type(node).__name__ not in _GROWING or code.kind == Kind.CONSTANT:
        return code
    wide, text, inner = _in_c(scope, node), str(node), code.run

    def run(s: Strand, m: Mask) -> Value:
        value = inner(s, m)
        _refuse(s, m, wide(s, m) != value, f"{text} leaves {value.dtype}: C computes it in 32 bits")
        return value

    return Code(run, Kind.VARYING)


_NARROW = frozenset({"int8", "uint8", "int16", "uint16"})


def _in_c(scope: Scope, node: Any) -> Run:
    """The same arithmetic in 32 bits."""
    name = type(node).__name__
    if name not in _GROWING:
        inner = scope.expression(node).run
        return lambda s, m: inner(s, m).astype(np.int32)
    a, b = _in_c(scope, node.a), _in_c(scope, node.b)
    operation = BINARY[name]
    return lambda s, m: operation(a(s, m), b(s, m))
