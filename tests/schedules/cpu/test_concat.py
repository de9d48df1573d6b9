"""Concatenation copies the right elements, whatever the dtype, the axis and the lengths."""

from typing import Any

import numpy as np
import pytest
from tvm import relax

from nybble.ir import graph
from nybble.schedules.target import resolve
from tests.schedules.cpu import narrow
from tests.schedules.modules import check_exact, module

pytestmark = pytest.mark.sweep

TARGETS = ["x86-64-v3", "x86-64"]


def concat(axis: int, dtype: str, *shapes: tuple[int, ...]) -> Any:
    held = dtype if dtype == "float32" else narrow.given(dtype)

    def body(e: graph.Emitter, *given: Any) -> Any:
        xs = [x if held == dtype else narrow.entered(e, x, dtype) for x in given]
        return e.emit(relax.op.concat([*xs, xs[0]], axis), "both")

    return module(body, *((shape, held) for shape in shapes))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", ["uint8", "int4", "int1", "int32", "float32"])
def test_channels(target: str, dtype: str) -> None:
    mod = concat(-1, dtype, (5, 4, 64), (5, 4, 7), (5, 4, 1), (5, 4, 33), (5, 4, 700))
    compiled = check_exact(mod, resolve(target))
    assert compiled.kernels[-1] == ("concat", "cpu.concat")


@pytest.mark.parametrize(("axis", "other"), [(1, (1, 7, 9)), (2, (5, 3, 9)), (3, (5, 7, 40))])
def test_axes(axis: int, other: tuple[int, ...]) -> None:
    assert check_exact(concat(axis, "int8", (5, 7, 9), other)).kernels[0][1] == "cpu.concat"


def test_large_enough_for_threads() -> None:
    check_exact(concat(3, "uint8", (60, 50, 40), (60, 50, 20)))


def test_along_the_batch_is_left_to_the_stock_kernel() -> None:
    assert check_exact(concat(0, "uint8", (5, 7))).kernels == [("concat", "cpu.stock")]


def test_constants_may_stand_beside() -> None:
    beside = graph.constant(np.arange(6, dtype=np.int8).reshape(1, 6))

    def body(e: graph.Emitter, x: Any) -> Any:
        row = e.emit(relax.op.reshape(x, (1, 40)), "row")
        return e.emit(relax.op.concat([row, beside], 1), "both")

    x = relax.Var("x", relax.TensorType([2, 20], "int8"))
    emitter = graph.Emitter([x])
    mod = emitter.finish([body(emitter, x)], ["out"], "integer")
    given = np.arange(40, dtype=np.int8).reshape(2, 20)
    assert check_exact(mod, resolve("x86-64-v3"), None, given).kernels[-1][1] == "cpu.concat"
