"""Biases of a canonical float module: every layer gets one, and they can be replaced."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from nybble.ir import graph
from nybble.ir.graph import Emitter
from nybble.passes.base import module_pass
from nybble.passes.fold_batch_norm import affine, is_linear
from nybble.passes.view import View

Array = NDArray[Any]


@module_pass
def give_biases(mod: tvm.IRModule) -> tvm.IRModule:
    """Puts a bias of zeros behind every convolution and linear layer that has none.

    before: conv2d(x, w)
    --->
    after: add(conv2d(x, w), 0)
    """
    view = View(mod)

    def visit(emitter: Emitter, name: str, call: Any) -> Any:
        if name not in view.calls or not is_linear(view.calls[name]) or bias_name(view, name):
            return None
        zeros = graph.constant(np.zeros(int(view.shape(name)[-1]), np.float32))
        return emitter.emit(relax.op.add(emitter.emit(call, name), zeros), f"{name}.bias")

    return graph.rewrite(mod, visit)


def bias_name(view: View, layer: str) -> str | None:
    """The binding that adds a layer's bias; None where it has none."""
    reader = view.sole_reader(layer)
    if reader is None or view.op(reader) != "relax.add" or affine(view.calls[reader]) is None:
        return None
    return reader


@module_pass
def set_biases(mod: tvm.IRModule, biases: Mapping[str, Array]) -> tvm.IRModule:
    """Replaces the biases of the layers given, (O,) float32 each.

    before: add(conv2d(x, w), b)
    --->
    after: add(conv2d(x, w), b')
    """
    view = View(mod)
    of_binding = {bias_name(view, layer): values for layer, values in biases.items()}

    def visit(_: Emitter, name: str, call: Any) -> Any:
        if name not in of_binding:
            return None
        constant = graph.constant(np.asarray(of_binding[name], np.float32))
        args = [constant if graph.is_constant(a) else a for a in call.args]
        return relax.Call(call.op, args, call.attrs)

    return graph.rewrite(mod, visit)
