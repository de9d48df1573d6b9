"""Code: a piece of TensorIR as a Python function, and what is known when it is made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
import tvm

from nybble.simt.errors import UnsupportedError
from nybble.simt.strand import Strand
from nybble.simt.values import Mask, Value

Run = Callable[[Strand, Mask], Value]


class Kind(IntEnum):
    """How long a value stays what it is."""

    CONSTANT = 0
    LAUNCH = 1  # coordinates, parameters, and arithmetic on them
    VARYING = 2


@dataclass(frozen=True)
class Code:
    """An expression: call ``run`` for its value in the active lanes."""

    run: Run
    kind: Kind
    value: Value = None  # of a constant
    waits: bool = False  # `run` is a generator that yields while it cannot go on


@dataclass
class Buffer:
    """What accesses to a TensorIR buffer need."""

    name: str
    dtype: np.dtype[Any]
    slot: int  # of the variable that holds the `Pointer`
    scope: str


@dataclass
class Scope:
    """What is known about variables while a function is turned into code.

    Attributes:
        kernel: the function's name, for errors.
        translate: turns an expression into code.
        meanings: of injected functions, by name.
        slots: by identity of a TensorIR variable, its place in `Strand.env`.
        kinds: by the same, how long its value stays.
        read: places of variables that an expression reads.
        made: by identity of an expression, it and its code.
        cached: by identity of code that depends on coordinates alone, it and code that keeps it.
        shared_bytes: static shared memory so far.
        grain: divides the width of every access to shared memory.
        split: warps of a strand, or None where all threads of a block run in lockstep.
        wanted: what ``split`` has to be, as warps wait for one another; 0 if they do not.
        without: a call that is left out: TVM's name, which one of that name.
        calls: how many calls there are, by name.
        launcher: on the host, runs a kernel: its name, arguments, extents.
        workspaces: on the host, device memory that it has allocated.
    """

    kernel: str
    translate: Callable[[Scope, Any], Code]
    meanings: Mapping[str, Callable[..., Value]]
    slots: dict[int, int] = field(default_factory=dict)
    kinds: dict[int, Kind] = field(default_factory=dict)
    read: set[int] = field(default_factory=set)
    made: dict[int, tuple[Any, Code]] = field(default_factory=dict)
    cached: dict[int, tuple[Code, Code]] = field(default_factory=dict)
    used: int = 0
    shared_bytes: int = 0
    grain: int = 16
    split: int | None = None
    wanted: int = 0
    launcher: Callable[[str, Any, Any], None] | None = None
    workspaces: list[Any] = field(default_factory=list)
    without: tuple[str, int] | None = None
    calls: Counter[str] = field(default_factory=Counter)
    keep: list[Any] = field(default_factory=list)  # alive, so that identities stay

    def expression(self, node: Any) -> Code:
        """Code for a TensorIR expression."""
        return self.translate(self, node)

    def leaves_out(self, name: str) -> bool:
        """Whether the next call of this name is the one to be left out."""
        self.calls[name] += 1
        return self.without == (name, self.calls[name] - 1)

    def new_slot(self) -> int:
        """A place in `Strand.env` and in `Strand.cache`."""
        self.used += 1
        return self.used - 1

    def slot(self, var: tvm.ir.Var) -> int:
        """The place of a variable."""
        key = var.__chandle__()
        if key not in self.slots:
            self.keep.append(var)
            self.slots[key] = self.new_slot()
        return self.slots[key]

    def define(self, var: tvm.ir.Var, kind: Kind) -> int:
        """Notes how long the variable's value stays; returns its place."""
        slot = self.slot(var)
        self.kinds[var.__chandle__()] = kind
        return slot

    def kind(self, var: tvm.ir.Var) -> Kind:
        """How long the variable's value stays."""
        return self.kinds.get(var.__chandle__(), Kind.VARYING)

    def waiting(self, code: Code, warps: int = 1) -> Code:
        """Notes that warps wait for one another, so that ``warps`` of them make a strand."""
        self.wanted = max(self.wanted, warps)
        return code

    def access(self, width: int) -> None:
        """Notes an access to shared memory of ``width`` bytes: grains divide all of them."""
        self.grain = int(np.gcd(self.grain, width))

    def buffer(self, var: tvm.ir.Var) -> Buffer:
        """A buffer's dtype, place and scope."""
        dtype = str(var.ty.dtype.dtype)
        if tvm.DataType(dtype).bits % 8:
            raise UnsupportedError(
                f"{self.kernel}: buffer {var.name} of {dtype}; packed data belongs in whole bytes"
            )
        space = str(var.ty.storage_scope)
        name = var.name or f"a nameless buffer ({space})"
        return Buffer(name, np_dtype(dtype), self.slot(var), space)

    def refuse(self, what: str) -> UnsupportedError:
        """The error for something without a meaning."""
        return UnsupportedError(f"{self.kernel}: {what} is not modelled by nybble.simt")


