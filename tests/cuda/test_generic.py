"""The generic kernels for GPUs equal the law bit for bit, their threads run one after the other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax

from nybble.ir import graph, interpreter, ops
from nybble.schedules.cuda import direct
from nybble.schedules.kernel import Knobs
from nybble.schedules.target import resolve
from tests.cases import CONV, DEPTHWISE, LINEAR, Case
from tests.cuda import layers
from tests.cuda.serial import Network, run
from tests.low_cases import LOW, LOW_LINEAR, TABLED
from tests.schedules.modules import inputs_of, module
from tests.schedules.test_float import SHAPE, STOCK
from tests.schedules.test_integer import EVERY_OP, WINDOW, C, clamped, one, scale

pytestmark = pytest.mark.sweep

GENERIC = "cuda.generic"
SM80 = resolve("cuda:sm_80")
RNG = np.random.default_rng(0)
WIDE = ((3, 5, 32), "int8")  # whole accesses of 16 bytes
EIGHT = ((3, 5, 24), "int8")  # and of 8
STEPS = [C(np.float32(0.03)), C(np.int32(3))]


def to_nhwc(channels: int) -> tvm.IRModule:
    def body(e: graph.Emitter, x: Any) -> Any:
        moved = e.emit(relax.op.permute_dims(x, [0, 2, 3, 1]), "moved")
        return e.emit(ops.call("quantize", [moved, *STEPS], axis=-1, dtype="int8"), "q")

    return module(body, ((channels, 6, 5), "float32"))


def rescaled(op: str, *inputs: Any, channels: int) -> tvm.IRModule:
    scales = [v for i in range(len(inputs)) for v in scale(channels, i)]
    return one(op, scales, *inputs, **clamped("int8"))


OTHERS = {
    "weight_only", "softmax", "masked_softmax", "layer_norm", "rms_norm",
    "row_tops", "quantize_rows", "rescale_rows",
}  # fmt: skip
"""Ops with kernels of their own."""
MODULES = {
    **{name: mod for name, mod in EVERY_OP.items() if name not in OTHERS},
    "requantize 16 bytes": rescaled("requantize", ((3, 5, 32), "int32"), channels=32),
    "add 16 bytes": rescaled("add", WIDE, ((3, 5, 32), "uint8"), channels=32),
    "add 8 bytes": rescaled("add", EIGHT, EIGHT, channels=24),
    "dequantize wide": one("dequantize", STEPS, WIDE),
    "quantize wide": one("quantize", STEPS, ((3, 5, 32), "float32"), dtype="int8"),
    "image of three planes": to_nhwc(3),
    "image of 19 planes": to_nhwc(19),
    "table wide": one("table", [C(RNG.integers(-128, 127, 256, np.int8))], WIDE),
    "maximum wide": one("max_pool2d", [], ((7, 6, 32), "int8"), pool_size=(3, 2),
        strides=(2, 1), padding=(1, 0, 1, 1)),
    "sum wide": one("sum_pool2d", [], ((7, 6, 32), "uint8"), pool_size=(7, 6), **WINDOW),
}  # fmt: skip


def check(mod: tvm.IRModule) -> Network:
    network = Network(mod)
    for batch in (1, 3):
        arrays = inputs_of(mod, batch)
        want = interpreter.run(mod, arrays)[0]
        got = network(arrays)
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)
    return network


@pytest.mark.parametrize("name", MODULES)
def test_ops(name: str) -> None:
    assert check(MODULES[name]).kernels == {GENERIC}


@pytest.mark.parametrize("lengths", [(32, 64, 16), (5, 1, 30)])
@pytest.mark.parametrize("axis", [1, 3])
def test_concat(axis: int, lengths: tuple[int, ...]) -> None:
    shapes = [(n, 5, 7) if axis == 1 else (4, 5, n) for n in lengths]
    mod = module(
        lambda e, *xs: e.emit(relax.op.concat(list(xs), axis), "both"),
        *((shape, "int8") for shape in shapes),
    )
    assert check(mod).kernels == {GENERIC}


NAMES = (
    "3x3 add unsigned", "asymmetric padding", "pad value", "odd everything", "1x1 batch",
    "grouped odd", "grouped", "dw 4x2", "dw batch", "dw 3x3 signed", "ten classes", "tokens",
    "K=257 low",
)  # fmt: skip
ROWS = {case.name: case for case in (*CONV, *DEPTHWISE, *LINEAR)}
CASES: tuple[Case, ...] = (
    *(ROWS[name] for name in NAMES),
    *(case for case in (*LOW, *LOW_LINEAR) if case.name in ("low 3x3 ternary", "low tokens")),
    TABLED[1],
    replace(ROWS["tokens"], name="int3", weights="int3"),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_convolution_and_linear(case: Case) -> None:
    kernel = direct.CONV2D if case.op == "conv2d" else direct.LINEAR
    problem, arrays = case.problem(), case.data()
    constants = {name: values for name, values in arrays.items() if name not in ("x", "b")}
    activations = [arrays[name] for name in ("x", "b") if name in arrays]
    given = [*activations, *kernel.constants(problem, constants)]
    want = case.law(arrays)
    got = run(kernel.build(problem, SM80, Knobs()), given, np.zeros_like(want))
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("name", ["dw 3x3 signed", "odd everything", "grouped odd", "ten classes"])
def test_threads_stay_within_bounds(name: str) -> None:
    """As the interpreter has it, which runs the function as lowered for the device."""
    case = ROWS[name]
    layers.check(direct.CONV2D if case.op == "conv2d" else direct.LINEAR, case, "sm_80")


@pytest.mark.parametrize("name", ["softmax", "sigmoid", "mean", "permute", "average with padding"])
def test_stock_ops_of_float(name: str) -> None:
    mod = module(lambda e, x: e.emit(STOCK[name](x), "y"), (SHAPE, "float32"), stage="float")
    network = Network(mod)
    assert network.kernels == {"cuda.stock"}
    for batch in (1, 3):
        arrays = inputs_of(mod, batch)
        want = interpreter.run(mod, arrays)[0]
        np.testing.assert_allclose(network(arrays), want, rtol=1e-4, atol=1e-4)
