"""The rule for weight-only layers: float activations, integer weights with a scale per group.

weight_only -> add(other) -> relu | clip    (each step optional)
"""

from __future__ import annotations

import numpy as np
from tvm import relax

from nybble.errors import ScheduleError
from nybble.ir import graph
from nybble.ir.weight_only import INT8
from nybble.schedules.group import Group, Matcher, constant_of, spec_of
from nybble.schedules.kernel import Epilogue, Problem, TensorSpec
from nybble.schedules.match_float import with_sum_and_clamp

OPERANDS = ("w", "scale", "zero_point", "bias")
USUAL = {"book": "", "compute": INT8}


def weight_only(matcher: Matcher, binding: relax.VarBinding) -> Group:
    """One layer. The attribute ``zero_point`` is the groups' common one, None if they differ.

    Raises:
        ScheduleError: an operand is no constant, or per-group operands lack a shape of (O, groups).
    """
    call, name = binding.value, str(binding.var.name)
    pairs = zip(OPERANDS, call.args[1:], strict=True)
    constants = {operand: constant_of(arg, name, operand) for operand, arg in pairs}
    group = int(graph.attributes(call)["group"])
    o, k = constants["w"].shape
    for operand, shape in (("scale", (o, -(-k // group))), ("zero_point", (o, -(-k // group)))):
        if constants[operand].shape != shape:
            found = constants[operand].shape
            raise ScheduleError(f"'{name}': operand {operand} has shape {found}, expected {shape}.")
    zero = constants["zero_point"]
    common = int(zero.flat[0]) if np.ptp(zero) == 0 else None
    problem = Problem(
        "weight_only",
        (spec_of(call.args[0]),),
        spec_of(binding.var),
        (*_unusual(call), ("group", group), ("zero_point", common)),
        TensorSpec((o, k), graph.dtype_of(call.args[1])),
        epilogue=Epilogue("float", -np.inf, np.inf),
    )
    alone = Group((binding,), problem, (call.args[0],), constants)
    return with_sum_and_clamp(matcher, alone)


def _unusual(call: relax.Call) -> tuple[tuple[str, str], ...]:
    """What is left out where it is the usual, so that problems of older records stay equal."""
    attrs = graph.attributes(call)
    given = {name: str(attrs[name]) for name in USUAL}
    return tuple((name, value) for name, value in given.items() if value != USUAL[name])