def np_dtype(name: str) -> np.dtype[Any]:
    """The dtype of one element of a TensorIR type; ``bool`` and vectors included."""
    data = tvm.DataType(name)
    text = str(data).split("x")[0] if data.lanes > 1 else str(data)
    return np.dtype(text)


def constant(value: Value) -> Code:
    """Code for a value known now."""
    return Code(lambda s, m: value, Kind.CONSTANT, value)


def build(scope: Scope, run: Callable[..., Value], *parts: Code) -> Code:
    """Code for a pure function of ``parts``.

    What is constant is computed now, what depends on coordinates alone once a strand.
    """
    kind = max((part.kind for part in parts), default=Kind.CONSTANT)
    if kind == Kind.CONSTANT:
        return constant(run(*(part.value for part in parts)))
    if kind == Kind.VARYING:
        parts = tuple(once(scope, part) for part in parts)
    if len(parts) == 1:
        one = parts[0].run
        return Code(lambda s, m: run(one(s, m)), kind)
    if len(parts) == 2:
        a, b = parts[0].run, parts[1].run
        return Code(lambda s, m: run(a(s, m), b(s, m)), kind)
    runs = [part.run for part in parts]
    return Code(lambda s, m: run(*[one(s, m) for one in runs]), kind)


def once(scope: Scope, part: Code) -> Code:
    """Code for a value that a strand computes a single time, if it depends on coordinates alone."""
    if part.kind != Kind.LAUNCH:
        return part
    if id(part) in scope.cached:
        return scope.cached[id(part)][1]
    slot, inner = scope.new_slot(), part.run

    def run(s: Strand, m: Mask) -> Value:
        found = s.cache[slot]
        if found is None:
            found = s.cache[slot] = inner(s, None)
        return found

    kept = Code(run, Kind.LAUNCH)
    scope.cached[id(part)] = (part, kept)
    scope.cached[id(kept)] = (kept, kept)
    return kept


def within(mask: Mask, condition: Value) -> tuple[Mask, bool]:
    """The lanes of ``mask`` for which a condition holds, and whether there are any."""
    if np.ndim(condition) == 0:
        return mask, bool(condition)
    rows = condition.reshape(len(condition), -1)
    if (rows != rows[:, :1]).any():
        raise UnsupportedError("a condition that differs between the elements of one vector")
    rows = rows[:, 0]
    if len(rows) == 1:
        return mask, bool(rows[0])
    both = rows if mask is None else mask & rows
    return (mask, True) if mask is None and both.all() else (both, bool(both.any()))


def choose(condition: Code, yes: Code, no: Code) -> Code:
    """``condition ? yes : no``; each side is evaluated in its own lanes alone, as in C."""

    def run(s: Strand, m: Mask) -> Value:
        test = condition.run(s, m)
        if np.ndim(test) == 0:
            return yes.run(s, m) if test else no.run(s, m)
        there, some = within(m, test)
        if not some:
            return no.run(s, m)
        others, rest = within(m, ~test)
        if not rest:
            return yes.run(s, there)
        taken, left = yes.run(s, there), no.run(s, others)
        is_vector = max(np.ndim(taken), np.ndim(left)) > np.ndim(test)
        return np.where(test[:, None] if is_vector else test, taken, left)

    return Code(run, Kind.VARYING)


def columns(value: Value) -> Value:
    """A row for every lane, or one for all: ``(lanes, 1)`` or ``(1, 1)``."""
    return np.reshape(value, (-1, 1))
