"""Runs any float, quantized or integer module in NumPy: simulation, calibration, and the law."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController
from tvm import relax, sym

from nybble.errors import StageError
from nybble.ir import floats, graph, ops

Array = NDArray[Any]
Observe = Callable[[str, Array], None]
Sizes = Mapping[Any, int]


def run(
    mod: tvm.IRModule,
    inputs: Mapping[str, Array] | Sequence[Array],
    observe: Observe | None = None,
    given: Mapping[str, Array] | None = None,
) -> list[Array]:
    """Evaluates ``main``.

    Args:
        mod: a module of stage float, quantized or integer.
        inputs: one array per parameter, in order or by name; the batch extent is free.
        observe: called with every binding's name and value as soon as it is known.
        given: what later bindings get in place of some bindings' values, by name.

    Returns:
        The outputs in order. Values below 8 bits come unpacked in int8 or uint8.

    Raises:
        StageError: an op has no NumPy meaning (a scheduled module, or a foreign op).
    """
    with _blas().limit(limits=1, user_api="blas"):
        return _run(mod, inputs, observe, given or {})


@cache
def _blas() -> ThreadpoolController:
    """NumPy's BLAS: on the small products of one image its threads mostly spin and wait."""
    return ThreadpoolController()


def _run(
    mod: tvm.IRModule,
    inputs: Mapping[str, Array] | Sequence[Array],
    observe: Observe | None,
    given: Mapping[str, Array],
) -> list[Array]:
    params = graph.inputs(mod)
    arrays = [inputs[p.name] for p in params] if isinstance(inputs, Mapping) else inputs
    values: dict[Any, Array] = dict(zip(params, map(np.asarray, arrays), strict=True))
    sizes = _open_sizes(values)
    wanted = set(graph.outputs(mod))
    last_use = _last_uses(mod)
    for index, binding in enumerate(graph.bindings(mod)):
        name = str(binding.var.name)
        found = evaluate(binding.value, values, name, sizes)
        if observe is not None:
            observe(name, found)
        values[binding.var] = given.get(name, found)
        for operand in graph.operands(binding.value):
            if operand not in wanted and last_use.get(operand) == index:
                values.pop(operand, None)  # an image's activations would otherwise pile up
    return [values[v] for v in graph.outputs(mod)]


def _last_uses(mod: tvm.IRModule) -> dict[Any, int]:
    uses: dict[Any, int] = {}
    for index, binding in enumerate(graph.bindings(mod)):
        for operand in graph.operands(binding.value):
            if isinstance(operand, relax.Var):
                uses[operand] = index
    return uses


def _open_sizes(values: Mapping[Any, Array]) -> Sizes:
    """What the symbolic extents of the inputs are for these arrays."""
    return {
        extent: size
        for param, array in values.items()
        for extent, size in zip(param.ty.shape, array.shape, strict=True)
        if isinstance(extent, relax.Var)
    }


def evaluate(
    expr: Any, values: Mapping[Any, Array], name: str, sizes: Sizes | None = None
) -> Array:
    """The value of one binding's expression, given the values of its variables.

    Args:
        expr: a call, or a variable.
        values: of its operands.
        name: of the binding, for the error.
        sizes: the symbolic extents; without them a shape may hold one, which NumPy infers.
    """
    if isinstance(expr, relax.Var):
        return values[expr]
    op = graph.op_name(expr)
    definition = ops.definition_of(op)
    law = definition.law if definition else floats.OPS.get(op)
    if law is None:
        raise StageError(f"'{name}': {op or type(expr).__name__} has no NumPy meaning.")
    args = [a for arg in expr.args for a in _arguments(arg, expr, values, sizes)]
    return np.asarray(law(*args, **graph.attributes(expr)))


def _arguments(
    arg: Any, call: relax.Call, values: Mapping[Any, Array], sizes: Sizes | None
) -> list[Any]:
    """One Relax argument as NumPy arguments: a tuple becomes several."""
    if isinstance(arg, relax.Tuple):
        return [a for field in arg.fields for a in _arguments(field, call, values, sizes)]
    if isinstance(arg, relax.Var) and arg in values:
        return [values[arg]]
    if graph.is_constant(arg):
        return [graph.numpy_of(arg)]
    if isinstance(arg, relax.ShapeExpr):
        return [_concrete_shape(arg, call, sizes)]
    return [_number(arg, sizes)]


def _number(value: Any, sizes: Sizes | None) -> Any:
    """A scalar argument as plain Python, symbolic extents filled in."""
    plain = graph.plain(value)
    if not isinstance(plain, str) or isinstance(value, str) or sizes is None:
        return plain
    analyzer = sym.Analyzer()
    for extent, size in sizes.items():
        analyzer.bind(extent, tvm.tirx.IntImm("int64", size))
    return graph.plain(analyzer.simplify(value))


def _concrete_shape(
    shape: relax.ShapeExpr, call: relax.Call, sizes: Sizes | None
) -> tuple[int, ...]:
    """A target shape; without known sizes one symbolic extent is left to NumPy as -1."""
    if sizes is not None:
        return tuple(_number(d, sizes) for d in shape.values)
    extents = [int(d) if isinstance(d, int | tvm.tirx.IntImm) else -1 for d in shape.values]
    if extents.count(-1) > 1:
        raise StageError(f"{graph.op_name(call)}: more than one symbolic extent in {shape}.")
    return tuple(extents)
