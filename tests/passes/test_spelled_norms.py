"""RMS norms written out in float operators become one; what only looks like a norm does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tvm import relax

from nybble.ir import graph, interpreter
from nybble.passes import pipeline
from nybble.passes.spelled_norms import fuse_rms_norm
from tests.passes.nets import Net, names, op_names

WIDTH, EPSILON = 12, 1e-3
op = relax.op
GAMMA = np.linspace(-1.5, 2, WIDTH).astype(np.float32)
Spelling = Callable[["Norm"], Any]


class Norm(Net):
    """Norms of x (n, 5, WIDTH), operator by operator."""

    def __init__(self) -> None:
        super().__init__(5, WIDTH, inputs=("x", "other"))

    @property
    def other(self) -> Any:
        return self.params[1]

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Emits an operator; numbers are float constants."""
        return lambda *args, **attrs: self.emit(
            name, getattr(op, name)(*map(self._operand, args), **attrs)
        )

    def _operand(self, value: Any) -> Any:
        is_plain = isinstance(value, float | np.ndarray)
        return graph.constant(value, "float32") if is_plain else value

    def mean(self, square: Any = None, axis: Any = -1) -> Any:
        square = self.multiply(self.x, self.x) if square is None else square
        return self.emit("mean", op.mean(square, axis, keepdims=True))

    def sum(self, square: Any = None, axis: Any = -1, epsilon: Any = EPSILON) -> Any:
        """mean(square) + epsilon."""
        return self.add(self.mean(square, axis), epsilon)


SPELLINGS: dict[str, Spelling] = {
    "llama": lambda n: n.multiply(GAMMA, n.multiply(n.x, n.rsqrt(n.sum()))),
    "1 / sqrt": lambda n: n.multiply(n.multiply(n.x, n.divide(1.0, n.sqrt(n.sum()))), GAMMA),
    "x / sqrt": lambda n: n.multiply(n.divide(n.x, n.sqrt(n.sum())), GAMMA),
    "power": lambda n: n.multiply(GAMMA, n.multiply(n.power(n.sum(), -0.5), n.x)),
    "root as power": lambda n: n.multiply(GAMMA, n.divide(n.x, n.power(n.sum(), 0.5))),
    "pow(x, 2)": lambda n: n.multiply(GAMMA, n.multiply(n.x, n.rsqrt(n.sum(n.power(n.x, 2.0))))),
    "square": lambda n: n.multiply(GAMMA, n.multiply(n.x, n.rsqrt(n.sum(n.square(n.x), axis=2)))),
    "epsilon first": lambda n: n.multiply(n.divide(n.x, n.sqrt(n.add(EPSILON, n.mean()))), GAMMA),
    "x · gamma first": lambda n: n.multiply(n.multiply(GAMMA, n.x), n.rsqrt(n.sum())),
    "inverse · gamma first": lambda n: n.multiply(n.x, n.multiply(n.rsqrt(n.sum()), GAMMA)),
    "gamma behind a quotient": lambda n: n.divide(n.multiply(n.x, GAMMA), n.sqrt(n.sum())),
}  # fmt: skip


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_becomes_one_op(name: str) -> None:
    after = _same(*_module(SPELLINGS[name]))
    assert op_names(after) == ["nn.rms_norm"]
    call = graph.bindings(after)[0].value
    assert graph.attributes(call)["epsilon"] == pytest.approx(EPSILON)
    np.testing.assert_array_equal(graph.numpy_of(call.args[1]), GAMMA)


def test_without_gamma_it_is_one() -> None:
    after = _same(*_module(lambda n: n.multiply(n.x, n.rsqrt(n.sum()))))
    assert op_names(after) == ["nn.rms_norm"]
    assert np.all(graph.numpy_of(graph.bindings(after)[0].value.args[1]) == 1)


