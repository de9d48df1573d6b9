"""Writes per-channel affine steps that no convolution could take as depthwise convolutions."""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm import relax

from nybble.ir import graph
from nybble.ir.graph import Emitter
from nybble.passes.base import module_pass
from nybble.passes.fold_batch_norm import affine
from nybble.passes.pointwise import functions
from nybble.passes.view import View, first_variable

PREPARES_INPUT = {"relax.permute_dims", "relax.reshape"}


@module_pass
def scale_as_depthwise(mod: tvm.IRModule) -> tvm.IRModule:
    """Gives a batch norm behind a concat or an add an integer form.

    before: add(multiply(x, m), a) with m, a per channel of an image
    --->
    after: add(conv2d(x, m as (C, 1, 1, 1), groups=C), a)
    """
    view = View(mod)
    tabled = {step for function in functions(view).values() for step in function.steps}
    firsts = {name: chain for name in view.calls if (chain := _chain(view, name, tabled))}
    absorbed = {name for chain in firsts.values() for name in chain[1:]}
    for name in [n for n in firsts if n in absorbed]:
        del firsts[name]  # the tail of a chain is no chain of its own

    def visit(emitter: Emitter, name: str, call: Any) -> Any:
        if name in absorbed:
            return first_variable(call)
        if name not in firsts:
            return None
        steps = [pair for step in firsts[name] if (pair := affine(view.calls[step]))]
        scale, offset = steps[0]
        for m, a in steps[1:]:
            scale, offset = scale * m, offset * m + a
        weights = graph.constant(scale.astype(np.float32).reshape(-1, 1, 1, 1))
        conv = relax.op.nn.conv2d(
            first_variable(call), weights, groups=len(scale),
            data_layout="NHWC", kernel_layout="OHWI",
        )  # fmt: skip
        if not np.any(offset):
            return conv
        constant = graph.constant(offset.astype(np.float32))
        return emitter.emit(relax.op.add(emitter.emit(conv, name), constant), f"{name}.bias")

    return graph.rewrite(mod, visit)


def _chain(view: View, name: str, tabled: set[str]) -> list[str]:
    """Names of the affine steps that start at ``name``, if they are worth a convolution."""
    if name in tabled or len(view.shape(name)) != 4 or affine(view.calls[name]) is None:
        return []
    if graph.dtype_of(view.variables[name]) != "float32":
        return []  # labels, token numbers
    source = view.sources(name)[0]
    if view.op(source) == "relax.nn.conv2d" or _is_prepared_input(view, source):
        return []  # its own bias, or a float op outside the borders
    chain = [name]
    reader = view.sole_reader(name)
    while reader and reader not in tabled and affine(view.calls[reader]):
        chain.append(reader)
        reader = view.sole_reader(reader)
    scales = [pair[0] for step in chain if (pair := affine(view.calls[step]))]
    offsets = [pair[1] for step in chain if (pair := affine(view.calls[step]))]
    product = np.prod(scales, axis=0)
    is_one_scale = np.ptp(product) == 0 and product[0] > 0 and not np.any(offsets)
    return [] if is_one_scale else chain


def _is_prepared_input(view: View, name: str) -> bool:
    """Whether a tensor is an input, maybe permuted or scaled: it stands before the borders."""
    while name not in view.inputs:
        if view.op(name) not in PREPARES_INPUT and affine(view.calls[name]) is None:
            return False
        name = view.sources(name)[0]
    return True
