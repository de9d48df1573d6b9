"""Decides, without numbers, where a canonical module is quantized and which layers stay float.

A *point* is a tensor that gets an integer grid. Its *owner* is the tensor whose observed range
gives the grid: pass-through ops share their operand's, branches of a concat may share the concat's.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm

from nybble.errors import NybbleError, near_pattern
from nybble.ir import graph
from nybble.passes import rows
from nybble.passes.fold_batch_norm import AFFINE, affine, is_linear
from nybble.passes.pointwise import CLAMPS, functions
from nybble.passes.resize import RESIZE, resize_of
from nybble.passes.view import View, repeats
from nybble.passes.widths import activation_bits, layer_widths
from nybble.recipe import Recipe, Weights

ACTIVATIONS = CLAMPS
SHUFFLES = {"relax.reshape", "relax.permute_dims", "relax.strided_slice"}
AT_THE_END = (
    "table",
    "inner",
    "softmax",
    "nearest",
    "bilinear",
)  # float where no quantized layer follows
TAKES_CLAMP = {
    "linear", "bias", "add", "shift", "factors", "product", "activation", "avg_pool", "bilinear",
}  # fmt: skip
NON_NEGATIVE = {"relax.nn.relu", "relax.sigmoid", "relax.nn.softmax", "relax.exp"}
KEEPS_SIGN = {
    "relax.nn.max_pool2d", "relax.nn.avg_pool2d", "relax.reshape", "relax.permute_dims",
    "relax.nn.pad", "relax.concat", "relax.add", "relax.multiply", "relax.mean",
    "relax.strided_slice", RESIZE,
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """Where the borders go.

    Attributes:
        owner: point -> the tensor whose range is its grid's, in order of computation.
        kept: layer that stays float -> why.
        kinds: what every binding is (see `kind_of`), ``float`` for those in ``kept``.
        bits: owner -> bits of the grid.
        weights: convolution or linear layer -> the width of its weights.
    """

    owner: dict[str, str]
    kept: dict[str, str]
    kinds: dict[str, str]
    bits: dict[str, int]
    weights: dict[str, Weights]

    def owners(self) -> list[str]:
        """The tensors to observe, each once."""
        return list(dict.fromkeys(self.owner.values()))


def plan(mod: tvm.IRModule, recipe: Recipe) -> Plan:
    """Plans the quantization of a canonical float module.

    Raises:
        NybbleError: a pattern of ``recipe.keep_float`` or ``recipe.layers`` matches no layer, or
            the recipe asks for weight-only quantization (`nybble.passes.weights_only`).
    """
    view = View(mod)
    kinds, kept = classify(view, recipe)
    leaving = _leaving(view, kinds)
    for name in [n for n in leaving if kinds[n] in AT_THE_END]:
        kinds[name], kept[name] = "float", "follows the last quantized layer"
    points = _points(view, kinds, leaving)
    outside = {n for n in leaving if view.op(n) in SHUFFLES or repeats(view.calls[n])}
    kept = {name: why for name, why in kept.items() if name not in outside}
    owner, widths = _owners(view, kinds, points), layer_widths(view, kinds, recipe)
    bits = activation_bits(view, owner, widths, recipe)
    return Plan(owner, kept, kinds, bits, {name: w.weights for name, w in widths.items()})


def kind_of(view: View, name: str, kinds: dict[str, str]) -> tuple[str, str]:
    """What a binding is to quantization.

    Returns:
        (kind, reason): linear, bias, activation, add, product, concat, max_pool, avg_pool, through,
        nearest, bilinear, scale, shift, factors, matmul, mask, softmax, norm, lookup; or float with
        the reason in words.
        Tables are found by `nybble.passes.pointwise`.
    """
    call, op = view.calls[name], view.op(name)
    sources = view.sources(name)
    if not is_float(view, name) and not rows.is_lookup(view, name):
        return "float", "holds integers or truth values"
    if is_linear(call):
        return "linear", ""
    if op in ACTIVATIONS:
        return _activation(call, kinds.get(sources[0], ""))
    if op == "relax.concat":
        computed = len(sources) == len(graph.operands(call))
        return ("concat", "") if computed else ("float", "joins a constant")
    if op in ("relax.nn.max_pool2d", "relax.nn.avg_pool2d", RESIZE):
        return resize_kind(call) if op == RESIZE else pool_kind(call, op)
    other = _arithmetic(view, name, kinds) if op in AFFINE else _shuffle(call, op)
    return rows.kind_of(view, name) or other


def is_float(view: View, name: str) -> bool:
    """Whether a binding and all it reads are floats: token numbers and masks are not quantized.

    The places of a constant gather are not read as values.
    """
    call = view.calls[name]
    tensors = [view.variables[name], *graph.operands(call)[: 1 if repeats(call) else None]]
    return all(graph.dtype_of(tensor).startswith("float") for tensor in tensors)


def _shuffle(call: Any, op: str) -> tuple[str, str]:
    if op in SHUFFLES or repeats(call):
        return "through", ""
    if op != "relax.nn.pad":
        return "float", "has no integer form yet"
    return ("through", "") if pads_zeros(call) else ("float", "pads with something else than zeros")


def pads_zeros(call: Any) -> bool:
    """Whether a padding's new elements are zeros."""
    attrs = graph.attributes(call)
    return bool(attrs["pad_mode"] == "constant" and attrs["pad_value"] == 0)


