"""Moves images from NCHW to NHWC and convolution weights from OIHW to OHWI."""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm import relax

from nybble.ir import graph, ops, specs
from nybble.ir.graph import Emitter
from nybble.passes.base import module_pass
from nybble.passes.pointwise import FUNCTIONS
from nybble.passes.resize import RESIZE
from nybble.passes.view import View

LAST = (0, 2, 3, 1)  # NHWC axis i is NCHW axis LAST[i]
FIRST = (0, 3, 1, 2)
ELEMENTWISE = {
    "relax.add", "relax.subtract", "relax.multiply", "relax.divide", "relax.maximum",
    "relax.minimum", "relax.nn.relu", "relax.clip",
    *FUNCTIONS, *specs.BORDERS,
}  # fmt: skip
POOLS = {
    "relax.nn.max_pool2d": relax.op.nn.max_pool2d,
    "relax.nn.avg_pool2d": relax.op.nn.avg_pool2d,
    "relax.nn.adaptive_avg_pool2d": relax.op.nn.adaptive_avg_pool2d,
}
WINDOWED = {"relax.nn.conv2d", *POOLS}


@module_pass
def channels_last(mod: tvm.IRModule) -> tvm.IRModule:
    """Computes on NHWC images; permute_dims only where true NCHW order matters.

    before: conv2d(x NCHW, w OIHW)
    --->
    after: conv2d(permute_dims(x, (0, 2, 3, 1)), w OHWI)
    """
    return graph.rewrite(mod, _Layouts(View(mod)).visit)


