"""exp, sigmoid, tanh, erf and what is made of them, in float32 arithmetic that vectorises.

LLVM turns the C library's functions into one scalar call a lane. Instead:

    exp(x)     = 2^n · p(r),  n = rint(x / ln 2),  r = x - n·ln 2 in two parts    (Cephes' expf)
    tanh, erf  = x · P(x²) / Q(x²) for clamped x                                 (Eigen's, XLA's)

The errors, relative for exp and tanh and absolute for erf, stay below 4e-7. NaN remains NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import relax, te, tirx

from nybble.ir import graph

LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4
EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5)
LOWEST, HIGHEST = -86.6, 88.8  # below, 2.5e-38 stands for less; above, 2^128 overflows to infinity
TANH = (
    (-2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-08,
     1.48572235717979e-05, 6.37261928875436e-04, 4.89352455891786e-03),
    (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03),
)  # fmt: skip
ERF = (
    (-2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05,
     -7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02),
    (-1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03,
     -1.42647390514189e-02),
)  # fmt: skip


def _f32(value: float) -> Any:
    return tirx.const(value, "float32")


def _between(x: Any, low: float, high: float) -> Any:
    """The clamp that lets NaN through."""
    x = tirx.Select(x < _f32(low), _f32(low), x)
    return tirx.Select(x > _f32(high), _f32(high), x)


def _polynomial(x: Any, coefficients: tuple[float, ...]) -> Any:
    total = _f32(coefficients[0])
    for coefficient in coefficients[1:]:
        total = total * x + _f32(coefficient)
    return total


def _stage(x: te.Tensor, value: Callable[[Any], Any], name: str) -> te.Tensor:
    return te.compute(x.shape, lambda *index: value(x(*index)), name)


def exp(x: te.Tensor) -> te.Tensor:
    """e^x."""
    clamped = _stage(x, lambda v: _between(v, LOWEST, HIGHEST), "clamped")
    whole = _stage(clamped, lambda v: tirx.nearbyint(v * _f32(1.44269504088896341)), "whole")

    def rest(*index: Any) -> Any:
        n = whole(*index)
        return clamped(*index) - n * _f32(LN2_HIGH) - n * _f32(LN2_LOW)

    r = te.compute(x.shape, rest, "rest")

    def value(*index: Any) -> Any:
        v = r(*index)
        bits = (whole(*index).astype("int32") + 126) << 23  # 2^(n-1): 2^128 would not be finite
        power = tirx.reinterpret("float32", bits)
        return (_polynomial(v, EXP) * v * v + v + _f32(1.0)) * power * _f32(2.0)

    return te.compute(x.shape, value, "exp")


def sigmoid(x: te.Tensor) -> te.Tensor:
    """1 / (1 + e^-x)."""
    power = exp(_stage(x, lambda v: -v, "negated"))
    return _stage(power, lambda v: _f32(1.0) / (_f32(1.0) + v), "sigmoid")


def _rational(
    x: te.Tensor, bound: float, ratio: tuple[tuple[float, ...], ...], name: str
) -> te.Tensor:
    clamped = _stage(x, lambda v: _between(v, -bound, bound), "clamped")
    square = _stage(clamped, lambda v: v * v, "square")

    def value(*index: Any) -> Any:
        above, below = (_polynomial(square(*index), part) for part in ratio)
        return clamped(*index) * above / below

    return te.compute(x.shape, value, name)


def tanh(x: te.Tensor) -> te.Tensor:
    """The hyperbolic tangent."""
    return _rational(x, 9.0, TANH, "tanh")


def erf(x: te.Tensor) -> te.Tensor:
    """The error function."""
    return _rational(x, 4.0, ERF, "erf")


def silu(x: te.Tensor) -> te.Tensor:
    """Sigmoid linear unit: x · sigmoid(x)."""
    gate = sigmoid(x)
    return te.compute(x.shape, lambda *i: x(*i) * gate(*i), "silu")


def gelu(x: te.Tensor) -> te.Tensor:
    """Gaussian error linear unit: x / 2 · (1 + erf(x / √2))."""
    gate = erf(_stage(x, lambda v: v * _f32(0.7071067811865476), "scaled"))
    return te.compute(x.shape, lambda *i: x(*i) * (gate(*i) * _f32(0.5) + _f32(0.5)), "gelu")


def softmax(x: te.Tensor, axis: int) -> te.Tensor:
    """e^(x - max) / Σ along an axis."""
    axis %= len(x.shape)

    def reduced(over: te.Tensor, combine: Callable[..., Any], name: str) -> te.Tensor:
        k = te.reduce_axis((0, x.shape[axis]), "k")
        shape = [d for i, d in enumerate(x.shape) if i != axis]
        return te.compute(
            shape, lambda *i: combine(over(*i[:axis], k, *i[axis:]), axis=k), name
        )  # fmt: skip

    def without(index: tuple[Any, ...]) -> tuple[Any, ...]:
        return (*index[:axis], *index[axis + 1 :])

    most = reduced(x, te.max, "most")
    power = exp(te.compute(x.shape, lambda *i: x(*i) - most(*without(i)), "centred"))
    total = reduced(power, te.sum, "total")
    return te.compute(x.shape, lambda *i: power(*i) / total(*without(i)), "softmax")


def _plain(function: Callable[[te.Tensor], te.Tensor]) -> Callable[[Any, relax.Call], Any]:
    return lambda builder, call: builder.call_te(function, call.args[0])


def _softmax(builder: Any, call: relax.Call) -> Any:
    return builder.call_te(softmax, call.args[0], graph.attributes(call)["axis"])


def _extreme(call: relax.Call, is_max: bool) -> Callable[[te.Tensor], te.Tensor]:
    """Largest or smallest elements, infinite where all are: TVM's own begin with float32's limits.

    The neutral element is spelled as bits, which C and CUDA write like any other number.
    """
    attrs = graph.attributes(call)
    bits = tirx.const(0xFF800000 if is_max else 0x7F800000, "uint32")
    combine = te.comm_reducer(
        lambda a, b: tirx.max(a, b) if is_max else tirx.min(a, b),
        lambda t: tirx.reinterpret(t, bits), name="extreme",
    )  # fmt: skip

    def extreme(x: te.Tensor) -> te.Tensor:
        rank = len(x.shape)
        given = range(rank) if attrs["axis"] is None else attrs["axis"]
        along = {int(axis) % rank: te.reduce_axis((0, x.shape[int(axis)])) for axis in given}
        kept = [i for i in range(rank) if i not in along]
        whole = bool(attrs["keepdims"])
        shape = [1 if i in along else x.shape[i] for i in (range(rank) if whole else kept)]

        def value(*index: Any) -> Any:
            place = {axis: index[axis if whole else i] for i, axis in enumerate(kept)} | along
            return combine(x(*(place[i] for i in range(rank))), axis=list(along.values()))

        return te.compute(shape, value, "extreme")

    return extreme


def _largest(builder: Any, call: relax.Call) -> Any:
    return builder.call_te(_extreme(call, is_max=True), call.args[0])


def _smallest(builder: Any, call: relax.Call) -> Any:
    return builder.call_te(_extreme(call, is_max=False), call.args[0])


LEGALIZATIONS: dict[str, Callable[[Any, relax.Call], Any]] = {
    "relax.exp": _plain(exp),
    "relax.sigmoid": _plain(sigmoid),
    "relax.tanh": _plain(tanh),
    "relax.erf": _plain(erf),
    "relax.nn.silu": _plain(silu),
    "relax.nn.gelu": _plain(gelu),
    "relax.nn.softmax": _softmax,
    "relax.max": _largest,
    "relax.min": _smallest,
}
"""How these ops of float32 become functions."""
