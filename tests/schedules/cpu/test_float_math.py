"""Vectorised exp and its relatives: close to float64 everywhere, right at the ends."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tvm import relax

from nybble.ir import graph
from tests.schedules.modules import Compiled, module

pytestmark = pytest.mark.sweep

Array = NDArray[Any]
ERF = np.vectorize(math.erf)
OPS: dict[str, tuple[Callable[[Any], Any], Callable[[Array], Array]]] = {
    "exp": (relax.op.exp, np.exp),
    "sigmoid": (relax.op.sigmoid, lambda x: 1 / (1 + np.exp(-x))),
    "tanh": (relax.op.tanh, np.tanh),
    "erf": (relax.op.erf, ERF),
    "silu": (relax.op.nn.silu, lambda x: x / (1 + np.exp(-x))),
    "gelu": (relax.op.nn.gelu, lambda x: x / 2 * (1 + ERF(x / math.sqrt(2)))),
}
POINTS = np.concatenate(
    [np.linspace(-86, 88, 4000), np.linspace(-6, 6, 4000), np.geomspace(1e-30, 1, 80), [0.0, -0.0]]
).astype(np.float32)


def run(op: Callable[[Any], Any], x: Array) -> Array:
    def body(e: graph.Emitter, given: Any) -> Any:
        return e.emit(op(given), "y")

    return Compiled(module(body, (x.shape[1:], "float32"), stage="float"))([x])


@pytest.mark.parametrize("name", OPS)
def test_close_to_float64(name: str) -> None:
    op, law = OPS[name]
    with np.errstate(over="ignore"):
        want = law(POINTS.astype(np.float64))
    absolute = {"exp": 0, "tanh": 0, "gelu": 1.5e-6}.get(name, 4e-7)  # gelu: x / 2 times erf's
    np.testing.assert_allclose(run(op, POINTS[None])[0], want, rtol=6e-7, atol=absolute)


@pytest.mark.parametrize("name", OPS)
def test_the_ends(name: str) -> None:
    op, law = OPS[name]
    ends = np.array([[-np.inf, -1e30, -100, 100, 1e30, np.inf, np.nan]], np.float32)
    with np.errstate(all="ignore"):
        want = law(ends.astype(np.float64)).astype(np.float32)
    if name in ("silu", "gelu"):
        ends, want = ends[:, 1:], want[:, 1:]  # -inf · 0 is NaN, as in the float law
    np.testing.assert_allclose(run(op, ends), want, rtol=1e-6, atol=1e-35)


@pytest.mark.parametrize("axis", [-1, 1, 2])
def test_softmax(axis: int) -> None:
    x = np.random.default_rng(0).normal(0, 30, (3, 5, 7, 33)).astype(np.float32)
    powers = np.exp(x.astype(np.float64) - x.max(axis, keepdims=True))
    want = powers / powers.sum(axis, keepdims=True)
    got = run(lambda given: relax.op.nn.softmax(given, axis), x)
    np.testing.assert_allclose(got, want, rtol=4e-6, atol=1e-30)
