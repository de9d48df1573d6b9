"""``cuda.rows`` layer norm and RMS norm in integers: `nybble.ir.rows.layer_norm`, ``rms_norm``.

pass 1    Σx and Σx²; of bytes by ``dp4a``, four values in an instruction each
          1 / sqrt of K·Σx² - (Σx)² + epsilon, once a row
pass 2    K·x - Σx times that, times γ, plus β

Rows are cut as `nybble.schedules.cuda.rowwise` says. A zero point z leaves the sums of RMS norm at
the end: Σ(x - z)² = Σx² - 2z·Σx + K·z².
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script import tirx as script
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from nybble.ir import numerics, rows
from nybble.schedules.cpu import norms
from nybble.schedules.cpu.buffers import Buffers, declare
from nybble.schedules.cpu.elementwise import clamp, i64, settled
from nybble.schedules.cpu.rowwise import Lanes
from nybble.schedules.cuda.arch import KIND
from nybble.schedules.cuda.rowwise import NAME, Place, Team, Values, counter, plan_of
from nybble.schedules.kernel import Kernel, Knobs, Problem, TensorSpec

ONE = Lanes(1)
ONES = 0x01010101


def _supports(problem: Problem, _target: Any) -> str | None:
    is_static = isinstance(problem.output.shape[-1], int)
    return None if is_static else "the number of channels is symbolic"


def _build(problem: Problem, target: Any, knobs: Knobs) -> tirx.PrimFunc:
    symbols: dict[str, Any] = {}
    plan = plan_of(problem, target, knobs)
    with IRBuilder() as builder, T.prim_func():
        T.func_attr({"tirx.noalias": True})
        constants = TensorSpec((2, plan.length), "int32"), TensorSpec((1,), "int64")
        buffers = declare(problem, constants, symbols)
        team = Team(plan, target, problem.output.shape, symbols)
        _Row(problem, team, buffers).emit()
    return builder.get()


class _Row:
    """The code of one row."""

    def __init__(self, problem: Problem, team: Team, buffers: Buffers):
        self.problem, self.team, self.buffers, self.plan = problem, team, buffers, team.plan
        self.attrs = dict(problem.attrs)
        self.dtype = problem.inputs[0].dtype
        self.x = Values(self.plan, buffers.x, self.dtype, self.plan.held)
        affine = buffers.constants[0]
        size = 2 * self.plan.length
        flat = T.decl_buffer((size,), "int32", data=affine.data, layout=None)
        self.affine = [Values(self.plan, flat, "int32", 1) for _ in ("multiplier", "offset")]

    def emit(self) -> None:
        """Emits all of it."""
        total, squares = self._sums()
        k, is_centred = self.plan.length, self.problem.op == "layer_norm"
        zero = 0 if is_centred else int(self.attrs["zero_point_in"])
        if zero:
            squares = squares - i64(2 * zero) * total + i64(k * zero * zero)
        mean = total if is_centred else i64(0)
        epsilon = self.buffers.constants[1][0]
        root, right = reciprocal_root(T.Bind(i64(k) * squares - mean * mean + epsilon))
        centre = T.Bind(T.Cast("int32", mean + i64(k * zero)))
        left, right = T.Bind(tirx.max(32 - right, 0)), T.Bind(tirx.max(right - 32, 0))

        def normalised(place: Place) -> None:
            if not self.plan.is_held:
                self.x.load(place.chunk, self.team.first + place.first)
            for row, values in enumerate(self.affine):
                values.load(0, place.first + row * k)
            found = []
            for lane in range(self.plan.lanes):
                centred = self.x.value(place.chunk, lane) * k - centre
                unit = ONE.rescaled(centred, left, (root, 0, right))
                gamma, beta = (values.value(0, lane) for values in self.affine)
                found.append(
                    self._result(ONE.rescaled(unit, None, (gamma, beta, self.attrs["shift"])))
                )
            self.team.store(place, self.buffers.output, found)

        self.team.walk(normalised)

    def _result(self, value: Any) -> Any:
        attrs, dtype = self.attrs, self.problem.output.dtype
        return settled(value + int(attrs["zero_point"]), attrs["lo"], attrs["hi"], dtype)

    def _sums(self) -> tuple[Any, Any]:
        """Σx and Σx² of a row, in 64 bits."""
        reach = max(abs(limit) for limit in numerics.limits(self.dtype))
        is_wide = self.plan.length * reach * reach >= 1 << 31
        if self.x.size == 1 and self.x.in_words and not is_wide:
            kind, add = "int" if numerics.width(self.dtype)[0] else "uint", self._add_words
            cells = counter(f"{kind}32", 0), counter(f"{kind}32", 0)
        else:
            add, cells = (
                self._add,
                (counter("int32", 0), counter("int64" if is_wide else "int32", 0)),
            )

        def summed(place: Place) -> None:
            self.x.load(place.chunk, self.team.first + place.first)
            add(place, cells)

        self.team.walk(summed)
        total, squares = (T.Cast("int64", self.team.joined(cell, "sum")) for cell in cells)
        return T.Bind(total), T.Bind(squares)

    def _add(self, place: Place, cells: tuple[Any, Any]) -> None:
        wide = str(cells[1].dtype)
        for lane in range(self.plan.lanes):
            x = self.x.value(place.chunk, lane)
            if place.inside is not None:
                x = T.Select(place.inside, x, ONE.all(0))
            x = T.Bind(x)
            T.buffer_store(cells[0], cells[0][0] + x, [0])
            square = T.Cast(wide, x) * T.Cast(wide, x)
            T.buffer_store(cells[1], cells[1][0] + square, [0])

    def _add_words(self, place: Place, cells: tuple[Any, Any]) -> None:
        dtype = str(cells[0].dtype)
        kind = {"int32": "s32", "uint32": "u32"}[dtype]
        dot = script.ptx[f"dp4a.{kind}.{kind}"]
        for given in self.x.words(place.chunk):
            is_there = place.inside is not None
            kept = T.Select(place.inside, given, T.uint32(0)) if is_there else given
            word = T.Bind(T.reinterpret(dtype, kept))
            T.evaluate(dot(cells[0][0], word, tirx.const(ONES, dtype), cells[0][0]))
            T.evaluate(dot(cells[1][0], word, word, cells[1][0]))


def reciprocal_root(square: Any) -> tuple[Any, Any]:
    """`nybble.ir.rows.reciprocal_root` of one int64 value, as int32.

    Every factor fits 32 bits without a sign, so that a product is one instruction.
    """
    cells = T.alloc_buffer((2,), "uint32", scope="local", layout=None)
    wide = T.Bind(tirx.max(square, i64(1)))
    zeros = T.call_pure_extern("int32", "__clzll", wide)
    left = T.Bind((zeros - 2) & -2)
    v, y = cells[0], cells[1]
    T.buffer_store(cells, T.Cast("uint32", (wide << T.Cast("int64", left)) >> i64(30)), [0])
    start = T.uint32(rows.ROOT_START) - T.Cast("uint32", _product(v, T.uint32(85)) >> T.uint64(8))
    T.buffer_store(cells, start, [1])
    with T.unroll(rows.NEWTON_STEPS):
        square = T.Cast("uint32", _product(y, y) >> T.uint64(32))
        error = T.Bind(T.Cast("uint32", _product(v, square) >> T.uint64(30)))
        step = _product(y, T.uint32(3 << 30) - error) >> T.uint64(31)
        T.buffer_store(cells, T.Cast("uint32", step), [1])
    root = clamp(y, 1 << 30, (1 << 31) - 1).astype("int32")
    return T.Bind(root), T.Bind(45 - (left >> 1))


def _product(a: Any, b: Any) -> Any:
    return T.Cast("uint64", a) * T.Cast("uint64", b)


KERNELS = tuple(
    Kernel(NAME, op, _supports, norms.pack, _build, arch=KIND, plan=plan_of)
    for op in ("layer_norm", "rms_norm")
)
