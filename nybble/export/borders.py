"""The borders between float and integers, as QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax

from nybble.export.walk import Form, Rule, Step, Walk
from nybble.ir import graph, numerics
from nybble.passes.plan import ACTIVATIONS

MOVES = {"relax.reshape", "relax.permute_dims", "relax.squeeze", "relax.nn.max_pool2d"}


def clipped(walk: Walk, x: str, name: str, lo: float, hi: float) -> str:
    """A Clip to lo..hi."""
    low = walk.graph.constant(np.float32(lo), f"{name}.min")
    high = walk.graph.constant(np.float32(hi), f"{name}.max")
    return walk.graph.node("Clip", [x, low, high], name)


def quantize(walk: Walk, step: Step) -> Form:
    """The same integers: below 8 bits, where ONNX Runtime has no type, by a Clip in front."""
    dtype, zero = step.attrs["dtype"], int(graph.numpy_of(step.call.args[2]))
    scale = graph.numpy_of(step.call.args[1])
    order = walk.common(step.operands[:1])
    x = walk.get(step.operands[0], order, f"{step.name}.constant")
    lo, hi = numerics.limits(dtype)
    if dtype == "int1":
        x = _sign(walk, step.name, x, scale)
    elif numerics.width(dtype)[1] < 8 and not _is_on_grid(walk, step):
        ends = ((lo - zero) * scale, (hi - zero) * scale)
        x = clipped(walk, x, f"{step.name}.clip", *map(float, ends))
    grid = _grid(walk, step, dtype)
    return order, walk.graph.node("QuantizeLinear", [x, *grid], step.name)


def _origin(walk: Walk, x: Any) -> Any:
    """The dequantize whose values ``x`` only moves or picks; None where it computes others."""
    call = walk.view.calls.get(str(x.name))
    while graph.op_name(call) in MOVES:
        call = walk.view.calls.get(str(graph.operands(call)[0].name))
    return call if graph.op_name(call) == "nybble.dequantize" else None


def _is_on_grid(walk: Walk, step: Step) -> bool:
    """Whether what is quantized stands on that grid already."""
    origin = _origin(walk, step.operands[0])
    if origin is None or graph.dtype_of(origin.args[0]) != step.attrs["dtype"]:
        return False
    return all(
        np.array_equal(graph.numpy_of(a), graph.numpy_of(b))
        for a, b in zip(origin.args[1:], step.call.args[1:], strict=True)
    )


def move(rule: Rule) -> Rule:
    """Puts what a rule has moved on its grid again, which changes no value.

    ONNX Runtime would do it too, but gives int8 a zero point of uint8 and refuses its own graph
    (1.31, on x86-64).
    """

    def on_grid(walk: Walk, step: Step) -> Form:
        x = step.operands[0]
        order, tensor = rule(walk, step)
        origin = _origin(walk, x) if isinstance(x, relax.Var) else None
        follows = any(walk.view.op(r) == "nybble.quantize" for r in walk.view.readers[step.name])
        if origin is None or follows or tensor in walk.forms[x].values():
            return order, tensor
        grid = _grid(walk, Step(f"{step.name}.quantize", origin), graph.dtype_of(origin.args[0]))
        q = walk.graph.node("QuantizeLinear", [tensor, *grid], f"{step.name}.quantize")
        return order, walk.graph.node("DequantizeLinear", [q, *grid], f"{step.name}.dequantize")

    return on_grid


def _sign(walk: Walk, name: str, x: str, scale: Any) -> str:
    """-scale where x rounds to less than 0, else scale: `int1` has no 0 between them."""
    limits = {"step": scale, "half": np.float32(-0.5), "low": -scale, "high": scale}
    step, half, low, high = (
        walk.graph.constant(np.float32(v), f"{name}.{key}") for key, v in limits.items()
    )
    steps = walk.graph.node("Div", [x, step], f"{name}.steps")
    negative = walk.graph.node("Less", [steps, half], f"{name}.negative")
    return walk.graph.node("Where", [negative, low, high], f"{name}.sign")


def dequantize(walk: Walk, step: Step) -> Form:
    """Integers of activations to float; weights are dequantized where they are read."""
    order = walk.common(step.operands[:1])
    x = walk.get(step.operands[0], order, f"{step.name}.constant")
    grid = _grid(walk, step, graph.dtype_of(step.operands[0]))
    return order, walk.graph.node("DequantizeLinear", [x, *grid], step.name)


def _grid(walk: Walk, step: Step, dtype: str) -> list[str]:
    """Scale and zero point of a whole tensor, in 8 bits."""
    scale, zero = (graph.numpy_of(constant) for constant in step.call.args[1:])
    if scale.ndim or zero.ndim:
        step.refuse("has a grid for every channel, where ONNX Runtime takes one for all")
    base = step.name.rpartition(".")[0] or step.name
    return [
        walk.graph.constant(scale, f"{base}.scale"),
        walk.graph.constant(zero, f"{base}.zero_point", numerics.storage(dtype).name),
    ]


def residual(walk: Walk, step: Step) -> Form:
    """Add. A residual one below 8 bits rounds each branch to the sum's grid first, as deployed.

    At 8 bits that would cost ONNX Runtime's integer Add and change one step at most; at 4 it
    changes the answers.
    """
    order = walk.common(step.operands)
    tensors = [walk.get(t, order, f"{step.name}.constant") for t in step.operands]
    scale = _narrow_sum(walk, step)
    if scale is not None:
        tensors = [
            _rounded(walk, tensor, scale, f"{step.name}.{side}")
            for tensor, side in zip(tensors, ("a", "b"), strict=True)
        ]
    return order, walk.graph.node("Add", tensors, step.name)


def _rounded(walk: Walk, x: str, scale: Any, name: str) -> str:
    step = walk.graph.constant(scale, f"{name}.scale")
    steps = walk.graph.node("Div", [x, step], f"{name}.steps")
    return walk.graph.node("Mul", [walk.graph.node("Round", [steps], f"{name}.round"), step], name)


def _narrow_sum(walk: Walk, step: Step) -> Any:
    """The scale of the grid below 8 bits on which two quantized branches are added, or None."""
    if any(graph.is_constant(t) for t in step.operands):
        return None
    if any(line.startswith(f"{step.name}: ") for line in walk.kept):
        return None
    reader = walk.view.sole_reader(step.name)
    while reader is not None and walk.view.op(reader) in ACTIVATIONS:
        reader = walk.view.sole_reader(reader)
    if reader is None or walk.view.op(reader) != "nybble.quantize":
        return None
    border = Step(reader, walk.view.calls[reader])
    bits = numerics.width(border.attrs["dtype"])[1]
    return graph.numpy_of(border.call.args[1]) if bits < 8 else None