class _Layouts:
    """Which new variables are NHWC, and their counterparts in the other order."""

    def __init__(self, view: View):
        self.view = view
        self.last: set[Any] = set()
        self.twin: dict[Any, Any] = {}  # NHWC variable <-> the same image in NCHW
        self.constants: set[Any] = set()  # dequantized ones
        self.images = self._images()
        self.rules = {
            "relax.nn.conv2d": self._conv2d,
            "relax.concat": self._concat,
            RESIZE: self._resize,
            "relax.mean": self._mean,
            "relax.nn.softmax": self._softmax,
            "relax.nn.pad": self._pad,
            "relax.reshape": self._reshape,
            "relax.permute_dims": self._permute,
            **dict.fromkeys(POOLS, self._pool),
            **dict.fromkeys(ELEMENTWISE, self._elementwise),
            **dict.fromkeys(specs.BORDERS, self._border),
        }

    def _images(self) -> set[str]:
        """Tensors that a convolution or pool will read, maybe after element-wise ops."""
        found: set[str] = set()
        for name in reversed(list(self.view.calls)):
            op = self.view.op(name)
            windowed = op in WINDOWED or _is_spatial_mean(self.view.calls[name])
            if windowed or (op in {*ELEMENTWISE, RESIZE} and name in found):
                found.update(s for s in self.view.sources(name) if len(self.view.shape(s)) == 4)
        return found

    def visit(self, emitter: Emitter, name: str, call: Any) -> Any:
        rule = self.rules.get(graph.op_name(call), self._other)
        result = rule(emitter, name, call)
        if result in self.last and name in self.view.outputs:
            return self.to_first(emitter, result)
        return result

    # ---- the two orders of one image

    def to_last(self, emitter: Emitter, x: Any) -> Any:
        if graph.is_constant(x):
            return graph.constant(_constant_last(graph.numpy_of(x)))
        if x in self.last:
            return x
        if x not in self.twin:
            new = emitter.emit(_reorder(x, LAST), f"{x.name}.nhwc")
            self.last.add(new)
            self.twin[x], self.twin[new] = new, x
        return self.twin[x]

    def to_first(self, emitter: Emitter, x: Any) -> Any:
        if x not in self.last:
            return x
        if x not in self.twin:
            new = emitter.emit(_reorder(x, FIRST), f"{x.name}.nchw")
            self.twin[x], self.twin[new] = new, x
        return self.twin[x]

    def _emit_last(self, emitter: Emitter, name: str, expr: Any) -> Any:
        var = emitter.emit(expr, name)
        self.last.add(var)
        return var

    # ---- rules

    def _other(self, emitter: Emitter, _name: str, call: Any) -> Any:
        swaps = {v: self.to_first(emitter, v) for v in graph.operands(call) if v in self.last}
        return graph.substitute(call, swaps)

    def _conv2d(self, emitter: Emitter, name: str, call: Any) -> Any:
        x, w = call.args
        attrs = graph.attributes(call)
        layouts = (attrs["data_layout"], attrs["kernel_layout"])
        if layouts != ("NCHW", "OIHW") or not (graph.is_constant(w) or w in self.constants):
            return self._other(emitter, name, call)
        keep = {k: attrs[k] for k in ("strides", "padding", "dilation", "groups")}
        is_stored = w in self.constants  # OIHW -> OHWI is the same permutation
        w = self.to_last(emitter, w) if is_stored else _transposed(w)
        x = self.to_last(emitter, x)
        conv = relax.op.nn.conv2d(x, w, **keep, data_layout="NHWC", kernel_layout="OHWI")
        return self._emit_last(emitter, name, conv)

    def _pool(self, emitter: Emitter, name: str, call: Any) -> Any:
        attrs = graph.attributes(call)
        if attrs["layout"] != "NCHW":
            return self._other(emitter, name, call)
        keep = {k: v for k, v in attrs.items() if k not in ("layout", "out_layout")}
        pool = POOLS[graph.op_name(call)]
        x = self.to_last(emitter, call.args[0])
        return self._emit_last(emitter, name, pool(x, **keep, layout="NHWC"))

    def _elementwise(self, emitter: Emitter, name: str, call: Any) -> Any:
        tensors = graph.operands(call)
        variables = [v for v in tensors if isinstance(v, relax.Var)]
        wanted = name in self.images or any(v in self.last for v in variables)
        ranks = [len(graph.shape_of(v)) for v in variables]
        if not wanted or any(rank not in (0, 4) for rank in ranks):
            return self._other(emitter, name, call)
        moved = {v: self.to_last(emitter, v) for v in variables if len(graph.shape_of(v)) == 4}
        args = [
            self.to_last(emitter, a) if graph.is_constant(a) else moved.get(a, a)
            if isinstance(a, relax.Var) else a
            for a in call.args
        ]  # fmt: skip
        return self._emit_last(emitter, name, relax.Call(call.op, args, call.attrs))

    def _border(self, emitter: Emitter, name: str, call: Any) -> Any:
        """Quantize or dequantize: of a constant, its integers are moved."""
        x, attrs = call.args[0], graph.attributes(call)
        is_stored, is_image = graph.is_constant(x), len(graph.shape_of(x)) == 4
        met = self._meets_image(name) if is_stored else x in self.last
        if not is_image or not (met or name in self.images):
            return self._other(emitter, name, call)
        attrs["axis"] = LAST.index(attrs["axis"] % 4)
        x = _transposed(x) if is_stored else self.to_last(emitter, x)
        op = graph.op_name(call).removeprefix("nybble.")
        var = self._emit_last(emitter, name, ops.call(op, [x, *call.args[1:]], **attrs))
        self.constants.update([var] if is_stored else [])
        return var

    def _meets_image(self, name: str) -> bool:
        """Whether something reads a tensor together with an image that is NHWC by now."""
        beside = {s for reader in self.view.readers[name] for s in self.view.sources(reader)}
        return any(str(image.name) in beside for image in self.last)

    def _resize(self, emitter: Emitter, name: str, call: Any) -> Any:
        x, attrs = call.args[0], graph.attributes(call)
        if attrs["layout"] != "NCHW" or (x not in self.last and name not in self.images):
            return self._other(emitter, name, call)
        keep = {k: v for k, v in attrs.items() if k not in ("layout", "out_dtype")}
        x = self.to_last(emitter, x)
        resized = relax.op.image.resize2d(x, call.args[1], **keep, layout="NHWC")
        return self._emit_last(emitter, name, resized)

    def _concat(self, emitter: Emitter, name: str, call: Any) -> Any:
        tensors = graph.operands(call)
        if not any(v in self.last for v in tensors if isinstance(v, relax.Var)):
            return None
        axis = LAST.index(graph.attributes(call)["axis"] % 4)
        moved = [self.to_last(emitter, v) for v in tensors]
        return self._emit_last(emitter, name, relax.op.concat(moved, axis))

    def _mean(self, emitter: Emitter, name: str, call: Any) -> Any:
        x, attrs = call.args[0], graph.attributes(call)
        if _is_spatial_mean(call):
            x = self.to_last(emitter, x)
        axes = sorted(a % 4 for a in attrs["axis"] or range(4)) if x in self.last else []
        free_of_order = attrs["keepdims"] or axes == [1] or {2, 3} <= set(axes)
        if x not in self.last or not free_of_order:
            return self._other(emitter, name, call)
        moved = relax.op.mean(x, sorted(LAST.index(a) for a in axes), attrs["keepdims"])
        return self._emit_last(emitter, name, moved) if attrs["keepdims"] else moved

    def _softmax(self, emitter: Emitter, name: str, call: Any) -> Any:
        x = call.args[0]
        if x not in self.last:
            return None
        axis = LAST.index(graph.attributes(call)["axis"] % 4)
        return self._emit_last(emitter, name, relax.op.nn.softmax(x, axis))

    def _pad(self, emitter: Emitter, name: str, call: Any) -> Any:
        x = call.args[0]
        if x not in self.last and name not in self.images:
            return None
        x, attrs = self.to_last(emitter, x), graph.attributes(call)
        width = attrs["pad_width"]
        moved = [width[2 * axis + side] for axis in LAST for side in (0, 1)]
        padded = relax.op.nn.pad(x, moved, attrs["pad_mode"], attrs["pad_value"])
        return self._emit_last(emitter, name, padded)

    def _reshape(self, emitter: Emitter, name: str, call: Any) -> Any:
        x = call.args[0]
        if x in self.last and graph.shape_of(x)[1:3] == (1, 1):
            return None  # one pixel: both orders are the same memory
        return self._other(emitter, name, call)

    def _permute(self, _emitter: Emitter, _name: str, call: Any) -> Any:
        x = call.args[0]
        if x not in self.last:
            return None
        axes = graph.attributes(call)["axes"] or (3, 2, 1, 0)
        return relax.op.permute_dims(x, [LAST.index(a % 4) for a in axes])


