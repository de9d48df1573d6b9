"""What may stand in a module at each stage: checked at every phase border."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm
from tvm import relax

from nybble.errors import StageError
from nybble.ir import floats, graph, ops

STRUCTURAL = {
    "relax.concat", "relax.reshape", "relax.permute_dims", "relax.nn.pad", "relax.strided_slice",
    "relax.take", "relax.tile", "relax.flip", "relax.broadcast_to",
}  # fmt: skip
BORDERS = {"nybble.quantize", "nybble.dequantize"}
KEPT_FLOAT = "kept_float"

Rule = Callable[[tvm.IRModule, str, Any], str | None]


def check(mod: tvm.IRModule, stage: str) -> None:
    """Checks that a module is well formed and keeps the spec of ``stage``.

    Raises:
        StageError: names the first binding that breaks a rule, and the rule.
    """
    if graph.stage(mod) != stage:
        raise StageError(f"The module claims stage '{graph.stage(mod)}', expected '{stage}'.")
    if len(graph.outputs(mod)) != len(graph.output_names(mod)):
        raise StageError(f"Stage '{stage}': outputs and their names differ in number.")
    seen: set[str] = set()
    for binding in graph.bindings(mod):
        name = str(binding.var.name)
        if name in seen:
            raise StageError(f"Stage '{stage}': two bindings are called '{name}'.")
        seen.add(name)
        broken = _RULES[stage](mod, name, binding.value)
        if broken:
            raise StageError(f"Stage '{stage}', '{name}': {broken}")
    try:
        relax.analysis.well_formed(mod)
    except (ValueError, tvm.error.InternalError) as error:
        raise StageError(f"Stage '{stage}': the module is not well formed: {error}") from error


def between_borders(mod: tvm.IRModule) -> list[tuple[str, str]]:
    """Every float op (name, op) with a border before it and a border behind it.

    A module is integer-only when this is empty: whatever float op remains stands before the first
    ``quantize`` or after the last ``dequantize`` of its path.
    """
    bindings = graph.bindings(mod)
    after: set[Any] = set()
    for binding in bindings:
        is_border = graph.op_name(binding.value) in BORDERS
        if is_border or any(operand in after for operand in _variables(binding.value)):
            after.add(binding.var)
    before: set[Any] = set()
    for binding in reversed(bindings):
        if graph.op_name(binding.value) in BORDERS or binding.var in before:
            before.update(_variables(binding.value))
    return [
        (str(binding.var.name), graph.op_name(binding.value))
        for binding in bindings
        if binding.var in before and binding.var in after and is_float_op(binding)
    ]


def is_float_op(binding: relax.VarBinding) -> bool:
    """Whether a binding computes in floating point; the borders themselves do not count."""
    if graph.op_name(binding.value) in BORDERS or isinstance(binding.value, relax.Var):
        return False
    tensors = [binding.var, *graph.operands(binding.value)]
    return any(graph.dtype_of(t).startswith("float") for t in tensors)


def _variables(expr: Any) -> list[Any]:
    return [operand for operand in graph.operands(expr) if isinstance(operand, relax.Var)]


def _is_known_call(expr: Any) -> str | None:
    if not isinstance(expr, relax.Call | relax.Var):
        return f"{type(expr).__name__} is neither an op call nor a variable"
    return None


def _float_rule(_mod: tvm.IRModule, _name: str, expr: Any) -> str | None:
    op = graph.op_name(expr)
    if isinstance(expr, relax.Var) or op in floats.OPS:
        return None
    return _is_known_call(expr) or f"{op or 'a call of no op'} is not a float op of the vocabulary"


def _quantized_rule(mod: tvm.IRModule, name: str, expr: Any) -> str | None:
    return None if graph.op_name(expr) in BORDERS else _float_rule(mod, name, expr)


def _integer_rule(mod: tvm.IRModule, name: str, expr: Any) -> str | None:
    op = graph.op_name(expr)
    if isinstance(expr, relax.Var) or ops.definition_of(op) or op in STRUCTURAL:
        return None
    broken = _float_rule(mod, name, expr)
    if broken or _is_kept_float(mod):
        return broken
    return f"{op} computes in floating point, and no layer was declared to stay float"


def _is_kept_float(mod: tvm.IRModule) -> bool:
    attrs = mod["main"].attrs
    return KEPT_FLOAT in attrs and len(attrs[KEPT_FLOAT]) > 0


def _scheduled_rule(_mod: tvm.IRModule, _name: str, expr: Any) -> str | None:
    if isinstance(expr, relax.Var) or graph.op_name(expr) in {"relax.call_tir", "relax.reshape"}:
        return None
    return _is_known_call(expr) or f"{graph.op_name(expr)} is not a call_tir"


_RULES: dict[str, Rule] = {
    "float": _float_rule,
    "quantized": _quantized_rule,
    "integer": _integer_rule,
    "scheduled": _scheduled_rule,
}
