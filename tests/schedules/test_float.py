"""Float modules through lower and build agree with NumPy; nothing runs unscheduled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax

from nybble.errors import ScheduleError
from nybble.ir import graph, interpreter
from nybble.schedules import lower
from tests.schedules.modules import V3, Compiled, inputs_of, module

pytestmark = pytest.mark.sweep

R, NN = relax.op, relax.op.nn
SHAPE = (9, 10, 12)
NHWC = {"data_layout": "NHWC", "kernel_layout": "OHWI"}


def drawn(*shape: int) -> Any:
    return graph.constant(np.random.default_rng(3).normal(size=shape).astype(np.float32))


def check(body: Callable[..., Any], *shapes: tuple[int, ...], force: str | None = None) -> Compiled:
    mod = module(body, *[(shape, "float32") for shape in shapes], stage="float")
    compiled = Compiled(mod, force=force)
    for batch in (1, 3):
        arrays = inputs_of(mod, batch)
        want = interpreter.run(mod, arrays)[0]
        np.testing.assert_allclose(compiled(arrays), want, rtol=1e-4, atol=1e-4)
    return compiled


POOL = {"strides": (2, 2), "padding": (1, 1, 1, 1), "layout": "NHWC"}
STOCK: dict[str, Callable[..., Any]] = {
    "relu": NN.relu,
    "sigmoid": R.sigmoid,
    "tanh": R.tanh,
    "exp": R.exp,
    "silu": NN.silu,
    "leakyrelu": lambda x: NN.leakyrelu(x, 0.1),
    "clip": lambda x: R.clip(x, -0.5, 0.5),
    "softmax": lambda x: NN.softmax(x, -1),
    "softmax over rows": lambda x: NN.softmax(x, 1),
    "add a constant": lambda x: R.add(x, drawn(12)),
    "multiply by a scalar": lambda x: R.multiply(x, graph.constant(np.float32(2))),
    "average": lambda x: NN.avg_pool2d(x, (3, 3), **POOL),
    "average with padding": lambda x: NN.avg_pool2d(x, (3, 3), **POOL, count_include_pad=True),
    "global average": lambda x: NN.adaptive_avg_pool2d(x, (1, 1), layout="NHWC"),
    "adaptive": lambda x: NN.adaptive_avg_pool2d(x, (3, 4), layout="NHWC"),
    "mean": lambda x: R.mean(x, [1, 2]),
    "mean of channels": lambda x: R.mean(x, [-1], keepdims=True),
    "pad": lambda x: NN.pad(x, (0, 0, 1, 2, 3, 4, 0, 0), pad_value=1.0),
    "permute": lambda x: R.permute_dims(x, [0, 3, 1, 2]),
    "convolution in NCHW": lambda x: NN.conv2d(x, drawn(8, 9, 3, 3), padding=(1, 1, 1, 1)),
}


@pytest.mark.parametrize("name", STOCK)
def test_ops_without_a_family(name: str) -> None:
    compiled = check(lambda e, x: e.emit(STOCK[name](x), "y"), SHAPE)
    assert [kernel for _, kernel in compiled.kernels] == ["cpu.stock"]


@pytest.mark.parametrize("op", [R.max, R.min])
@pytest.mark.parametrize(
    ("axes", "keepdims"), [([-1], True), ([1], False), ([1, 2], False), ([1, 3], True)]
)
def test_extremes_of_infinities_are_infinite(op: Any, axes: list[int], keepdims: bool) -> None:
    mod = module(
        lambda e, x: e.emit(op(x, axes, keepdims), "y"), ((4, 5, 6), "float32"), stage="float"
    )
    x = np.random.default_rng(1).normal(size=(3, 4, 5, 6)).astype(np.float32)
    x[0], x[1] = -np.inf, np.inf
    np.testing.assert_array_equal(Compiled(mod)([x]), interpreter.run(mod, [x])[0])


@pytest.mark.parametrize("name", ["add", "subtract", "multiply", "divide", "maximum", "minimum"])
def test_binary_ops(name: str) -> None:
    check(lambda e, x, y: e.emit(getattr(R, name)(x, y), "y"), SHAPE, SHAPE)


@pytest.mark.parametrize("axis", [1, 3])
def test_concat(axis: int) -> None:
    other = tuple(4 if d == axis - 1 else extent for d, extent in enumerate(SHAPE))
    check(lambda e, x, y: e.emit(R.concat([x, y], axis), "y"), SHAPE, other)


def test_reshapes_are_free() -> None:
    def body(e: graph.Emitter, x: Any) -> Any:
        flat = e.emit(R.permute_dims(x, [0, 3, 1, 2]), "only ones move")
        return e.emit(R.squeeze(flat, [2, 3]), "flat")

    assert check(body, (1, 1, 12)).kernels == []


def test_max_pool_is_a_kernel() -> None:
    compiled = check(lambda e, x: e.emit(NN.max_pool2d(x, (3, 3), **POOL), "y"), SHAPE)
    assert compiled.kernels == [("max_pool2d", "cpu.generic")]


@pytest.mark.parametrize("force", [None, "cpu.generic"])
@pytest.mark.parametrize("groups", [1, 2, 12])
def test_convolution_with_bias_and_clamp(force: str | None, groups: int) -> None:
    def body(e: graph.Emitter, x: Any) -> Any:
        attrs = {"padding": (1, 0, 2, 1), "strides": (2, 1), "groups": groups, **NHWC}
        conv = e.emit(NN.conv2d(x, drawn(24, 3, 3, 12 // groups), **attrs), "conv")
        biased = e.emit(R.add(conv, drawn(1, 1, 1, 24)), "bias")
        return e.emit(R.clip(biased, 0, 6), "relu6")

    compiled = check(body, SHAPE, force=force)
    assert [op for op, _ in compiled.kernels] == ["conv2d+add+clip"]


@pytest.mark.parametrize("force", [None, "cpu.generic"])
def test_residual_joins_the_later_convolution(force: str | None) -> None:
    def body(e: graph.Emitter, x: Any) -> Any:
        first = e.emit(
            R.add(e.emit(NN.conv2d(x, drawn(12, 1, 1, 12), **NHWC), "a"), drawn(12)), "a+"
        )
        second = e.emit(
            R.add(e.emit(NN.conv2d(x, drawn(12, 1, 1, 12), **NHWC), "b"), drawn(12)), "b+"
        )
        return e.emit(NN.relu(e.emit(R.add(first, second), "sum")), "relu")

    compiled = check(body, SHAPE, force=force)
    assert [op for op, _ in compiled.kernels] == ["conv2d+add", "conv2d+add+add+relu"]


@pytest.mark.parametrize("force", [None, "cpu.generic"])
def test_linear(force: str | None) -> None:
    def body(e: graph.Emitter, x: Any) -> Any:
        product = e.emit(R.matmul(x, drawn(40, 10)), "product")
        return e.emit(R.add(product, drawn(10)), "biased")

    assert [op for op, _ in check(body, (40,), force=force).kernels] == ["matmul+add"]


def test_matmul_of_two_activations() -> None:
    check(lambda e, x, y: e.emit(R.matmul(x, y), "y"), (9, 10), (10, 12))


def test_equal_ops_share_one_function() -> None:
    def body(e: graph.Emitter, x: Any) -> Any:
        return e.emit(R.tanh(e.emit(R.tanh(x), "once")), "twice")

    mod = module(body, (SHAPE, "float32"), stage="float")
    scheduled = lower.lower(mod, V3)
    assert len({layer.symbol for layer in scheduled.layers}) == 1
    assert len(scheduled.layers) == 2


def test_large_float_ops_are_parallel_and_vectorised() -> None:
    for shape, is_parallel in (((64, 64, 64), True), ((4, 4, 64), False)):
        body: Callable[..., Any] = lambda e, x: e.emit(NN.relu(x), "y")  # noqa: E731
        mod = module(body, (shape, "float32"), stage="float")
        kinds = loop_kinds(lower.lower(mod, V3).module)
        assert (tvm.tirx.ForKind.PARALLEL in kinds) == is_parallel
        assert tvm.tirx.ForKind.VECTORIZED in kinds


def loop_kinds(mod: tvm.IRModule) -> set[int]:
    """The kinds of the loops around the only block of the only function."""
    functions = [mod[v] for v in mod.get_global_vars() if isinstance(mod[v], tvm.tirx.PrimFunc)]
    sch = tvm.s_tir.Schedule(functions[0])
    block = sch.get_child_blocks(sch.get_sblock("root"))[0]
    return {int(sch.get(loop).kind) for loop in sch.get_loops(block)}


def test_an_op_that_tvm_does_not_lower_to_one_function_is_an_error() -> None:
    body: Callable[..., Any] = lambda e, x: e.emit(R.nonzero(x), "found")  # noqa: E731
    mod = module(body, ((4,), "float32"), stage="float")
    with pytest.raises(ScheduleError, match=r"'found': relax\.nonzero has no kernel"):
        lower.lower(mod, V3)