def _is_spatial_mean(call: Any) -> bool:
    """Whether a call averages each channel of an NCHW image: global pooling by another name."""
    if graph.op_name(call) != "relax.mean" or len(graph.shape_of(call.args[0])) != 4:
        return False
    return sorted(a % 4 for a in graph.attributes(call)["axis"] or range(4)) == [2, 3]


def _reorder(x: Any, axes: tuple[int, ...]) -> Any:
    """permute_dims, or a reshape where the image is one pixel."""
    height, width = (2, 3) if axes == LAST else (1, 2)
    shape = graph.shape_of(x)
    if (shape[height], shape[width]) == (1, 1):
        return relax.op.reshape(x, [x.ty.shape[a] for a in axes])
    return relax.op.permute_dims(x, list(axes))


def _transposed(constant: Any) -> Any:
    return graph.constant(graph.numpy_of(constant).transpose(LAST), graph.dtype_of(constant))


def _constant_last(values: Any) -> Any:
    """A constant that broadcasts against NCHW, for NHWC: (C, 1, 1) -> (C,)."""
    if values.ndim == 0:
        return values
    full = values.reshape((1,) * (4 - values.ndim) + values.shape).transpose(LAST)
    leading = next((i for i, extent in enumerate(full.shape) if extent != 1), 3)
    return np.ascontiguousarray(full.reshape(full.shape[leading:]))
