"""Element-wise operators of ONNX, comparisons, logic and casts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import TensorProto
from tvm import relax

from nybble.frontend import extents, general
from nybble.frontend.build import Builder, Value, dtype_of
from nybble.frontend.extents import Refused
from nybble.frontend.onnx_node import Node

Convert = Callable[[Node, Builder], Value]
TYPES = {
    **{TensorProto.DataType.Value(name.upper()): name
       for name in ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32",
                    "uint64")},
    **dict.fromkeys((TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE,
                     TensorProto.BFLOAT16), "float32"),
}  # fmt: skip
"""ONNX's types as they are inside a network: every float is float32."""


def _unary(function: Callable[[Any], Any]) -> Convert:
    return lambda node, build: build.emit(function(node.input(0)), node.name)


def _rounding(function: Callable[[Any], Any]) -> Convert:
    """A function that leaves integers as they are."""

    def convert(node: Node, build: Builder) -> Value:
        x = node.input(0)
        return build.emit(function(x), node.name) if dtype_of(x) == "float32" else x

    return convert


def _binary(op: str) -> Convert:
    return lambda node, build: build.binary(op, node.input(0), node.input(1), node.name)


def _variadic(op: str) -> Convert:
    def convert(node: Node, build: Builder) -> Value:
        result, *others = sorted(node.inputs, key=lambda v: not isinstance(v, relax.Var))
        for other in others:
            result = build.binary(op, result, other, node.name)
        return result

    return convert


def _mean(node: Node, _build: Builder) -> Value:
    return node.op("Mul", node.op("Sum", *node.inputs), 1 / len(node.inputs))


def _not_equal_sides(op: str) -> Convert:
    """Arithmetic of truth values, which Relax's comparisons do not take."""

    def convert(node: Node, build: Builder) -> Value:
        left, right = node.inputs
        if "bool" in (dtype_of(left), dtype_of(right)):
            left, right = (_as_integers(build, v, f"{node.name}.integers") for v in (left, right))
        return build.binary(op, left, right, node.name)

    return convert


def _as_integers(build: Builder, value: Value, name: str) -> Value:
    if isinstance(value, relax.Var):
        return build.cast(value, "int8", name)
    return np.asarray(value).astype(np.int8)


# ---------------------------------------------------------------- powers and remainders


def _pow(node: Node, build: Builder) -> Value:
    x, power = node.inputs
    if isinstance(power, np.ndarray) and power.size == 1 and extents.rank(power) <= extents.rank(x):
        exponent = float(power.reshape(()))
        if exponent == 1:
            return x
        if exponent == 2:
            return build.binary("multiply", x, x, node.name)
        if exponent == 0.5 and dtype_of(x) == "float32":
            return build.emit(relax.op.sqrt(x), node.name)
    dtype = dtype_of(x)
    base, exponents = (_float(build, v, node.name) for v in (x, power))
    raised = build.binary("power", base, exponents, node.name)
    # powers are computed in float, as ONNX Runtime does
    return raised if dtype == "float32" else build.cast(
        build.emit(relax.op.round(raised), f"{node.name}.round"), dtype, f"{node.name}.{dtype}"
    )  # fmt: skip


def _float(build: Builder, value: Value, name: str) -> Value:
    if isinstance(value, relax.Var):
        return build.cast(value, "float32", f"{name}.float")
    return np.asarray(value, np.float32)


def _mod(node: Node, build: Builder) -> Value:
    x, y = node.input(0), node.input(1)
    is_float = dtype_of(x if isinstance(x, relax.Var) else y) == "float32"
    if not is_float or node.attr("fmod", 0):
        op = "mod" if node.attr("fmod", 0) else "floor_mod"
        return build.binary(op, x, y, node.name)
    # Of the sign of y. By quotients, infinite divisors would give NaN.
    rest = build.binary("mod", x, y, f"{node.name}.rest")
    moved = build.binary("add", rest, y, f"{node.name}.moved")
    signs = [build.binary(op, rest, 0.0, f"{node.name}.{op}") for op in ("less", "greater")]
    above, below = (
        build.where(sign, moved, rest, f"{node.name}.{side}")
        for sign, side in zip(signs, ("above", "below"), strict=True)
    )
    is_below = build.binary("less", y, 0.0, f"{node.name}.divisor")
    return build.where(is_below, below, above, node.name)


def _reciprocal(node: Node, build: Builder) -> Value:
    return build.binary("divide", np.float32(1), node.input(0), node.name)


def _shift(node: Node, build: Builder) -> Value:
    """Shifts by at least the width, or by negative numbers, leave nothing but the sign."""
    x, steps = node.inputs
    dtype, is_left = dtype_of(x), node.attrs["direction"] == "LEFT"
    last = np.array(np.iinfo(dtype).bits - 1, dtype)
    inside = node.op("Min.inside", steps, last)
    if not dtype.startswith("u"):
        below = build.binary("less", inside, 0, f"{node.name}.below")
        inside = build.where(below, last, inside, f"{node.name}.steps")
    shifted = build.binary("left_shift" if is_left else "right_shift", x, inside, node.name)
    if not is_left and not dtype.startswith("u"):
        return shifted
    same = build.binary("equal", inside, steps, f"{node.name}.same")
    return build.where(same, shifted, np.zeros((), dtype), f"{node.name}.kept")


