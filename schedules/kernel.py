"""What a kernel family is: a `Kernel` record that answers for `Problem`s on a `CpuTarget`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from nybble.errors import ScheduleError
from nybble.ir import numerics

T = TypeVar("T")
FEW_ENTRIES = 16  # of a table that fits a vector; it is repeated to fill the widest
Extent = int | str  # a string names a symbolic extent (the batch)


Form = Literal["values", "packed", "planes"]
"""How the elements of an activation narrower than a byte lie in memory, along the last axis:

    values   one a byte
    packed   `nybble.ir.numerics.pack`: ceil(C·bits / 8) bytes, lowest bits first
    planes   for each bit, lowest first, ceil(C / 8) bytes with that bit of eight elements: what
             `pack(…, "uint1")` makes of the bit; signed values as in two's complement, an
             ``int1`` by its sign (-1 is the bit 1)
"""


@dataclass(frozen=True)
class TensorSpec:
    """Shape and dtype of one tensor; the dtype carries the width, ``form`` the storage."""

    shape: tuple[Extent, ...]
    dtype: str
    form: Form = "values"

    @property
    def stored(self) -> TensorSpec:
        """The tensor as memory holds it: shape in elements of the storage dtype."""
        if self.dtype.startswith(("float", "bool")):
            return self
        bits = numerics.width(self.dtype)[1]
        if self.form == "values":
            return TensorSpec(self.shape, str(numerics.storage(self.dtype)))
        channels = int(self.shape[-1])
        line = -(-channels * bits // 8) if self.form == "packed" else bits * -(-channels // 8)
        return TensorSpec((*self.shape[:-1], line), "uint8")


@dataclass(frozen=True)
class Epilogue:
    """What happens to the accumulators before they are stored.

    Attributes:
        kind: ``none`` stores int32 accumulators (bias included); ``requantize`` and ``add`` are
            `nybble.ir.numerics.requantize` and ``add`` with the accumulator as operand ``a``;
            ``float`` clamps float32 accumulators to lo..hi, after adding ``other`` if there is one;
            ``rescale_rows`` is `nybble.ir.weight_only.rescale_rows` with the tops in ``other``.
        lo: lower bound of the clamp (an integer, or a float for ``float``; -inf for none).
        hi: upper bound of the clamp.
        other: the second branch of a residual add, same shape as the output; of rows' tops, one a
            row.
        zero_point: of the output.
        zero_point_other: of ``other``.
        rounding: the requantization convention.
        small_ratios: every ratio of the accumulators' requantization is below 1/4, which a kernel
            may use (and must check when it packs); never needed for being right.
        singles: `nybble.schedules.cpu.singles` has proven that float32 rescales exactly; the same.
        table: the dtype that ``requantize`` or ``add`` gives where a `nybble.ir.numerics.table` of
            it follows; zero point and clamp are of this dtype then. None without a table.
    """

    kind: Literal["none", "requantize", "add", "float", "rescale_rows"] = "none"
    lo: float = 0
    hi: float = 0
    other: TensorSpec | None = None
    zero_point: int = 0
    zero_point_other: int = 0
    rounding: str = "half_up"
    small_ratios: bool = False
    singles: bool = False
    table: str | None = None


@dataclass(frozen=True)
class Problem:
    """One layer to compile: everything that its code depends on, nothing that is mere data.

    Attributes:
        op: the anchor: ``conv2d``, ``linear``, ``requantize``, ``add``, ``max_pool2d``,
            ``sum_pool2d``, ``quantize``, ``dequantize``; float32 inputs mean the float op.
        inputs: the activations, in operand order, without ``epilogue.other``.
        output: what is stored (after the epilogue).
        attrs: the anchor's attributes, sorted by name.
        weights: spec of the unpacked weights (OHWI or (O, K)), None without weights.
        epilogue: what is fused behind the anchor.
        flush: steps of four products that are added up in 16 bits, proven from the weights by
            `nybble.schedules.cpu.headroom`; 0 if that does not pay. Never needed for being right.
        safe: every such window fits as it is, so that there are no further steps, which a kernel
            may use (and must check when it packs).
        tile_flush: the same for what `nybble.schedules.cpu.winograd` makes of 3x3 windows, proven
            by `nybble.schedules.cpu.winograd_range`; 0 if they do not fit.
    """

    op: str
    inputs: tuple[TensorSpec, ...]
    output: TensorSpec
    attrs: tuple[tuple[str, Any], ...] = ()
    weights: TensorSpec | None = None
    epilogue: Epilogue = Epilogue()
    flush: int = 0
    safe: bool = False
    tile_flush: int = 0

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """The activations: inputs, second branch of the epilogue if any, output."""
        other = self.epilogue.other
        return (*self.inputs, *((other,) if other else ()), self.output)

    def attr(self, name: str) -> Any:
        """One attribute of the anchor."""
        return dict(self.attrs)[name]

    @property
    def rescaled(self) -> str:
        """The dtype that the epilogue clamps to: the output's, or that of the table's index."""
        return self.epilogue.table or self.output.dtype

    @property
    def entries(self) -> TensorSpec | None:
        """The table behind the epilogue, None without one; a short one fills the widest vector."""
        if self.epilogue.table is None:
            return None
        low, high = numerics.limits(self.epilogue.table)
        dtype = str(numerics.storage(self.output.dtype))
        return TensorSpec((64 if high - low < FEW_ENTRIES else 256,), dtype)

    @property
    def macs(self) -> int:
        """Multiply-adds for one image (symbolic extents count as 1)."""
        if self.weights is None:
            return 0
        extents = [*self.output.shape, *self.weights.shape[1:]]
        return prod(d for d in extents if isinstance(d, int))


Constants = Mapping[str, NDArray[Any]]
"""A layer's unpacked constants by operand name: w, bias, multiplier, shift, multiplier_b, …"""


