"""NumPy meaning of element-wise ops, of reductions and of normalizations, whatever their dtype."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import erf as erf_of
from math import pi, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Law = Callable[..., Any]


def erf(x: Array) -> Array:
    """The error function in float64, rounded to x's dtype."""
    return np.vectorize(erf_of, otypes=[np.float64])(x).astype(x.dtype)


def gelu(x: Array) -> Array:
    """GELU: x / 2 · (1 + erf(x / √2))."""
    return (x * (np.float32(0.5) + erf(x / np.float32(sqrt(2))) * np.float32(0.5))).astype(x.dtype)


def gelu_tanh(x: Array) -> Array:
    """GELU with tanh(√(2/π)·(x + 0.044715·x³)) in place of the error function."""
    inner = np.float32(sqrt(2 / pi)) * (x + np.float32(0.044715) * x**3)
    return (np.float32(0.5) * x * (1 + np.tanh(inner))).astype(x.dtype)


def layer_norm(  # noqa: PLR0913  (an op's attributes are keyword arguments)
    x: Array, gamma: Array, beta: Array, *, axes: Sequence[int], epsilon: float,
    center: bool, scale: bool,
) -> Array:  # fmt: skip
    """(x - mean) / √(variance + epsilon) · gamma + beta over ``axes``."""
    over = tuple(axes)
    spread = np.sqrt(x.var(axis=over, keepdims=True) + np.float32(epsilon))
    normal = (x - x.mean(axis=over, keepdims=True)) / spread
    return normal * (gamma if scale else 1) + (beta if center else 0)


def rms_norm(x: Array, weight: Array, *, axes: Sequence[int], epsilon: float) -> Array:
    """X / √(mean(x²) + epsilon) · weight over ``axes``."""
    square = np.mean(x * x, axis=tuple(axes), keepdims=True)
    return x / np.sqrt(square + np.float32(epsilon)) * weight


def softplus(x: Array, *, beta: float, threshold: float) -> Array:
    """log(1 + e^(beta·x)) / beta, x itself above ``threshold``."""
    steep = np.float32(beta) * x
    return np.where(steep > threshold, x, np.logaddexp(steep, np.float32(0)) / np.float32(beta))


def log_softmax(x: Array, *, axis: int) -> Array:
    """Logarithm of the softmax along ``axis``."""
    centred = x - x.max(axis=axis, keepdims=True)
    return centred - np.log(np.exp(centred).sum(axis=axis, keepdims=True))


def truncated_remainder(a: Array, b: Array) -> Array:
    """The difference a - trunc(a / b)·b: the remainder has the sign of a."""
    return np.fmod(a, b)


def _over(axis: Any) -> Any:
    return None if axis is None else tuple(np.atleast_1d(axis).tolist())


def _reduction(function: Law) -> Law:
    def law(x: Array, *, axis: Any, keepdims: bool) -> Array:
        return np.asarray(function(x, axis=_over(axis), keepdims=keepdims)).astype(x.dtype)

    return law


def _position(function: Law) -> Law:
    def law(x: Array, *, axis: int | None, keepdims: bool) -> Array:
        return np.asarray(function(x, axis=axis, keepdims=keepdims), np.int64)

    return law


def running(function: Law, start: int) -> Law:
    """Cumulative sum or product along ``axis``; exclusive ones begin with ``start``."""

    def law(x: Array, *, axis: int | None, exclusive: bool, **_: Any) -> Array:
        whole = function(x, axis=axis)
        if exclusive:
            whole = np.roll(whole, 1, axis)
            whole[(slice(None),) * (axis or 0) + (0,)] = start
        return whole.astype(x.dtype)

    return law


def _same(function: Law) -> Law:
    """A function whose result keeps the operand's dtype."""
    return lambda x, *rest: np.asarray(function(x, *rest)).astype(x.dtype)


def _quiet(function: Law) -> Law:
    """Division by zero and logarithms of nothing give infinity, as on the machine."""

    def law(*operands: Array) -> Any:
        with np.errstate(all="ignore"):
            return function(*operands)

    return law


def _divide(a: Array, b: Array) -> Array:
    """Integers are truncated, as in C and in ONNX."""
    if a.dtype.kind == "f":
        return np.divide(a, b)
    return np.asarray(np.trunc(a / b) if a.dtype.kind == "i" else a // b).astype(a.dtype)


UNARY: dict[str, Law] = {
    f"relax.{name}": _quiet(_same(getattr(np, name)))
    for name in (
        "abs", "ceil", "cos", "cosh", "floor", "log", "negative", "sign", "sin", "sinh", "sqrt",
        "square", "tan", "trunc",
    )
} | {
    f"relax.{ours}": _quiet(_same(getattr(np, name)))
    for ours, name in {
        "acos": "arccos", "acosh": "arccosh", "asin": "arcsin", "asinh": "arcsinh",
        "atan": "arctan", "atanh": "arctanh", "round": "rint",
    }.items()
}  # fmt: skip
OPS: dict[str, Law] = {
    **UNARY,
    "relax.rsqrt": lambda x: (1 / np.sqrt(x)).astype(x.dtype),
    "relax.erf": erf,
    "relax.isnan": np.isnan,
    "relax.isinf": np.isinf,
    "relax.isfinite": np.isfinite,
    "relax.logical_not": np.logical_not,
    "relax.bitwise_not": np.bitwise_not,
    "relax.logical_and": np.logical_and,
    "relax.logical_or": np.logical_or,
    "relax.logical_xor": np.logical_xor,
    "relax.bitwise_and": np.bitwise_and,
    "relax.bitwise_or": np.bitwise_or,
    "relax.bitwise_xor": np.bitwise_xor,
    "relax.left_shift": np.left_shift,
    "relax.right_shift": np.right_shift,
    "relax.equal": np.equal,
    "relax.not_equal": np.not_equal,
    "relax.less": np.less,
    "relax.less_equal": np.less_equal,
    "relax.greater": np.greater,
    "relax.greater_equal": np.greater_equal,
    "relax.divide": _quiet(_divide),
    "relax.power": _quiet(_same(np.power)),
    "relax.floor_mod": _quiet(np.mod),
    "relax.mod": _quiet(truncated_remainder),
    "relax.where": np.where,
    "relax.einsum": lambda *xs, subscripts: np.einsum(str(subscripts), *xs),
    "relax.astype": lambda x, *, dtype: x.astype(str(dtype)),
    "relax.nn.gelu": gelu,
    "relax.nn.gelu_tanh": gelu_tanh,
    "relax.nn.softplus": softplus,
    "relax.nn.log_softmax": log_softmax,
    "relax.nn.layer_norm": layer_norm,
    "relax.nn.rms_norm": rms_norm,
    "relax.sum": _reduction(np.sum),
    "relax.prod": _reduction(np.prod),
    "relax.max": _reduction(np.max),
    "relax.min": _reduction(np.min),
    "relax.variance": _reduction(np.var),
    "relax.argmax": _position(np.argmax),
    "relax.argmin": _position(np.argmin),
    "relax.cumsum": running(np.cumsum, 0),
    "relax.cumprod": running(np.cumprod, 1),
}