def _activation(call: Any, source: str) -> tuple[str, str]:
    lo, hi = clamp_bounds(call)
    if source == "float":
        return "float", "follows a layer that stays float"
    return ("activation", "") if lo <= 0 <= hi else ("float", "clips to a range without zero")


def clamp_bounds(call: Any) -> tuple[float, float]:
    """(lower, upper) bound of a relu or clip."""
    if graph.op_name(call) == "relax.nn.relu":
        return 0.0, np.inf
    return float(graph.plain(call.args[1])), float(graph.plain(call.args[2]))


def pool_kind(call: Any, op: str) -> tuple[str, str]:
    """max_pool or avg_pool, or float with the reason."""
    attrs = graph.attributes(call)
    if attrs["layout"] != "NHWC" or attrs["ceil_mode"]:
        return "float", f"layout {attrs['layout']}, ceil_mode {attrs['ceil_mode']}"
    if op == "relax.nn.max_pool2d":
        return "max_pool", ""
    static = all(isinstance(d, int) for d in graph.shape_of(call.args[0])[1:])
    if not static or tuple(attrs["dilation"]) != (1, 1):
        return "float", "needs a static image size and no dilation"
    return "avg_pool", ""


def resize_kind(call: Any) -> tuple[str, str]:
    """Nearest or bilinear, or float with the reason."""
    found = resize_of(call)
    if isinstance(found, str):
        return "float", found
    return ("nearest" if found.mode is None else "bilinear"), ""


def _arithmetic(view: View, name: str, kinds: dict[str, str]) -> tuple[str, str]:
    call, sources = view.calls[name], view.sources(name)
    if len(sources) == 2:
        return _of_two(view, name, view.op(name), sources)
    step, source = affine(call), view.calls.get(sources[0])
    follows_float = kinds.get(sources[0]) == "float"
    if step is not None:
        is_bias = view.op(name) == "relax.add" and source is not None and is_linear(source)
        if is_bias and view.sole_reader(sources[0]) == name and not follows_float:
            return "bias", ""  # also one of zeros
        scale, offset = step
        if not np.any(offset) and np.ptp(scale) == 0 and scale[0] > 0:
            return "scale", ""
    if rows.shift_of(call) is not None and not follows_float:
        return "shift", ""
    if step is None:
        is_product = rows.factors_of(call) is not None and not follows_float
        why = "a constant operand does not vary per channel only"
        return ("factors", "") if is_product else ("float", why)
    alone = "scales channels behind no convolution"
    return "float", "follows a layer that stays float" if follows_float else alone


def _of_two(view: View, name: str, op: str, sources: list[str]) -> tuple[str, str]:
    """The kind of a sum or product of two tensors; products may broadcast, as gates do."""
    result, shapes = view.shape(name), [view.shape(source) for source in sources]
    if op == "relax.add" and shapes[0] == shapes[1]:
        return "add", ""
    same_rank = all(len(shape) == len(result) for shape in shapes)
    if op == "relax.multiply" and same_rank:
        return "product", ""
    is_same = shapes[0] == shapes[1]
    return "float", f"{op} of two tensors{'' if is_same else ' of different shapes'}"


def classify(view: View, recipe: Recipe) -> tuple[dict[str, str], dict[str, str]]:
    """The kind of every binding, and why some stay float.

    Raises:
        NybbleError: a pattern of ``recipe.keep_float`` matches no layer.
    """
    for wanted in recipe.keep_float:
        if not any(fnmatch.fnmatchcase(name, wanted) for name in view.calls):
            raise NybbleError(
                f"Recipe: keep_float pattern '{wanted}' matches no layer"
                f"{near_pattern(wanted, view.calls)}. The layers are: {', '.join(view.calls)}."
            )
    kinds: dict[str, str] = {}
    kept: dict[str, str] = {}
    tabled = _tabled(view, recipe)
    arriving = set(view.inputs)  # inputs, and what shuffles or scales them before the border
    for name, call in view.calls.items():
        kind, reason = (tabled[name], "") if name in tabled else kind_of(view, name, kinds)
        pattern = next((p for p in recipe.keep_float if fnmatch.fnmatchcase(name, p)), None)
        if pattern is not None:
            kind, reason = "float", f"the recipe keeps '{pattern}' float"
        source = view.sources(name)[0] if view.sources(name) else ""
        prepares = kind in ("through", "scale") or (name not in tabled and bool(affine(call)))
        prepares = prepares and is_float(view, name)
        if source in arriving and prepares and view.sole_reader(source) == name:
            kind = "arriving"
            arriving.add(name)
        elif kind == "through" and kinds.get(source) == "float" and view.sole_reader(source):
            kind, reason = "float", "follows a layer that stays float"
        kinds[name] = kind
        if kind == "float":
            kept[name] = reason
    return kinds, kept


