"""Integer modules through lower, build and the Relax VM equal the law bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax

from nybble.ir import graph, numerics, ops
from nybble.schedules.build import build
from nybble.schedules.lower import lower
from nybble.schedules.select import Planner
from nybble.schedules.target import resolve
from tests.schedules.modules import Compiled, check_exact, inputs_of, module

pytestmark = pytest.mark.sweep

GENERIC = "cpu.generic"
ROUNDINGS = numerics.ROUNDINGS
C = graph.constant
WINDOW: dict[str, Any] = {"strides": (1, 1), "padding": (0, 0, 0, 0)}


def scale(channels: int, seed: int = 0, most: int = 62) -> list[Any]:
    rng = np.random.default_rng(seed)
    multiplier = rng.integers(1 << 30, (1 << 31) - 1, channels, np.int32, endpoint=True)
    return [C(multiplier), C(rng.integers(1, most, channels, np.int32, endpoint=True))]


def clamped(dtype: str, **attrs: Any) -> dict[str, Any]:
    lo, hi = numerics.limits(dtype)
    return {"dtype": dtype, "lo": lo, "hi": hi, **attrs}


def weights(*shape: int, value: int | None = None) -> Any:
    rng = np.random.default_rng(1)
    drawn = rng.integers(-127, 127, shape, np.int8, endpoint=True)
    return C(drawn if value is None else np.full(shape, value, np.int8))


def bias(channels: int) -> Any:
    return C(np.random.default_rng(2).integers(-9999, 9999, channels, np.int32))


def one(name: str, constants: list[Any], *inputs: tuple[Any, str], **attrs: Any) -> tvm.IRModule:
    """A module of one vocabulary op; every input stands before its constants' share."""
    share = len(constants) // len(inputs)

    def body(emitter: graph.Emitter, *xs: Any) -> Any:
        operands = []
        for i, x in enumerate(xs):
            operands += [x, *constants[i * share : (i + 1) * share]]
        return emitter.emit(ops.call(name, operands, **attrs), "y")

    return module(body, *inputs)


def product(*shapes: tuple[int, ...]) -> tvm.IRModule:
    """Two tensors that broadcast."""

    def body(emitter: graph.Emitter, a: Any, b: Any) -> Any:
        attrs = clamped("int8", zero_point_a=3, zero_point_b=-2, zero_point=5)
        return emitter.emit(ops.call("multiply", [a, b, *scale(7)], **attrs), "y")

    return module(body, (shapes[0], "uint8"), (shapes[1], "int8"))


