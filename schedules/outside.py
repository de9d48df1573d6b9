"""Constants taken out of a scheduled module, to be handed to it when it is called."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from nybble.errors import NybbleError
from nybble.ir import graph
from nybble.schedules.cuda.arch import CudaTarget
from nybble.schedules.target import Target

PLACES = INSIDE, OUTSIDE = ("inside", "outside")
SMALLEST = 1024  # bytes; what is smaller costs more as an argument than as a copy in memory


def check_place(place: str, targets: Sequence[Target]) -> None:
    """Refuses where constants cannot stand.

    Raises:
        NybbleError: no such place, or constants outside for GPUs.
    """
    if place not in PLACES:
        raise NybbleError(f"parameters={place!r} is not one of: {', '.join(PLACES)}.")
    on_gpu = [target.name for target in targets if isinstance(target, CudaTarget)]
    if place == OUTSIDE and on_gpu:
        raise NybbleError(
            f"parameters='outside' is for CPUs; {', '.join(on_gpu)} copies its constants to the "
            "GPU and takes them from inside the library."
        )


def lift(mod: tvm.IRModule) -> tuple[tvm.IRModule, tuple[NDArray[Any], ...]]:
    """Makes parameters of the constants from `SMALLEST` bytes on.

    before: main(x) = call_tir(f, (x, const w))
    --->
    after: main(x, w) = call_tir(f, (x, w)), and the values of w

    Args:
        mod: stage ``scheduled``; it is not changed.

    Returns:
        The module, and the arrays in the order of the new parameters, behind the inputs. They are
        the constants' own memory.
    """
    bindings, replaced = graph.bindings(mod), dict[Any, Any]()
    for binding in bindings:
        for operand in graph.operands(binding.value):
            if (
                graph.is_constant(operand)
                and operand not in replaced
                and _size(operand) >= SMALLEST
            ):
                replaced[operand] = relax.Var(f"parameter{len(replaced)}", operand.ty)
    arrays = tuple(np.from_dlpack(constant.value) for constant in replaced)
    emitter = graph.Emitter([*graph.inputs(mod), *replaced.values()])
    for binding in bindings:
        value = graph.substitute(binding.value, replaced)
        replaced[binding.var] = emitter.emit(value, str(binding.var.name))
    results = [replaced.get(v, v) for v in graph.outputs(mod)]
    attrs = dict(mod["main"].attrs)
    keep = {k: v for k, v in attrs.items() if k not in (graph.OUTPUT_NAMES, graph.STAGE)}
    made = emitter.finish(results, graph.output_names(mod), graph.stage(mod), keep)
    for variable, function in mod.functions_items():
        if str(variable.name_hint) != "main":
            made[variable] = function
    return made, arrays


def _size(constant: Any) -> int:
    return prod(map(int, graph.shape_of(constant))) * np.dtype(graph.dtype_of(constant)).itemsize
