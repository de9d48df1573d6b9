"""Folds zero padding into the convolution behind it, and ceil_mode of pools into padding."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax

from nybble.ir import graph
from nybble.ir.graph import Emitter
from nybble.passes.base import module_pass
from nybble.passes.drop_identities import drop_unread
from nybble.passes.view import View

POOLS = {
    "relax.nn.max_pool2d": relax.op.nn.max_pool2d,
    "relax.nn.avg_pool2d": relax.op.nn.avg_pool2d,
}


@module_pass
def fold_padding(mod: tvm.IRModule) -> tvm.IRModule:
    """Lets convolutions pad for themselves.

    before: conv2d(pad(x, top, left, bottom, right), w, padding=p)
    --->
    after: conv2d(x, w, padding=p + (top, left, bottom, right))
    """
    made: dict[Any, Any] = {}

    def visit(emitter: Emitter, name: str, call: Any) -> Any:
        var = emitter.emit(_folded(call, made.get(next(iter(graph.operands(call)), None))), name)
        made[var] = call
        return var

    return drop_unread(graph.rewrite(mod, visit))


@module_pass
def spell_out_ceil_mode(mod: tvm.IRModule) -> tvm.IRModule:
    """Replaces ceil_mode by padding at the bottom and right.

    before: max_pool2d(x, ceil_mode=True)
    --->
    after: max_pool2d(x, padding=larger)
    """
    view = View(mod)

    def visit(_emitter: Emitter, name: str, call: Any) -> Any:
        pool = POOLS.get(graph.op_name(call))
        attrs = graph.attributes(call) if pool else {}
        if pool is None or not attrs["ceil_mode"] or attrs["layout"] != "NHWC":
            return None
        top, left, bottom, right = attrs["padding"]
        down, across = (_overhang(view, name, attrs, axis) for axis in (0, 1))
        if attrs["count_include_pad"] and any(attrs["padding"]) and down + across:
            return None  # the divisor would count the overhang too
        keep = {k: v for k, v in attrs.items() if k not in ("layout", "out_layout")}
        keep |= {"padding": (top, left, bottom + down, right + across), "ceil_mode": False}
        return pool(call.args[0], **{**keep, "count_include_pad": False}, layout="NHWC")

    return graph.rewrite(mod, visit)


def _overhang(view: View, name: str, attrs: dict[str, Any], axis: int) -> int:
    """How far the last window reaches beyond the padded image."""
    before, after = view.shape(view.sources(name)[0])[1 + axis], view.shape(name)[1 + axis]
    reach = (attrs["pool_size"][axis] - 1) * attrs["dilation"][axis] + 1
    covered = (int(after) - 1) * attrs["strides"][axis] + reach
    return max(0, covered - int(before) - attrs["padding"][axis] - attrs["padding"][axis + 2])


def _folded(call: Any, pad: Any) -> Any:
    """The convolution with the padding in front of it folded in, or the call as it is."""
    if graph.op_name(call) != "relax.nn.conv2d" or graph.op_name(pad) != "relax.nn.pad":
        return call
    attrs, padding = graph.attributes(call), graph.attributes(pad)
    width = padding["pad_width"]
    zeros = padding["pad_mode"] == "constant" and padding["pad_value"] == 0
    spatial = len(width) == 8 and not any(width[:2] + width[6:]) and min(width) >= 0
    if not (zeros and spatial) or attrs["data_layout"] != "NHWC":
        return call
    _, _, top, bottom, left, right, _, _ = width
    total = [p + q for p, q in zip(attrs["padding"], (top, left, bottom, right), strict=True)]
    keep = {k: attrs[k] for k in ("strides", "dilation", "groups")}
    return relax.op.nn.conv2d(
        pad.args[0], call.args[1], padding=total, **keep, data_layout="NHWC", kernel_layout="OHWI"
    )
