"""Folds per-channel multiplications and additions into convolutions and matmuls."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from nybble.ir import graph
from nybble.ir.graph import Emitter
from nybble.passes.base import module_pass
from nybble.passes.view import View, first_variable, per_channel

Vector = NDArray[np.float64]
AFFINE = {"relax.add", "relax.subtract", "relax.multiply", "relax.divide"}
COMMUTES = {"relax.add", "relax.multiply"}


@module_pass
def fold_batch_norm(mod: tvm.IRModule) -> tvm.IRModule:
    """Leaves at most one bias behind every convolution and matmul.

    before: add(multiply(conv2d(x, w), m), a), conv2d(multiply(x, m), w)
    --->
    after: add(conv2d(x, w * m), a), conv2d(x, w * m)
    """
    view = View(mod)
    plans, absorbed = _plan(view)

    def visit(emitter: Emitter, name: str, call: Any) -> Any:
        if name in absorbed:
            return first_variable(call)
        if name not in plans:
            return None
        weights, bias = _folded(call, plans[name])
        folded = relax.Call(call.op, [first_variable(call), weights], call.attrs)
        if bias is None:
            return folded
        constant = graph.constant(bias.astype(np.float32))
        return emitter.emit(relax.op.add(emitter.emit(folded, name), constant), f"{name}.bias")

    return graph.rewrite(mod, visit)


@dataclass
class _Chain:
    """Affine steps (scale, offset) before and after one convolution, in order of computation."""

    before: list[tuple[Vector, Vector]] = field(default_factory=list)
    after: list[tuple[Vector, Vector]] = field(default_factory=list)


def _plan(view: View) -> tuple[dict[str, _Chain], set[str]]:
    plans: dict[str, _Chain] = {}
    absorbed: set[str] = set()
    for name in view.calls:
        if not is_linear(view.calls[name]):
            continue
        chain = _Chain()
        reader = view.sole_reader(name)
        while reader and (step := affine(view.calls[reader])):
            chain.after.append(step)
            absorbed.add(reader)
            reader = view.sole_reader(reader)
        source = view.sources(name)[0]
        while source not in absorbed and view.sole_reader(source) and source in view.calls:
            before = affine(view.calls[source])
            if before is None or (np.any(before[1]) and _pads(view.calls[name])):
                break  # an offset does not reach the padding, which stays zero
            chain.before.insert(0, before)
            absorbed.add(source)
            source = view.sources(source)[0]
        if chain.after or chain.before:
            plans[name] = chain
    return plans, absorbed


def is_linear(call: Any) -> bool:
    """Whether a call is an NHWC/OHWI convolution or a matmul, with constant weights."""
    op = graph.op_name(call)
    if op == "relax.matmul":
        rhs = call.args[1]
        return graph.is_constant(rhs) and len(graph.shape_of(rhs)) == 2
    if op != "relax.nn.conv2d" or not graph.is_constant(call.args[1]):
        return False
    attrs = graph.attributes(call)
    return (attrs["data_layout"], attrs["kernel_layout"]) == ("NHWC", "OHWI")


def affine(call: Any) -> tuple[Vector, Vector] | None:
    """(scale, offset) per channel of an element-wise op with a constant, else None."""
    op = graph.op_name(call)
    if op not in AFFINE:
        return None
    x, constant = call.args
    if graph.is_constant(x) and op in COMMUTES:
        x, constant = constant, x
    if not isinstance(x, relax.Var) or graph.shape_of(x) != graph.shape_of(call):
        return None
    values = per_channel(constant, graph.shape_of(x)[-1]) if graph.shape_of(x) else None
    if values is None or (op == "relax.divide" and not np.all(values)):
        return None
    ones, zeros = np.ones_like(values), np.zeros_like(values)
    if op in ("relax.add", "relax.subtract"):
        return ones, values if op == "relax.add" else -values
    return (values if op == "relax.multiply" else 1 / values), zeros


def _pads(call: Any) -> bool:
    return graph.op_name(call) == "relax.nn.conv2d" and any(graph.attributes(call)["padding"])


def _folded(call: Any, chain: _Chain) -> tuple[Any, Vector | None]:
    """New weights and bias, computed in float64; no bias where nothing ever adds."""
    weights = graph.numpy_of(call.args[1]).astype(np.float64)
    is_conv = graph.op_name(call) == "relax.nn.conv2d"
    rows = weights if is_conv else weights.T  # one row per output channel
    bias = np.zeros(rows.shape[0])
    groups = graph.attributes(call)["groups"] if is_conv else 1
    for scale, offset in reversed(chain.before):
        bias = bias + _per_row(rows, offset, groups).sum(axis=tuple(range(1, rows.ndim)))
        rows = _per_row(rows, scale, groups)
    for scale, offset in chain.after:
        rows = rows * scale.reshape(-1, *[1] * (rows.ndim - 1))
        bias = bias * scale + offset
    adds = any(np.any(offset) for _, offset in chain.before + chain.after)
    constant = graph.constant((rows if is_conv else rows.T).astype(np.float32))
    return constant, bias if adds else None


def _per_row(rows: Vector, by_input: Vector, groups: int) -> Vector:
    """Each weight times the value of the input channel that it reads."""
    per_group = by_input.reshape(groups, -1)
    of_row = np.repeat(per_group, rows.shape[0] // groups, axis=0)  # (O, C / groups)
    return np.asarray(rows * of_row.reshape(rows.shape[0], *[1] * (rows.ndim - 2), -1))