# ---------------------------------------------------------------- activations


def _clip(node: Node, build: Builder) -> Value:
    bounds = [
        node.attrs[name] if name in node.attrs else node.input(index)
        for index, name in ((1, "min"), (2, "max"))
    ]
    x = node.input(0)
    if dtype_of(x) == "float32" and not any(isinstance(b, relax.Var) for b in bounds):
        low, high = (None if b is None else float(np.asarray(b).reshape(())) for b in bounds)
        if low is not None and high is not None and low > high:
            low = high  # ONNX defines it so
        return build.clip(x, low, high, node.name)
    for op, bound in zip(("maximum", "minimum"), bounds, strict=True):
        x = x if bound is None else build.binary(op, x, bound, node.name)
    return x


def _leaky_relu(node: Node, build: Builder) -> Value:
    alpha = node.attr("alpha", 0.01)
    return build.emit(relax.op.nn.leakyrelu(node.input(0), alpha), node.name)


def _hard_sigmoid(node: Node, build: Builder) -> Value:
    alpha, beta = node.attr("alpha", 0.2), node.attr("beta", 0.5)
    return build.hard_sigmoid(node.input(0), alpha, beta, node.name)


def _prelu(node: Node, build: Builder) -> Value:
    """The operand where positive, slope·x elsewhere."""
    x, slope = node.inputs
    is_float = isinstance(x, relax.Var) and dtype_of(x) == "float32"
    if is_float and isinstance(slope, np.ndarray) and np.isfinite(slope).all():
        return general.prelu(build, x, slope, node.name)
    steep = build.binary("multiply", x, slope, f"{node.name}.slope")
    positive = build.binary("greater_equal", x, 0, f"{node.name}.positive")
    return build.where(positive, x, steep, node.name)


def _exponential(alpha: float, gamma: float) -> Convert:
    """γ·x where positive, γ·α·(e^x - 1) elsewhere: Elu and Selu."""

    def convert(node: Node, build: Builder) -> Value:
        x, a, g = node.input(0), node.attr("alpha", alpha), node.attr("gamma", gamma)
        power = build.emit(relax.op.exp(node.op("Min.low", x, 0.0)), f"{node.name}.exp")
        negative = node.op("Mul.negative", node.op("Sub.less", power, 1.0), float(a * g))
        positive = node.op("Mul.positive", node.op("Relu", x), float(g)) if g != 1 else (
            node.op("Relu", x)
        )  # fmt: skip
        return build.binary("add", positive, negative, node.name)

    return convert


def _celu(node: Node, build: Builder) -> Value:
    x, alpha = node.input(0), float(node.attr("alpha", 1.0))
    inner = node.op("Div.alpha", node.op("Min.low", x, 0.0), alpha)
    power = build.emit(relax.op.exp(inner), f"{node.name}.exp")
    negative = node.op("Mul.negative", node.op("Sub.less", power, 1.0), alpha)
    return build.binary("add", node.op("Relu", x), negative, node.name)


def _gelu(node: Node, build: Builder) -> Value:
    tanh = node.attr("approximate", "none") == "tanh"
    function = relax.op.nn.gelu_tanh if tanh else relax.op.nn.gelu
    return build.emit(function(node.input(0)), node.name)


def _swish(node: Node, build: Builder) -> Value:
    alpha = float(node.attr("alpha", 1.0))
    if alpha == 1:
        return build.emit(relax.op.nn.silu(node.input(0)), node.name)
    gate = node.op("Sigmoid.gate", node.op("Mul.alpha", node.input(0), alpha))
    return build.binary("multiply", node.input(0), gate, node.name)


def _softplus(node: Node, build: Builder) -> Value:
    return build.emit(relax.op.nn.softplus(node.input(0)), node.name)


def _mish(node: Node, build: Builder) -> Value:
    gate = node.op("Tanh.gate", node.op("Softplus", node.input(0)))
    return build.binary("multiply", node.input(0), gate, node.name)


def _softsign(node: Node, build: Builder) -> Value:
    x = node.input(0)
    return build.binary("divide", x, node.op("Add.one", node.op("Abs", x), 1.0), node.name)


def _threshold(node: Node, build: Builder) -> Value:
    x = node.input(0)
    above = build.binary("greater", x, float(node.attr("alpha", 1.0)), f"{node.name}.above")
    return build.where(above, x, np.float32(0), node.name)