def test_a_divisor_is_part_of_gamma() -> None:
    after = _same(*_module(lambda n: n.divide(n.multiply(n.x, n.rsqrt(n.sum())), 4.0)))
    assert op_names(after) == ["nn.rms_norm"]
    assert np.all(graph.numpy_of(graph.bindings(after)[0].value.args[1]) == 0.25)


NEAR: dict[str, Spelling] = {
    "another axis": lambda n: n.multiply(n.x, n.rsqrt(n.sum(axis=1))),
    "two axes": lambda n: n.multiply(n.x, n.rsqrt(n.sum(axis=[1, 2]))),
    "a product of two tensors": lambda n: n.multiply(n.x, n.rsqrt(n.sum(n.multiply(n.x, n.other)))),
    "the other's norm": lambda n: n.multiply(n.other, n.rsqrt(n.sum())),
    "a cube": lambda n: n.multiply(n.x, n.rsqrt(n.sum(n.power(n.x, 3.0)))),
    "no epsilon": lambda n: n.multiply(n.x, n.rsqrt(n.mean())),
    "a negative epsilon": lambda n: n.multiply(n.x, n.rsqrt(n.sum(epsilon=-1e-6))),
    "one epsilon for each channel": lambda n: n.multiply(n.x, n.rsqrt(n.sum(epsilon=abs(GAMMA)))),
    "the root itself": lambda n: n.multiply(n.x, n.sqrt(n.sum())),
    "the root above": lambda n: n.divide(n.sqrt(n.sum()), n.x),
    "two over the root": lambda n: n.multiply(n.x, n.divide(2.0, n.sqrt(n.sum()))),
    "a shifted tensor": lambda n: n.multiply(n.add(n.x, GAMMA), n.rsqrt(n.sum())),
}


@pytest.mark.parametrize("name", NEAR)
def test_what_only_looks_like_a_norm_stays(name: str) -> None:
    mod, feeds = _module(NEAR[name])
    assert op_names(_same(mod, feeds)) == op_names(mod)


def test_values_that_others_read_stay() -> None:
    net = Norm()
    mean = net.sum()
    normal = net.multiply(net.x, net.rsqrt(mean))
    mod = net.done(mean, net.multiply(normal, GAMMA))
    assert op_names(_same(mod, _feeds())) == ["multiply", "mean", "add", "nn.rms_norm"]


def test_a_normal_that_two_scales_read_is_computed_once() -> None:
    net = Norm()
    normal = net.multiply(net.x, net.rsqrt(net.sum()))
    mod = net.done(net.multiply(normal, GAMMA), net.multiply(normal, -GAMMA))
    assert op_names(_same(mod, _feeds())) == ["nn.rms_norm", "multiply", "multiply"]


def test_a_norm_of_a_norm() -> None:
    net = Norm()
    inner = net.multiply(net.multiply(net.x, net.rsqrt(net.sum())), GAMMA)
    root = net.rsqrt(net.sum(net.square(inner)))
    after = _same(net.done(net.multiply(inner, root)), _feeds())
    assert op_names(after) == ["nn.rms_norm", "nn.rms_norm"]


def test_the_name_is_that_of_the_last_step() -> None:
    mod, feeds = _module(SPELLINGS["llama"])
    assert names(_same(mod, feeds)) == names(mod)[-1:]


def test_it_is_one_of_the_passes() -> None:
    mod, _ = _module(SPELLINGS["llama"])
    assert op_names(pipeline.canonicalize(mod)) == ["nn.rms_norm"]


def _module(spelling: Spelling) -> tuple[Any, Any]:
    net = Norm()
    return net.done(spelling(net)), _feeds()


def _feeds() -> list[Any]:
    random = np.random.default_rng(5)
    return [random.uniform(0.5, 2, (2, 5, WIDTH)).astype(np.float32) for _ in range(2)]


def _same(mod: Any, feeds: list[Any]) -> Any:
    """The module with norms; it computes the same."""
    after = fuse_rms_norm(mod)
    for want, got in zip(interpreter.run(mod, feeds), interpreter.run(after, feeds), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    return after