def grouped(o: int, k: int, group: int) -> list[Any]:
    """Operands of a weight-only layer behind its input."""
    rng = np.random.default_rng(3)
    shape = (o, -(-k // group))
    steps, zeros = rng.random(shape, np.float32), rng.integers(-128, 128, shape, np.int32)
    return [weights(o, k), C(steps), C(zeros), C(rng.random(o, np.float32))]


def steps(channels: int) -> list[Any]:
    """Positive scales, and biases."""
    rng = np.random.default_rng(5)
    return [C(rng.random(channels, np.float32)), C(rng.normal(size=channels).astype(np.float32))]


def quantized_rows() -> tvm.IRModule:
    """Rows and their largest magnitudes."""

    def body(emitter: graph.Emitter, x: Any) -> Any:
        top = emitter.emit(ops.call("row_tops", [x]), "top")
        return emitter.emit(ops.call("quantize_rows", [x, top]), "y")

    return module(body, ((5, 33), "float32"))


def rescaled_rows() -> tvm.IRModule:
    """Sums, and any floats for the largest magnitudes."""

    def body(emitter: graph.Emitter, acc: Any, top: Any) -> Any:
        return emitter.emit(ops.call("rescale_rows", [acc, top, *steps(9)]), "y")

    return module(body, ((5, 9), "int32"), ((5, 1), "float32"))


def product_of_matrices() -> tvm.IRModule:
    """Two tensors, the second one transposed, both with zero points."""

    def body(emitter: graph.Emitter, a: Any, b: Any) -> Any:
        attrs = {"zero_point_a": 3, "zero_point_b": -2, "transpose_b": True}
        return emitter.emit(ops.call("matmul", [a, b], **attrs), "y")

    return module(body, ((3, 5, 7), "uint8"), ((3, 9, 7), "int8"))


def masked() -> tvm.IRModule:
    """Each row shows one value more than the one before it."""
    mask = C(np.tri(6, 7, dtype=np.uint8))

    def body(emitter: graph.Emitter, x: Any) -> Any:
        operands = [x, mask, *scale(1, most=20)]
        return emitter.emit(ops.call("masked_softmax", operands, dtype="uint8"), "y")

    return module(body, ((5, 6, 7), "int8"))


def norm(name: str) -> tvm.IRModule:
    """Seven channels, multipliers of both signs."""
    rng = np.random.default_rng(4)
    constants = [C(rng.integers(-(2**24), 2**24, 7, np.int32)), bias(7), C(np.int64(99))]
    return one(name, constants, ((5, 6, 7), "uint8"), shift=5, **clamped("int8", zero_point=3))


FLOAT = ((5, 6, 7), "float32")
ZERO = C(np.int32(0))
EVERY_OP = {
    "quantize": one("quantize", [C(np.float32(0.03)), ZERO], FLOAT, dtype="int8"),
    "dequantize": one("dequantize", [C(np.float32(0.03)), ZERO], ((5, 6, 7), "uint8")),
    "conv2d": one("conv2d", [weights(5, 3, 3, 7), bias(5)], ((5, 6, 7), "uint8"), **WINDOW),
    "linear": one("linear", [weights(5, 33), bias(5)], ((33,), "int8")),
    "requantize": one("requantize", scale(7), ((5, 6, 7), "int32"), **clamped("uint8")),
    "add": one(
        "add", scale(7) + scale(7, 1), ((5, 6, 7), "uint8"), ((5, 6, 7), "int32"), **clamped("int8")
    ),
    "multiply": product((5, 6, 7), (1, 1, 7)),
    "table": one(
        "table",
        [C(np.random.default_rng(3).integers(-128, 127, 256, np.int8))],
        ((5, 6, 7), "int8"),
    ),
    "max_pool2d": one("max_pool2d", [], ((5, 6, 7), "int8"), pool_size=(3, 2), **WINDOW),
    "sum_pool2d": one("sum_pool2d", [], ((5, 6, 7), "uint8"), pool_size=(5, 6), **WINDOW),
    "row_tops": one("row_tops", [], ((5, 33), "float32")),
    "quantize_rows": quantized_rows(),
    "rescale_rows": rescaled_rows(),
    "nearest2d": one("nearest2d", [], ((5, 6, 7), "int8"), up=(3, 4), down=(1, 3)),
    "bilinear2d": one(
        "bilinear2d", [], ((5, 6, 7), "uint8"), up=(2, 5), down=(1, 3), mode="half_pixel"
    ),
    "matmul": product_of_matrices(),
    "softmax": one("softmax", scale(1, most=20), ((5, 6, 7), "int32"), dtype="uint8"),
    "masked_softmax": masked(),
    "layer_norm": norm("layer_norm"),
    "rms_norm": norm("rms_norm"),
    "weight_only": one("weight_only", grouped(21, 33, 10), ((33,), "float32"), group=10),
}


@pytest.mark.parametrize("name", ops.VOCABULARY)
@pytest.mark.parametrize("target", ["x86-64", "x86-64-v3"])
def test_fallback_compiles_every_op_of_the_vocabulary(name: str, target: str) -> None:
    compiled = check_exact(EVERY_OP[name], resolve(target), GENERIC)
    assert compiled.kernels[-1] == (name, GENERIC)


@pytest.mark.parametrize("name", ops.VOCABULARY)
def test_fallback_generates_code_for_aarch64(name: str, tmp_path: Any) -> None:
    target = resolve("aarch64")
    scheduled = lower(EVERY_OP[name], target, Planner(force=GENERIC))
    assert {layer.kernel for layer in scheduled.layers} == {GENERIC}
    built = build(scheduled.module, target)
    library = built.mod.imports[0]
    library.write_to_file(str(tmp_path / "kernel.o"), "o")
    assert (tmp_path / "kernel.o").read_bytes()[18:20] == b"\xb7\x00"  # ELF machine: AArch64


CONVOLUTIONS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "tail": ((9, 7, 5), (19, 3, 3, 5), {"padding": (1, 1, 1, 1)}),
    "asymmetric": ((9, 8, 4), (16, 3, 2, 4), {"padding": (0, 1, 2, 3), "strides": (2, 3)}),
    "pad value": ((6, 6, 4), (8, 3, 3, 4), {"padding": (1, 1, 1, 1), "pad_value": 7}),
    "dilated": ((11, 11, 3), (8, 3, 3, 3), {"padding": (2, 2, 2, 2), "dilation": (2, 3)}),
    "groups": ((6, 6, 12), (24, 3, 3, 4), {"padding": (1, 1, 1, 1), "groups": 3}),
    "depthwise": ((8, 8, 20), (20, 3, 3, 1), {"padding": (1, 1, 1, 1), "groups": 20}),
    "multiplier": ((6, 6, 6), (12, 3, 3, 1), {"padding": (1, 1, 1, 1), "groups": 6}),
    "pointwise": ((5, 13, 33), (17, 1, 1, 33), {}),
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
@pytest.mark.parametrize("force", [None, GENERIC])
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_convolution(case: str, force: str | None, dtype: str) -> None:
    shape, w, attrs = CONVOLUTIONS[case]
    constants = [weights(*w), bias(w[0])]
    check_exact(one("conv2d", constants, (shape, dtype), **{**WINDOW, **attrs}), force=force)


@pytest.mark.parametrize(("x", "w"), [(255, -127), (255, 127), (255, -128), (0, -128)])
@pytest.mark.parametrize("force", [None, GENERIC])
def test_extreme_operands(x: int, w: int, force: str | None) -> None:
    mod = one("linear", [weights(9, 2177, value=w), bias(9)], ((2177,), "uint8"))
    check_exact(mod, resolve("x86-64-v3"), force, np.full((2, 2177), x, np.uint8))


def chain(rounding: str, dtype: str = "uint8", force_scale: int = 40) -> tvm.IRModule:
    """Quantize behind a permutation, three convolutions, a residual add, pooling, linear."""

    def conv(e: graph.Emitter, x: Any, w: tuple[int, ...], name: str, groups: int = 1) -> Any:
        padding = (w[1] // 2,) * 4
        attrs = {"strides": (1, 1), "padding": padding, "groups": groups}
        return e.emit(ops.call("conv2d", [x, weights(*w), bias(w[0])], **attrs), name)

    def rescaled(e: graph.Emitter, x: Any, channels: int, name: str) -> Any:
        attrs = clamped(dtype, rounding=rounding)
        operands = [x, *scale(channels, 3, force_scale)]
        return e.emit(ops.call("requantize", operands, **attrs), name)

    def body(e: graph.Emitter, x: Any) -> Any:
        nhwc = e.emit(relax.op.permute_dims(x, [0, 2, 3, 1]), "nhwc")
        q = e.emit(ops.call("quantize", [nhwc, C(np.float32(0.02)), ZERO], dtype="int8"), "q")
        first = rescaled(e, conv(e, q, (20, 3, 3, 3), "stem"), 20, "stem.requantize")
        depth = rescaled(e, conv(e, first, (20, 3, 3, 1), "depth", 20), 20, "depth.requantize")
        point = conv(e, depth, (20, 1, 1, 20), "point")
        operands = [first, *scale(20, 4, 40), point, *scale(20, 5, 40)]
        total = e.emit(ops.call("add", operands, **clamped(dtype, rounding=rounding)), "residual")
        attrs = {**WINDOW, "pool_size": (8, 8)}
        pool = e.emit(ops.call("sum_pool2d", [total], **attrs), "pool")
        mean = rescaled(e, pool, 20, "pool.requantize")
        flat = e.emit(relax.op.reshape(mean, relax.ShapeExpr([x.ty.shape[0], 20])), "flat")
        logits = e.emit(ops.call("linear", [flat, weights(10, 20), bias(10)]), "classifier")
        return e.emit(ops.call("dequantize", [logits, C(np.float32(0.5)), ZERO]), "logits")

    return module(body, ((3, 8, 8), "float32"))


@pytest.mark.parametrize(
    ("rounding", "force"),
    [("half_up", None), ("half_up", GENERIC), ("half_even", None), ("tflite", None)],
)
def test_network_with_every_rounding(rounding: str, force: str | None) -> None:
    compiled = check_exact(chain(rounding), force=force)
    assert [op for op, _ in compiled.kernels] == [
        "permute_dims+quantize", "conv2d+requantize", "conv2d+requantize", "conv2d+add",
        "sum_pool2d+requantize", "linear", "dequantize",
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", ["uint4", "int3"])
def test_narrow_activations(dtype: str) -> None:
    check_exact(chain("half_up", dtype))


def test_one_and_two_threads_agree() -> None:
    attrs = {**WINDOW, "padding": (1, 1, 1, 1)}
    constants = [weights(32, 3, 3, 16), bias(32)]
    mod = one("conv2d", constants, ((40, 40, 16), "uint8"), **attrs)  # large enough to be parallel
    compiled, arrays = Compiled(mod, force=GENERIC), inputs_of(mod, 2)
    configure = tvm.get_global_func("runtime.config_threadpool")
    found = []
    for threads in (1, 2):
        configure(1, threads)
        found.append(compiled(arrays))
    np.testing.assert_array_equal(found[0], found[1])


EDGES = np.array(
    [np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-40, 0.5, 1.5, 2.5, -0.5, -1.5, 127.5, -128.5, 1e9],
    np.float32,
)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int4", "uint2"])
@pytest.mark.parametrize("step", [1.0, 0.1, 1e-38])
def test_quantize_edges(dtype: str, step: float) -> None:
    constants = [C(np.float32(step)), C(np.int32(3))]
    mod = one("quantize", constants, ((14,), "float32"), dtype=dtype)
    with np.errstate(over="ignore"):  # the law divides first, then clamps
        check_exact(mod, resolve("x86-64-v3"), None, EDGES[None])


@pytest.mark.parametrize(("axis", "length"), [(-1, 5), (3, 5), (1, 6)])
def test_scales_along_an_axis(axis: int, length: int) -> None:
    steps = np.linspace(0.01, 0.1, length, dtype=np.float32)
    constants = [C(steps), C(np.arange(length, dtype=np.int32))]
    attrs = {"axis": axis}
    check_exact(one("quantize", constants, ((6, 7, 5), "float32"), dtype="uint8", **attrs))
    for dtype in ("int8", "int32"):
        check_exact(one("dequantize", constants, ((6, 7, 5), dtype), **attrs))


@pytest.mark.parametrize("axes", [(0, 2, 3, 1), (0, 3, 1, 2), (0, 1, 3, 2)])
@pytest.mark.parametrize("shape", [(3, 9, 32), (1, 4, 5), (8, 2, 4000)])
def test_quantize_of_a_permutation(axes: tuple[int, ...], shape: tuple[int, ...]) -> None:
    def body(e: graph.Emitter, x: Any) -> Any:
        y = e.emit(relax.op.permute_dims(x, list(axes)), "permuted")
        last = graph.shape_of(y)[-1]
        steps = C(np.linspace(0.01, 0.1, int(last), dtype=np.float32))
        return e.emit(ops.call("quantize", [y, steps, ZERO], dtype="int8"), "q")

    compiled = check_exact(module(body, (shape, "float32")))
    is_row = axes == (0, 2, 3, 1) and shape[2] < 4000
    assert compiled.kernels == [("permute_dims+quantize", "cpu.border" if is_row else GENERIC)]


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("zero_in", [0, -7])
@pytest.mark.parametrize("dtype", ["int8", "int32"])
def test_requantize_over_the_whole_range(rounding: str, zero_in: int, dtype: str) -> None:
    attrs = clamped("int8", rounding=rounding, zero_point_in=zero_in, zero_point=-3)
    mod = one("requantize", scale(62), ((3, 62), dtype), **attrs)
    lo, hi = numerics.limits(dtype)
    values = np.array([lo, lo + 1, -2, -1, 0, 1, 2, 3, hi - 1, hi], numerics.storage(dtype))
    check_exact(mod)
    filled = np.ascontiguousarray(np.broadcast_to(values[:, None, None], (10, 3, 62)))
    check_exact(mod, resolve("x86-64-v3"), None, filled)


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_ties_of_every_shift(rounding: str) -> None:
    shifts = np.arange(1, 63, dtype=np.int32)
    constants = [C(np.full(62, 1 << 30, np.int32)), C(shifts)]
    mod = one("requantize", constants, ((62,), "int32"), **clamped("int8", rounding=rounding))
    ties = np.maximum(1 << np.maximum(shifts.astype(np.int64) - 31, 0), 1)
    rows = [sign * k * ties for sign in (-1, 1) for k in (1, 3, 5, 7)]
    given = np.clip(np.stack(rows), -(2**31), 2**31 - 1).astype(np.int32)
    check_exact(mod, resolve("x86-64-v3"), None, given)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("other", [(4, 5, 6), (1, 1, 6), (4, 1, 1)])
def test_add_with_zero_points_and_broadcasting(rounding: str, other: tuple[int, ...]) -> None:
    attrs = clamped("uint8", rounding=rounding, zero_point_a=3, zero_point_b=-4, zero_point=100)
    constants = [*scale(6, 0, 40), C(np.int32(1 << 30)), C(np.int32(33))]
    check_exact(one("add", constants, ((4, 5, 6), "uint8"), (other, "int8"), **attrs))


POOLS = [
    {"pool_size": (3, 3), "strides": (2, 2), "padding": (1, 1, 1, 1)},
    {"pool_size": (2, 3), "strides": (1, 2), "padding": (0, 1, 1, 0)},
]


@pytest.mark.parametrize("attrs", POOLS)
@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("channels", [5, 48])
def test_pooling(attrs: dict[str, Any], dtype: str, channels: int) -> None:
    shape = ((7, 8, channels), dtype)
    check_exact(one("max_pool2d", [], shape, **attrs))
    check_exact(one("max_pool2d", [], shape, **attrs, dilation=(2, 1)))
    check_exact(one("sum_pool2d", [], shape, **attrs, pad_value=9))


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int32"])
def test_structural_ops(dtype: str) -> None:
    def body(e: graph.Emitter, x: Any, y: Any) -> Any:
        both = e.emit(relax.op.concat([x, y], 3), "concat")
        padded = e.emit(relax.op.nn.pad(both, (0, 0, 1, 2, 0, 1, 0, 0), pad_value=2.0), "pad")
        turned = e.emit(relax.op.permute_dims(padded, [0, 3, 1, 2]), "turned")
        return e.emit(
            relax.op.reshape(turned, relax.ShapeExpr([x.ty.shape[0], 21 * 7 * 6])), "flat"
        )

    compiled = check_exact(module(body, ((4, 5, 16), dtype), ((4, 5, 5), dtype)))
    assert [op for op, _ in compiled.kernels] == ["concat", "pad", "permute_dims"]


def test_accumulators_with_two_readers_stay_a_layer_of_their_own() -> None:
    def body(e: graph.Emitter, x: Any) -> Any:
        acc = e.emit(ops.call("linear", [x, weights(8, 16), bias(8)]), "acc")
        attrs = clamped("uint8")
        one = e.emit(ops.call("requantize", [acc, *scale(8, 1, 40)], **attrs), "one")
        two = e.emit(ops.call("requantize", [acc, *scale(8, 2, 40)], **attrs), "two")
        return e.emit(relax.op.concat([one, two], 1), "both")

    compiled = check_exact(module(body, ((16,), "uint8")))
    assert [op for op, _ in compiled.kernels] == ["linear", "requantize", "requantize", "concat"]


def test_dead_bindings_are_left_out() -> None:
    def body(e: graph.Emitter, x: Any) -> Any:
        e.emit(ops.call("linear", [x, weights(8, 16), bias(8)]), "dead")
        return e.emit(ops.call("linear", [x, weights(4, 16), bias(4)]), "alive")

    scheduled = Compiled(module(body, ((16,), "uint8"))).scheduled
    assert [layer.output for layer in scheduled.layers] == ["alive"]
    assert len(scheduled.module.get_global_vars()) == 2