@dataclass
class Knobs:
    """The choices of a schedule: defaults when untuned, a stored or sampled decision otherwise.

    Attributes:
        decisions: choices already made, by knob name.
        space: filled by `pick`: every knob asked for and what it may be.
    """

    decisions: dict[str, Any] = field(default_factory=dict)
    space: dict[str, tuple[Any, ...]] = field(default_factory=dict)

    def pick(self, name: str, choices: Sequence[T], default: T) -> T:
        """The decision for knob ``name``, one of ``choices``.

        Raises:
            ScheduleError: a stored decision is none of the choices.
        """
        self.space[name] = tuple(choices)
        value: T = self.decisions.get(name, default)
        if value not in choices:
            raise ScheduleError(f"knob {name}={value!r} is none of {list(choices)}")
        return value


PARALLEL = "parallel"
"""A knob of many kernels: whether several threads share the work."""


def usual(threads: int | None) -> Knobs:
    """The choices of a compilation without records.

    Args:
        threads: that the code will run with, None if that is not known. Cutting the work into
            tasks costs several percent, so code for one thread is not cut.
    """
    return Knobs({PARALLEL: False} if threads == 1 else {})


def never_slow(_problem: Problem) -> str | None:
    """Of a kernel whose place in the table says enough."""
    return None


def no_knobs(_problem: Problem, _target: Any, _knobs: Knobs) -> None:
    """The plan of a kernel that has no choices."""


@dataclass(frozen=True)
class Kernel:
    """One kernel family on one kind of target.

    Attributes:
        name: ``cpu.int8.avx2``; what the user reads and may force.
        op: the anchor op that it implements.
        supports: None when it can compile the problem on the target, else the reason in words.
        pack: the layer's constants in the kernel's own layout, in the order of its parameters,
            without the epilogue's table.
        build: the fused TensorIR function: parameters are the activations (inputs, then
            ``epilogue.other``), the packed constants, `Problem.entries` if any, and the output.
        slow: why it is slower than others for a problem that it can compile, as far as is known;
            None where it is not. Such a kernel is taken only where a record shows the contrary.
        plan: the decisions that ``build`` follows: asks the knobs, in milliseconds, and emits
            nothing; None where there is nothing to decide. The result is for people and for cost
            models to read.
        forms: the storage forms of activations that it can read or write; ``supports`` is asked
            about no others.
        arch: of the machines that it is for, None for any; others do not hear of its refusals.
        decodes: it decodes weights below 8 bits in every call, for more time than their bytes
            save: where speed is asked for and nothing measured, it gets them in whole bytes.
    """

    name: str
    op: str
    supports: Callable[[Problem, Any], str | None]
    pack: Callable[[Problem, Constants], list[NDArray[Any]]]
    build: Callable[[Problem, Any, Knobs], Any]
    forms: frozenset[Form] = frozenset({"values"})
    arch: str | None = None
    decodes: bool = False
    plan: Callable[[Problem, Any, Knobs], Any] = no_knobs
    slow: Callable[[Problem], str | None] = never_slow

    def constants(self, problem: Problem, unpacked: Constants) -> list[NDArray[Any]]:
        """All constants in the order of the parameters: ``pack``'s, and the epilogue's table."""
        packed = self.pack(problem, unpacked)
        if problem.entries is None:
            return packed
        values = np.array(unpacked["entries"])
        if problem.rescaled == "int1":
            values[1] = values[2]  # what is neither -1 nor 1 yet counts as 1
        values = np.pad(values, (0, -len(values) % FEW_ENTRIES))
        return [*packed, np.resize(values, int(problem.entries.shape[0]))]

    def refuses(self, problem: Problem, target: Any) -> str | None:
        """Why it cannot compile a problem on a target, None when it can."""
        alien = {spec.form for spec in problem.tensors} - self.forms
        if alien:
            return f"reads and writes no tensors stored as {', '.join(sorted(alien))}"
        return self.supports(problem, target)

    def avoids(self, problem: Problem, target: Any) -> str | None:
        """Why it is not taken by default: it refuses, or is known to be slow; None where it is."""
        return self.refuses(problem, target) or self.slow(problem)
