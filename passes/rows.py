"""Which ops on whole rows have an integer form: products, softmax, norms, embeddings.

matmul(a, b) [· c]             accumulators, rescaled once
softmax(matmul(a, b) · c)      reads the accumulators themselves
layer_norm(x), rms_norm(x)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nybble.ir import graph, rows
from nybble.passes.view import View

SOFTMAX = "relax.nn.softmax"
LOOKUP = "relax.take"
HIDDEN = -1000.0  # what a mask adds at most where it hides a value; e^-1000 is 0
NORMS = {"relax.nn.layer_norm", "relax.nn.rms_norm"}


def kind_of(view: View, name: str) -> tuple[str, str] | None:
    """(kind, why float) of a product, softmax, mask, norm or embedding; None for other ops."""
    call, op = view.calls[name], view.op(name)
    if is_lookup(view, name):
        return "lookup", ""
    if mask_of(view, name) is not None:
        return "mask", ""
    if op == "relax.matmul" and len(view.sources(name)) == 2:
        why = refuse_matmul(call)
        return ("float", why) if why else ("matmul", "")
    if op == SOFTMAX:
        why = refuse_softmax(call)
        return ("float", why) if why else ("softmax", "")
    if op in NORMS:
        why = refuse_norm(call)
        return ("float", why) if why else ("norm", "")
    return None


def is_absorbed(view: View, kinds: Mapping[str, str], name: str, reader: str) -> bool:
    """Whether a product's reader computes it from the accumulators: scale, mask, softmax."""
    if kinds[reader] not in ("scale", "mask", "softmax"):
        return False
    if kinds[name] in ("scale", "mask"):
        (source,) = view.sources(name)
        follows = view.sole_reader(source) == name and is_absorbed(view, kinds, source, name)
        return follows and kinds[reader] != "scale"
    return kinds[name] == "matmul"


def mask_of(view: View, name: str) -> NDArray[np.uint8] | None:
    """What a sum with a constant hides from the softmax behind it, 0 and 1 of (M, K); else None."""
    call, reader = view.calls.get(name), view.sole_reader(name) or ""
    if graph.op_name(call) != "relax.add" or view.op(reader) != SOFTMAX:
        return None
    constants = [graph.numpy_of(t) for t in graph.operands(call) if graph.is_constant(t)]
    if len(constants) != 1 or refuse_softmax(view.calls[reader]) or constants[0].ndim < 1:
        return None
    (constant,) = constants
    hides, shape = constant <= HIDDEN, view.shape(name)
    if not hides.any() or not np.all(hides | (constant == 0)):
        return None
    if any(extent != 1 for extent in constant.shape[:-2]) or hides.all(axis=-1).any():
        return None
    rows_of = constant.shape[-2] if constant.ndim > 1 else 1
    if rows_of not in (1, shape[-2]):
        return None
    full = np.broadcast_to(~hides.reshape(rows_of, constant.shape[-1]), (rows_of, int(shape[-1])))
    return full.astype(np.uint8)


def shift_of(call: Any) -> NDArray[np.float64] | None:
    """The constant that a sum or difference adds to a tensor of its own shape, else None."""
    op, sign = graph.op_name(call), -1.0 if graph.op_name(call) == "relax.subtract" else 1.0
    if op not in ("relax.add", "relax.subtract"):
        return None
    x, constant = call.args
    if graph.is_constant(x) and op == "relax.add":
        x, constant = constant, x
    if graph.is_constant(x) or not graph.is_constant(constant):
        return None
    if graph.shape_of(x) != graph.shape_of(call):
        return None
    return sign * graph.numpy_of(constant).astype(np.float64)


def factors_of(call: Any) -> NDArray[np.float64] | None:
    """The constant that a product multiplies a tensor of its own shape by, else None."""
    if graph.op_name(call) != "relax.multiply":
        return None
    x, constant = call.args if graph.is_constant(call.args[1]) else call.args[::-1]
    if graph.is_constant(x) or not graph.is_constant(constant):
        return None
    if graph.shape_of(x) != graph.shape_of(call) or not np.any(graph.numpy_of(constant)):
        return None
    return graph.numpy_of(constant).astype(np.float64)


def is_lookup(view: View, name: str) -> bool:
    """Whether a binding takes rows of a constant table of floats by an integer input."""
    sources = view.sources(name)
    if view.op(name) != LOOKUP or len(sources) != 1 or sources[0] not in view.inputs:
        return False
    call = view.calls[name]
    return graph.is_constant(call.args[0]) and graph.dtype_of(call.args[0]) == "float32"


def refuse_matmul(call: Any) -> str | None:
    """Why a product of two tensors has no integer form."""
    left, right = (graph.shape_of(arg) for arg in call.args)
    if len(left) < 3 or left[:-2] != right[:-2]:
        return "multiplies matrices whose leading axes differ"
    if any(isinstance(extent, str) for extent in (*left[-2:], *right[-2:])):
        return "multiplies matrices of a symbolic size"
    return None


def refuse_softmax(call: Any) -> str | None:
    """Why a softmax has no integer form."""
    shape, axis = graph.shape_of(call.args[0]), graph.attributes(call)["axis"]
    if axis % len(shape) != len(shape) - 1:
        return "is a softmax over another axis than the last"
    length = shape[-1]
    if not isinstance(length, int) or length > rows.LONGEST_ROW:
        return f"is a softmax of {length} values"
    return None


def refuse_norm(call: Any) -> str | None:
    """Why a layer norm or RMS norm has no integer form."""
    shape, attrs = graph.shape_of(call.args[0]), graph.attributes(call)
    if [axis % len(shape) for axis in attrs["axes"]] != [len(shape) - 1]:
        return "normalises over other axes than the last"
    if not isinstance(shape[-1], int):
        return "normalises a symbolic number of channels"
    if not (attrs.get("center", True) and attrs.get("scale", True)):
        return "normalises without its scale or shift"
    if not all(map(graph.is_constant, call.args[1:])):
        return "has a scale or shift that the network computes"
    return None
