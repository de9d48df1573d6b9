"""Parameters of a kernel, and loads and stores of vectors that may be cut short."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from nybble.schedules.kernel import Extent, Problem, TensorSpec

Symbols = dict[str, Any]


@dataclass(frozen=True)
class Buffers:
    """A kernel's parameters; activations and output are addressed as flat buffers.

    Attributes:
        x: the input, flat.
        other: the second branch of the epilogue, flat, or None.
        constants: the packed constants.
        output: the output, flat.
        entries: the table behind the epilogue, or None.
    """

    x: Any
    other: Any
    constants: tuple[Any, ...]
    output: Any
    entries: Any = None


def declare(problem: Problem, constants: Sequence[TensorSpec], symbols: Symbols) -> Buffers:
    """Declares input, second branch, constants, table and output, in this order.

    Activations may begin anywhere; constants begin on a cache line.
    """

    def parameter(name: str, spec: TensorSpec, align: int = 0) -> Any:
        held = spec.stored
        extents = [product((extent,), symbols) for extent in held.shape]
        return T.arg(name, T.buffer(extents, held.dtype, align=align, layout=None))

    def activation(name: str, spec: TensorSpec) -> Any:
        return parameter(name, spec, np.dtype(spec.stored.dtype).itemsize)

    def flat(buffer: Any, spec: TensorSpec) -> Any:
        held = spec.stored
        size = (product(held.shape, symbols),)
        return T.decl_buffer(size, held.dtype, data=buffer.data, layout=None)

    other = problem.epilogue.other
    x = activation("x", problem.inputs[0])
    second = activation("other", other) if other else None
    packed = tuple(parameter(f"packed_{i}", spec) for i, spec in enumerate(constants))
    entries = parameter("entries", problem.entries) if problem.entries else None
    y = activation("output", problem.output)
    return Buffers(
        flat(x, problem.inputs[0]),
        flat(second, other) if other else None,
        packed,
        flat(y, problem.output),
        entries,
    )


def product(factors: Sequence[Extent], symbols: Symbols) -> Any:
    """The product of extents, an int if it can be; symbolic names become shape variables."""
    result: Any = 1
    for factor in factors:
        if isinstance(factor, str):
            result = symbols.setdefault(factor, tirx.Var(factor, "int64")) * result
        else:
            result = result * factor
    return result


def load(flat: Any, index: Any, lanes: int, valid: int) -> Any:
    """A vector of which only the first ``valid`` elements exist in memory."""
    dtype = f"{flat.dtype}x{lanes}"
    if valid == lanes:
        return flat.vload([index], dtype)
    scratch = T.alloc_buffer((lanes,), str(flat.dtype), scope="local", layout=None)
    for i in range(lanes):
        T.buffer_store(scratch, flat[index + min(i, valid - 1)], [i])
    return scratch.vload([0], dtype)


def store(flat: Any, index: Any, value: Any, valid: int) -> None:
    """Stores the first ``valid`` elements of a vector."""
    lanes = value.ty.dtype.lanes
    if valid == lanes:
        T.buffer_store(flat, value, [T.ramp(index, 1, lanes)])
        return
    scratch = T.alloc_buffer((lanes,), str(flat.dtype), scope="local", layout=None)
    T.buffer_store(scratch, value, [T.ramp(0, 1, lanes)])
    for i in range(valid):
        T.buffer_store(flat, scratch[i], [index + i])
