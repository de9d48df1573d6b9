"""ATen's element-wise functions as float Relax.

Each takes (builder, node name) and then the operator's own arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from tvm import relax

from nybble.frontend import extents, general
from nybble.frontend.build import Builder, Value

aten = torch.ops.aten


def unary(function: Callable[[Any], Any]) -> Callable[..., Value]:
    """An operator that Relax has too."""
    return lambda build, name, x: build.emit(function(x), name)


def elu(
    build: Builder, name: str, x: Value, alpha: float = 1.0, scale: float = 1.0, inner: float = 1.0
) -> Value:
    """``aten.elu``: x, or alpha·(e^(inner·x) - 1) below 0, times scale."""
    low = build.binary("minimum", x, 0.0, f"{name}.low")
    if inner != 1:
        low = build.binary("multiply", low, inner, f"{name}.inner")
    power = build.emit(relax.op.exp(low), f"{name}.exp")
    less = build.binary("subtract", power, 1.0, f"{name}.less")
    bent = less if alpha == 1 else build.binary("multiply", less, alpha, f"{name}.alpha")
    both = build.binary("add", build.relu(x, f"{name}.high"), bent, name)
    return both if scale == 1 else build.binary("multiply", both, scale, f"{name}.scale")


def softplus(
    build: Builder, name: str, x: Value, beta: float = 1.0, threshold: float = 20.0
) -> Value:
    """``aten.softplus``: log(1 + e^(beta·x)) / beta."""
    return build.emit(relax.op.nn.softplus(x, beta, threshold), name)


def mish(build: Builder, name: str, x: Value) -> Value:
    """``aten.mish``: x·tanh(softplus(x))."""
    gate = build.emit(relax.op.tanh(softplus(build, f"{name}.softplus", x)), f"{name}.gate")
    return build.binary("multiply", x, gate, name)


def reciprocal(build: Builder, name: str, x: Value) -> Value:
    """``aten.reciprocal``."""
    return build.binary("divide", 1.0, x, name)


def power(build: Builder, name: str, x: Value, exponent: Value) -> Value:
    """``aten.pow``; a square is a product."""
    if not isinstance(exponent, relax.Var) and np.ndim(exponent) == 0 and exponent == 2:
        return build.binary("multiply", x, x, name)
    return build.binary("power", x, exponent, name)


def prelu(build: Builder, name: str, x: Value, slope: Value) -> Value:
    """``aten.prelu``: max(x, 0) + slope·min(x, 0), one slope or one for each channel (axis 1)."""
    slopes = build.weights(slope, "slope")
    if slopes.size > 1:
        slopes = slopes.reshape(-1, *[1] * (extents.rank(x) - 2))
    return general.prelu(build, x, slopes, name)


CONVERTERS: dict[Any, Any] = {
    aten.abs.default: unary(relax.op.abs),
    aten.cos.default: unary(relax.op.cos),
    aten.elu.default: elu,
    aten.erf.default: unary(relax.op.erf),
    aten.log.default: unary(relax.op.log),
    aten.mish.default: mish,
    aten.pow.Tensor_Scalar: power,
    aten.prelu.default: prelu,
    aten.reciprocal.default: reciprocal,
    aten.rsqrt.default: unary(relax.op.rsqrt),
    aten.sin.default: unary(relax.op.sin),
    aten.softplus.default: softplus,
    aten.sqrt.default: unary(relax.op.sqrt),
}
