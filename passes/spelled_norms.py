"""Recognises a root-mean-square norm that is written out in float operators."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tvm
from tvm import relax

from nybble.ir import graph
from nybble.ir.graph import Emitter
from nybble.passes.base import module_pass
from nybble.passes.drop_identities import drop_unread
from nybble.passes.fold_batch_norm import Vector, affine
from nybble.passes.view import View, first_variable, per_channel


@module_pass
def fuse_rms_norm(mod: tvm.IRModule) -> tvm.IRModule:
    """Gives root-mean-square norms over the last axis one form.

    A value inside of a norm that others read as well is still computed, for them.

    before: x * rsqrt(mean(x * x, -1) + e) * gamma, gamma * (x / sqrt(…)), x * (1 / sqrt(…) * gamma)
    --->
    after: rms_norm(x, gamma, e)
    """
    found = _norms(mod)
    now = {str(param.name): param for param in graph.inputs(mod)}

    def visit(emitter: Emitter, name: str, call: Any) -> Any:
        norm = found.get(name)
        if norm is not None:
            gamma = graph.constant(norm.gamma, "float32")
            call = relax.op.nn.rms_norm(now[str(norm.x.name)], gamma, [-1], norm.epsilon)
        now[name] = emitter.emit(call, name)
        return now[name]

    return drop_unread(graph.rewrite(mod, visit))


@dataclass(frozen=True)
class _Norm:
    """x / √(mean(x²) + epsilon) · gamma along the last axis.

    Attributes:
        x: variable of the tensor.
        gamma: (channels,).
        epsilon: above 0.
    """

    x: Any
    gamma: Vector
    epsilon: float


def _norms(mod: tvm.IRModule) -> dict[str, _Norm]:
    """Every norm by the name of its result: the product with gamma where only that reads it."""
    view, found = View(mod), dict[str, _Norm]()
    spelled = _Spelled(view)
    for name, call in view.calls.items():
        norm = spelled.norm(call)
        inner, scale = spelled.scaled(view.variables[name])
        source = "" if inner is None else str(inner.name)
        if source in found and view.sole_reader(source) == name:
            norm = replace(found[source], gamma=found[source].gamma * scale)
        if norm is not None:
            found[name] = norm
    return found


class _Spelled:
    """Reads the operators of a module, from results to operands."""

    def __init__(self, view: View):
        self.calls = {view.variables[name]: call for name, call in view.calls.items()}

    def norm(self, call: Any) -> _Norm | None:
        """The norm that a product or quotient spells out."""
        for y, s, scale in self._quotients(call):
            for x, inner in ((y, np.ones(1)), self.scaled(y)):
                epsilon = self._epsilon(x, s) if _has_channels(x) else None
                if epsilon is not None and graph.shape_of(x) == graph.shape_of(call):
                    channels = int(graph.shape_of(x)[-1])
                    return _Norm(x, np.broadcast_to(inner * scale, channels), epsilon)
        return None

    def scaled(self, y: Any) -> tuple[Any, Vector]:
        """(x, c) of y = x · c with a constant for each channel, else (None, …)."""
        call: Any = self.calls.get(y)
        found = None if call is None else affine(call)
        if found is None or np.any(found[1]):
            return None, np.ones(1)
        return first_variable(call), found[0]

    def _quotients(self, call: Any) -> Iterator[tuple[Any, Any, Vector]]:
        """Every (y, s, c) for which a call is y / √s · c."""
        for left, right in _orders(call, "relax.divide"):
            yield left, self._under_root(right), np.ones(1)
        for left, right in _orders(call, "relax.multiply"):
            yield left, self._under_inverse_root(right), np.ones(1)
            for inverse, constant in _orders(self.calls.get(right), "relax.multiply"):
                scale = per_channel(constant, graph.shape_of(call)[-1])
                if scale is not None:
                    yield left, self._under_inverse_root(inverse), scale

    def _under_root(self, root: Any) -> Any:
        """The s of √s and s^½, else None."""
        call: Any = self.calls.get(root)
        is_root = graph.op_name(call) == "relax.sqrt" or _exponent(call) == 0.5
        return call.args[0] if is_root else None

    def _under_inverse_root(self, inverse: Any) -> Any:
        """The s of 1 / √s and s^-½, else None."""
        call: Any = self.calls.get(inverse)
        if graph.op_name(call) == "relax.divide" and _number(call.args[0]) == 1:
            return self._under_root(call.args[1])
        is_inverse = graph.op_name(call) == "relax.rsqrt" or _exponent(call) == -0.5
        return call.args[0] if is_inverse else None

    def _epsilon(self, x: Any, s: Any) -> float | None:
        """The e for which s = mean(x², -1) + e and e > 0, else None."""
        for mean, constant in _orders(self.calls.get(s), "relax.add"):
            epsilon = _number(constant)
            if epsilon is not None and epsilon > 0 and self._is_mean_of_squares(mean, x):
                return epsilon
        return None

    def _is_mean_of_squares(self, mean: Any, x: Any) -> bool:
        call: Any = self.calls.get(mean)
        if graph.op_name(call) != "relax.mean":
            return False
        attrs, rank = graph.attributes(call), len(graph.shape_of(x))
        is_last = [axis % rank for axis in attrs["axis"] or ()] == [rank - 1]
        return is_last and attrs["keepdims"] and self._is_square(call.args[0], x)

    def _is_square(self, square: Any, x: Any) -> bool:
        call: Any = self.calls.get(square)
        if graph.op_name(call) == "relax.square" or _exponent(call) == 2:
            return bool(call.args[0].same_as(x))
        factors = call.args if graph.op_name(call) == "relax.multiply" else ()
        return bool(factors) and all(factor.same_as(x) for factor in factors)


def _has_channels(x: Any) -> bool:
    """Whether x is a tensor of floats with a known number of channels."""
    is_float = isinstance(x, relax.Var) and graph.dtype_of(x) == "float32"
    return is_float and any(isinstance(extent, int) for extent in graph.shape_of(x)[-1:])


def _orders(call: Any, op: str) -> Iterator[tuple[Any, Any]]:
    """The operands of a call of ``op`` in every order that means the same."""
    if graph.op_name(call) == op:
        yield call.args[0], call.args[1]
        if op != "relax.divide":
            yield call.args[1], call.args[0]


def _exponent(call: Any) -> float | None:
    """That of a power, else None."""
    return _number(call.args[1]) if graph.op_name(call) == "relax.power" else None


def _number(expr: Any) -> float | None:
    """The value of a constant of one number, else None."""
    if not graph.is_constant(expr) or graph.numpy_of(expr).size != 1:
        return None
    return float(graph.numpy_of(expr).item())