def _tabled(view: View, recipe: Recipe) -> dict[str, str]:
    """The kinds of what tables compute."""
    kept = {n for n in view.calls if any(fnmatch.fnmatchcase(n, p) for p in recipe.keep_float)}
    found: dict[str, str] = {}
    for name, function in functions(view, kept).items():
        found |= dict.fromkeys(function.steps, "inner") | {name: "table"}
    return found


def _leaving(view: View, kinds: dict[str, str]) -> set[str]:
    """Shuffles and float layers that no quantized layer follows: outside the borders."""
    leaving: set[str] = set()
    for name in reversed(list(view.calls)):
        outside = kinds[name] in ("through", "float", *AT_THE_END)
        if outside and all(reader in leaving for reader in view.readers[name]):
            leaving.add(name)
    return leaving


def _points(view: View, kinds: dict[str, str], leaving: set[str]) -> list[str]:
    """The tensors that get a grid, in order of computation."""
    inside = {n for n in view.calls if kinds[n] not in ("float", "arriving") and n not in leaving}
    accumulators = _fused_into_add(view, kinds, inside)
    points: list[str] = []
    for name in [*view.inputs, *view.calls]:
        readers = view.readers[name]
        if name not in inside:  # a float tensor: a grid only for its quantized readers
            is_real = graph.dtype_of(view.variables[name]).startswith("float")
            if is_real and any(r in inside for r in readers):
                points.append(name)
        elif kinds[name] == "inner" or name in accumulators or _absorbed(view, kinds, name, inside):
            continue
        elif kinds[name] in ("linear", "bias") and not any(r in inside for r in readers):
            continue  # its accumulators leave as float, without an 8-bit rounding
        else:
            points.append(name)
    return points


def _absorbed(view: View, kinds: dict[str, str], name: str, inside: set[str]) -> bool:
    """Whether the only reader is the bias or clamp that the tensor's own kernel computes."""
    reader = view.sole_reader(name)
    if reader not in inside:
        return False
    is_clamp = kinds[reader] == "activation" and kinds[name] in TAKES_CLAMP
    return is_clamp or kinds[reader] == "bias" or rows.is_absorbed(view, kinds, name, reader)


def _fused_into_add(view: View, kinds: dict[str, str], inside: set[str]) -> set[str]:
    """Convolutions whose accumulators enter a residual add: the later branch of each add."""
    order = {name: index for index, name in enumerate(view.calls)}
    chosen: set[str] = set()
    for name in view.calls:
        if kinds[name] != "add" or name not in inside:
            continue
        branches = [
            s for s in view.sources(name)
            if kinds.get(s) in ("linear", "bias") and view.sole_reader(s) == name
        ]  # fmt: skip
        if branches:
            chosen.add(max(branches, key=lambda branch: order[branch]))
    return chosen


def _owners(view: View, kinds: dict[str, str], points: list[str]) -> dict[str, str]:
    owner: dict[str, str] = {}
    for name in points:
        kind = kinds.get(name, "input")
        shares = kind in ("through", "max_pool", "nearest") and view.sources(name)[0] in owner
        owner[name] = owner[view.sources(name)[0]] if shares else name
        if kind == "concat":
            for source in view.sources(name):
                free = owner.get(source) == source and view.sole_reader(source) == name
                if free and kinds.get(source) in TAKES_CLAMP:
                    owner[source] = name  # the branch is requantized straight to the common grid
    return owner


def non_negative(view: View, given: Iterable[str]) -> set[str]:
    """Tensors that cannot be negative where the tensors ``given`` (the inputs) are not."""
    found = set(given)
    for name, call in view.calls.items():
        op, sources = view.op(name), view.sources(name)
        clipped = op == "relax.clip" and clamp_bounds(call)[0] >= 0
        keeps = op in KEEPS_SIGN and len(sources) == len(graph.operands(call))
        inherits = keeps or repeats(call)
        if op in NON_NEGATIVE or clipped or (inherits and all(s in found for s in sources)):
            found.add(name)
    return found