def _shrink(node: Node, build: Builder) -> Value:
    x, bias, limit = node.input(0), float(node.attr("bias", 0.0)), float(node.attr("lambd", 0.5))
    below = build.binary("less", x, -limit, f"{node.name}.below")
    above = build.binary("greater", x, limit, f"{node.name}.above")
    dtype = dtype_of(x)
    up, down = node.op("Add.up", x, bias), node.op("Sub.down", x, bias)
    inner = build.where(above, down, np.zeros((), dtype), f"{node.name}.inner")
    return build.where(below, up, inner, node.name)


# ---------------------------------------------------------------- types and choices


def _cast(node: Node, build: Builder) -> Value:
    return cast_to(build, node.input(0), node.attrs["to"], node.name)


def cast_to(build: Builder, x: Value, code: int, name: str) -> Value:
    """A value as another of ONNX's types.

    Raises:
        Refused: strings, and types below 8 bits or of 8-bit floats.
    """
    if code not in TYPES:
        raise Refused(f"casts to {TensorProto.DataType.Name(code)}; integers of 8 bits and more, "
                      "bool and floats of 16 and more are supported")  # fmt: skip
    return build.cast(x, TYPES[code], name)


def _cast_like(node: Node, build: Builder) -> Value:
    x, like = node.inputs
    dtype = dtype_of(like)
    if dtype not in TYPES.values():
        raise Refused(f"casts to {dtype}")
    return build.cast(x, dtype, node.name)


def _where(node: Node, build: Builder) -> Value:
    condition, yes, no = node.inputs
    return build.where(condition, yes, no, node.name)


def _not(node: Node, build: Builder) -> Value:
    return build.emit(relax.op.logical_not(node.input(0)), node.name)


def _is_inf(node: Node, build: Builder) -> Value:
    x = node.input(0)
    found = build.emit(relax.op.isinf(x), node.name)
    for attr, op in (("detect_negative", "greater"), ("detect_positive", "less")):
        if not node.attr(attr, 1):
            side = build.binary(op, x, 0, f"{node.name}.side")
            found = build.binary("logical_and", found, side, f"{node.name}.sided")
    return found


def _dropout(node: Node, build: Builder) -> Value:
    training = node.constant(2)
    if training is not None and training.any():
        ratio = node.constant(1)
        if ratio is None or float(ratio) != 0:
            raise Refused("is in training mode; export the network in eval mode")
    x = node.input(0)
    if len(node.read) > 1 and node.read[1]:
        mask = build.emit(relax.op.equal(x, x), f"{node.name}.mask")  # nothing is dropped
        return x, build.binary("logical_or", mask, True, f"{node.name}.kept")
    return x


def _bitcast(_node: Node, _build: Builder) -> Value:
    raise Refused("reinterprets bits; cast instead")


MATH: dict[str, Convert] = {
    **{name: _unary(getattr(relax.op, name.lower())) for name in (
        "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Cos", "Cosh", "Erf", "Exp",
        "IsNaN", "Log", "Sigmoid", "Sign", "Sin", "Sinh", "Sqrt", "Tan", "Tanh",
    )},
    **{name: _rounding(getattr(relax.op, name.lower())) for name in ("Ceil", "Floor", "Round")},
    **{name: _not_equal_sides(op) for name, op in {
        "Equal": "equal", "Greater": "greater", "GreaterOrEqual": "greater_equal",
        "Less": "less", "LessOrEqual": "less_equal",
    }.items()},
    **{name: _binary(op) for name, op in {
        "Add": "add", "And": "logical_and", "BitwiseAnd": "bitwise_and",
        "BitwiseOr": "bitwise_or", "BitwiseXor": "bitwise_xor", "Div": "divide",
        "Mul": "multiply", "Or": "logical_or", "Sub": "subtract", "Xor": "logical_xor",
    }.items()},
    **{name: _variadic(op) for name, op in {
        "Max": "maximum", "Min": "minimum", "Sum": "add",
    }.items()},
    "BitCast": _bitcast,
    "BitShift": _shift,
    "BitwiseNot": _unary(relax.op.bitwise_not),
    "Cast": _cast,
    "CastLike": _cast_like,
    "Celu": _celu,
    "Clip": _clip,
    "Dropout": _dropout,
    "Elu": _exponential(1.0, 1.0),
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda node, build: build.hard_swish(node.input(0), node.name),
    "Identity": lambda node, _build: node.input(0),
    "IsInf": _is_inf,
    "LeakyRelu": _leaky_relu,
    "Mean": _mean,
    "Mish": _mish,
    "Mod": _mod,
    "Neg": lambda node, build: build.emit(relax.op.negative(node.input(0)), node.name),
    "Not": _not,
    "PRelu": _prelu,
    "Pow": _pow,
    "Reciprocal": _reciprocal,
    "Relu": lambda node, build: build.relu(node.input(0), node.name),
    "Selu": _exponential(1.67326319217681884765625, 1.05070102214813232421875),
    "Shrink": _shrink,
    "Softplus": _softplus,
    "Softsign": _softsign,
    "Swish": _swish,
    "ThresholdedRelu": _threshold,
    "Where": _where,
}  # fmt: skip
"""Operators by name."""
