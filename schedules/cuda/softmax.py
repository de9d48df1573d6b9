"""``cuda.rows`` softmax in integers: `nybble.ir.rows.softmax` and ``masked_softmax``.

pass 1    the largest value
pass 2    2^-t of every value, and their sum
          the sum's reciprocal, once a row
pass 3    the product of both

Rows are cut as `nybble.schedules.cuda.rowwise` says; the arithmetic is that of the CPU's kernel.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from nybble.ir import numerics, rows
from nybble.schedules.cpu import softmax
from nybble.schedules.cpu.buffers import Buffers, declare
from nybble.schedules.cpu.elementwise import i64
from nybble.schedules.cpu.rowwise import Lanes
from nybble.schedules.cuda.arch import KIND
from nybble.schedules.cuda.rowwise import NAME, Place, Team, Values, counter, plan_of
from nybble.schedules.kernel import Kernel, Knobs, Problem, TensorSpec

ONE = Lanes(1)
WIDE = 1 << 31 - rows.POWER_BITS  # values of a row whose powers' sum may leave 32 bits


def _supports(problem: Problem, _target: Any) -> str | None:
    length = problem.output.shape[-1]
    is_short = isinstance(length, int) and length <= rows.LONGEST_ROW
    return None if is_short else f"rows of {length} values"


def _build(problem: Problem, target: Any, knobs: Knobs) -> tirx.PrimFunc:
    symbols: dict[str, Any] = {}
    with IRBuilder() as builder, T.prim_func():
        T.func_attr({"tirx.noalias": True})
        specs = (TensorSpec((5,), "int32"), *softmax.masks(problem))
        buffers = declare(problem, specs, symbols)
        team = Team(plan_of(problem, target, knobs), target, problem.output.shape, symbols)
        _Row(problem, team, buffers).emit()
    return builder.get()


class _Row:
    """The code of one row."""

    def __init__(self, problem: Problem, team: Team, buffers: Buffers):
        self.team, self.buffers, self.plan = team, buffers, team.plan
        self.bits = numerics.width(problem.output.dtype)[1]
        self.factor = [T.Bind(buffers.constants[0][i]) for i in range(5)]
        self.x = Values(self.plan, buffers.x, problem.inputs[0].dtype, self.plan.held)
        self.mask = None
        if problem.op == "masked_softmax":
            self.mask = Values(self.plan, buffers.constants[1], "uint8", self.plan.held)
            row = tirx.truncmod(team.row, problem.attr("rows"))
            self.begin = T.Bind(row * self.plan.length)

    def emit(self) -> None:
        """Emits all of it."""
        team, held = self.team, self.plan.is_held
        largest, total = counter("int32", -softmax.SIGN), counter("int32", 0)
        powers = T.alloc_buffer(
            (self.plan.held * self.plan.lanes,), "int32", scope="local", layout=None
        )

        def compared(place: Place) -> None:
            self._load(place)
            for lane in range(self.plan.lanes):
                value = self._shown(place, lane, self.x.value(place.chunk, lane), -softmax.SIGN)
                T.buffer_store(largest, tirx.max(largest[0], value), [0])

        team.walk(compared)
        most = team.joined(largest, "max")

        def raised(place: Place) -> None:
            if not held:
                self._load(place)
            for lane in range(self.plan.lanes):
                T.buffer_store(powers, self._power(place, lane, most), [self._at(place, lane)])

        def added(place: Place) -> None:
            raised(place)
            for lane in range(self.plan.lanes):
                T.buffer_store(total, total[0] + powers[self._at(place, lane)], [0])

        team.walk(added)
        shares = self._shares(total)

        def shared(place: Place) -> None:
            if not held:
                raised(place)
            values = [
                self._share(powers[self._at(place, n)], shares) for n in range(self.plan.lanes)
            ]
            team.store(place, self.buffers.output, values)

        team.walk(shared)

    def _at(self, place: Place, lane: int) -> Any:
        return place.chunk * self.plan.lanes + lane

    def _load(self, place: Place) -> None:
        self.x.load(place.chunk, self.team.first + place.first)
        if self.mask is not None:
            self.mask.load(place.chunk, self.begin + place.first)

    def _shown(self, place: Place, lane: int, value: Any, number: int) -> Any:
        """The value where the mask shows it, else the number."""
        if self.mask is None:
            return value
        seen = self.mask.value(place.chunk, lane) != 0
        # Bound, since C takes the number -2^31 for a longer one.
        return T.Bind(T.Select(seen, value, tirx.const(number, "int32")))

    def _power(self, place: Place, lane: int, most: Any) -> Any:
        """2^-t of a value, 0 where there is none."""
        value = self._shown(place, lane, self.x.value(place.chunk, lane), -softmax.SIGN)
        below = softmax.below_of(most, value, self.factor[0], ONE)
        octaves = ONE.rescaled(below, self.factor[1], self.factor[2:])
        most_octaves = ONE.all(rows.MOST_OCTAVES << rows.OCTAVE_BITS)
        power = softmax.power_of(T.Bind(tirx.min(octaves, most_octaves)), ONE)
        power = self._shown(place, lane, power, 0)
        return power if place.inside is None else T.Select(place.inside, power, ONE.all(0))

    def _shares(self, total: Any) -> tuple[Any, int, int]:
        """Multiplier, rounding and right shift that make a power a share."""
        if self.plan.length >= WIDE:
            wide = T.alloc_buffer((1,), "int64", scope="local", layout=None)
            T.buffer_store(wide, T.Cast("int64", total[0]), [0])
            total = wide
        found = T.Cast("int64", self.team.joined(total, "sum"))
        numerator = i64(1 << (rows.POWER_BITS + rows.RECIPROCAL_BITS))
        reciprocal = tirx.truncdiv(numerator, tirx.max(found, i64(1)))
        right = rows.POWER_BITS + rows.RECIPROCAL_BITS - self.bits - 32
        return T.Bind(T.Cast("int32", reciprocal)), 1 << (right - 1), right

    def _share(self, power: Any, shares: tuple[Any, int, int]) -> Any:
        value = ONE.rescaled(power, None, shares)
        kept = tirx.min(value, ONE.all((1 << self.bits) - 1))
        return T.Cast(str(self.buffers.output.dtype), kept)


KERNELS = tuple(
    Kernel(NAME, op, _supports, softmax.pack, _build, arch=KIND, plan=plan_of)
    for op in ("softmax", "masked_softmax")
)
