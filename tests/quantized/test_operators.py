"""Quantized operators one by one, against ONNX Runtime with nothing optimized."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import nybble
from nybble.errors import UnsupportedOpError
from nybble.ir import graph, specs
from tests.quantized import ort

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(0, 1, (4, 6, 5, 7)).astype(np.float32)
MICROSOFT = "com.microsoft"
KINDS: dict[str, Any] = {"uint8": (np.uint8, 131), "int8": (np.int8, -5)}


def file(nodes: Sequence[Any], constants: dict[str, Any], x: Any = X) -> bytes:
    """A model from float x to y, whatever y's type."""
    made = helper.make_graph(
        list(nodes), "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *x.shape[1:]])],
        [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(MICROSOFT, 1)]
    model = helper.make_model(made, opset_imports=opsets, ir_version=8)
    return bytes(model.SerializeToString())


def node(op: str, inputs: str, output: str = "q", **attrs: Any) -> Any:
    """A node; "_" is an omitted operand."""
    names = ["" if name == "_" else name for name in inputs.split()]
    domain = "" if op in PLAIN else MICROSOFT
    return helper.make_node(op, names, [output], name=f"{op} {output}", domain=domain, **attrs)


PLAIN = {"QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "MaxPool", "Pad",
         "Flatten", "Transpose", "Cast", "Mul", "Add", "MatMulInteger", "DynamicQuantizeLinear",
         "ConvInteger", "Concat", "MatMul", "Resize"}  # fmt: skip


def bordered(kind: str, nodes: Sequence[Any], **constants: Any) -> bytes:
    """x -> quantize to a -> nodes -> dequantize of q to y; b is a second quantized tensor."""
    dtype, zero = KINDS[kind]
    given = {
        "as": np.float32(0.03), "az": dtype(zero), "bs": np.float32(0.021), "bz": dtype(zero - 3),
        "ys": np.float32(0.04), "yz": dtype(zero + 11), **constants,
    }  # fmt: skip
    ends = [node("QuantizeLinear", "x as az", "a"), node("QuantizeLinear", "x bs bz", "b")]
    return file([*ends, *nodes, node("DequantizeLinear", "q ys yz", "y")], given)


ROWS: dict[str, Any] = {
    "add": node("QLinearAdd", "a as az b bs bz ys yz"),
    "multiply": node("QLinearMul", "a as az b bs bz ys yz"),
    "concat": node("QLinearConcat", "ys yz a as az b bs bz", axis=1),
    "sigmoid": node("QLinearSigmoid", "a as az ys yz"),
    "leaky relu": node("QLinearLeakyRelu", "a as az ys yz", alpha=0.1),
    "softmax": node("QLinearSoftmax", "a as az ys yz", axis=1, opset=13),
    "average": node("QLinearAveragePool", "a as az ys yz", kernel_shape=[3, 3], pads=[1, 1, 1, 1],
                    strides=[2, 2]),
    "average counted": node("QLinearAveragePool", "a as az ys yz", kernel_shape=[2, 3],
                            pads=[1, 1, 0, 0], count_include_pad=1),
    "global average": node("QLinearGlobalAveragePool", "a as az ys yz"),
}  # fmt: skip


def agree(data: bytes, units: float, scale: float, x: Any = X) -> nybble.QuantizedModel:
    """Within so many steps of the reference."""
    model = nybble.load_onnx(data)
    assert isinstance(model, nybble.QuantizedModel)
    wanted: Any = ort.reference(data, x)
    got: Any = model.run(x)
    assert got.shape == wanted.shape
    assert np.abs(got - wanted).max() <= units * scale * 1.001
    assert np.ptp(wanted) > 12 * scale
    return model


@pytest.mark.sweep
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("row", ROWS)
def test_operator(row: str, kind: str) -> None:
    scale = np.float32(0.004 if row in ("softmax", "sigmoid") else 0.04)
    zero = KINDS[kind][0](0 if kind == "uint8" else -100)
    grid = {"ys": scale, "yz": zero} if row in ("softmax", "sigmoid") else {}
    model = agree(bordered(kind, [ROWS[row]], **grid), 1, float(scale))
    if row != "softmax":
        assert specs.between_borders(model.integer) == []


@pytest.mark.parametrize(  # ONNX Runtime has none for int8 activations and uint8 weights
    ("kind", "asymmetric"), [("uint8", False), ("uint8", True), ("int8", False)]
)
def test_convolution(kind: str, asymmetric: bool) -> None:
    w = RANDOM.integers(0, 256, (8, 3, 3, 3))
    weights = w.astype(np.uint8) if asymmetric else (w - 128).astype(np.int8)
    zeros = RANDOM.integers(90, 160, 8).astype(np.uint8) if asymmetric else np.zeros(8, np.int8)
    conv = node("QLinearConv", "a as az w ws wz ys yz bias", group=2, pads=[1, 1, 1, 1])
    data = bordered(
        kind, [conv], w=weights, ws=np.linspace(0.001, 0.004, 8, dtype=np.float32), wz=zeros,
        bias=RANDOM.integers(-3000, 3000, 8).astype(np.int32),
    )  # fmt: skip
    model = agree(data, 1, 0.04)
    kinds = {graph.dtype_of(b.value.args[1]) for b in graph.bindings(model.integer)
             if graph.op_name(b.value) == "nybble.conv2d"}  # fmt: skip
    assert kinds == {"int16" if asymmetric else "int8"}


@pytest.mark.parametrize("to_float", [False, True])
@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm(transposed: int, to_float: bool) -> None:
    w = RANDOM.integers(-128, 128, (210, 9)).astype(np.int8)
    names = "flat as az w ws wz bias" + ("" if to_float else " ys yz")
    gemm = node("QGemm", names, "y" if to_float else "q", transB=transposed)
    nodes = [
        node("QuantizeLinear", "x as az", "a"), node("Flatten", "a", "flat"), gemm,
        *([] if to_float else [node("DequantizeLinear", "q ys yz", "y")]),
    ]  # fmt: skip
    data = file(nodes, {
        "as": np.float32(0.03), "az": np.uint8(120), "ys": np.float32(0.5), "yz": np.uint8(130),
        "w": np.ascontiguousarray(w.T) if transposed else w, "wz": np.zeros(9, np.int8),
        "ws": np.linspace(0.01, 0.02, 9, dtype=np.float32),
        "bias": RANDOM.integers(-3000, 3000, 9).astype(np.int32),
    })  # fmt: skip
    agree(data, 1e-4 if to_float else 1, 0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_integers_are_moved(kind: str) -> None:
    """Pools, paddings and shuffles of integers, as QOperator files hold them."""
    zero = KINDS[kind][0](KINDS[kind][1])
    nodes = [
        node("MaxPool", "a", "m", kernel_shape=[2, 2]),
        node("Resize", "m _ scales", "r", coordinate_transformation_mode="asymmetric",
             nearest_mode="floor"),
        node("Pad", "r pads az", "p"),
        node("Transpose", "p", "t", perm=[0, 2, 3, 1]),
        node("Concat", "t t", "q", axis=3),
    ]  # fmt: skip
    moved = {
        "pads": np.array([0, 0, 1, 0, 0, 0, 0, 2]),
        "scales": np.array([1, 1, 2, 3], np.float32),
    }
    model = agree(bordered(kind, nodes, **moved, yz=zero, ys=np.float32(0.03)), 0, 0.03)
    assert specs.between_borders(model.integer) == []
    assert not any(graph.op_name(b.value) == "nybble.requantize"
                   for b in graph.bindings(model.integer))  # fmt: skip


@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize(("bits", "k"), [(4, 70), (8, 64), (2, 64)])
def test_matmul_nbits(bits: int, k: int, asymmetric: bool) -> None:
    """Activations are quantized by rows, so the float reference is close and not equal."""
    n, block = 24, 16
    blocks = -(-k // block)
    packed = RANDOM.integers(0, 256, (n, blocks, block * bits // 8)).astype(np.uint8)
    constants = {"w": packed, "s": RANDOM.uniform(0.01, 0.03, n * blocks).astype(np.float32)}
    if asymmetric:
        constants["z"] = RANDOM.integers(0, 256, n * -(-blocks * bits // 8)).astype(np.uint8)
    matmul = node("MatMulNBits", "x w s z" if asymmetric else "x w s", "y",
                  K=k, N=n, bits=bits, block_size=block)  # fmt: skip
    x = RANDOM.normal(0, 1, (5, k)).astype(np.float32)
    data = file([matmul], constants, x)
    model = nybble.load_onnx(data)
    assert isinstance(model, nybble.QuantizedModel)
    wanted = ort.reference(data, x)
    simulated: Any = model.simulate(x)
    np.testing.assert_allclose(simulated, wanted, atol=1e-4 * np.abs(wanted).max())
    assert np.abs(model.run(x) - wanted).max() < 0.02 * np.abs(wanted).max()
    (layer,) = (b.value for b in graph.bindings(model.integer))
    assert graph.op_name(layer) == "nybble.weight_only"
    assert graph.dtype_of(layer.args[1]) == f"int{bits}"


@pytest.mark.parametrize("swapped", [False, True])
def test_activations_quantized_at_run_time(swapped: bool) -> None:
    w = RANDOM.integers(0, 256, (32, 12)).astype(np.uint8)
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "xs", "xz"]),
        node("MatMulInteger", "q w xz wz", "sums"),
        node("Cast", "sums", "real", to=TensorProto.FLOAT),
        node("Mul", "ws xs" if swapped else "xs ws", "scales"),
        node("Mul", "scales real" if swapped else "real scales", "product"),
        node("Add", "product bias", "y"),
    ]
    x = RANDOM.normal(0, 1, (5, 32)).astype(np.float32)
    data = file(nodes, {
        "w": w, "ws": np.linspace(0.01, 0.02, 12, dtype=np.float32),
        "wz": np.full(12, 128, np.uint8), "bias": np.linspace(-1, 1, 12, dtype=np.float32),
    }, x)  # fmt: skip
    model = nybble.load_onnx(data)
    wanted: Any = ort.reference(data, x)
    got: Any = model.run(x)
    assert np.abs(got - wanted).max() < 0.02 * np.abs(wanted).max()
    assert isinstance(model, nybble.QuantizedModel)
    ops = [op.removeprefix("nybble.") for _, op, _ in graph.walk(model.integer)]
    assert ops == ["row_tops", "quantize_rows", "linear", "rescale_rows"]


def test_what_has_no_integer_form_is_named() -> None:
    pool = node("QLinearAveragePool", "a as az ys yz", kernel_shape=[2, 2], channels_last=1)
    with pytest.raises(UnsupportedOpError, match=r"'QLinearAveragePool q'.*channels_last"):
        nybble.load_onnx(bordered("uint8", [pool]))
    negative = bordered("uint8", [ROWS["add"]], ys=np.float32(-1))
    with pytest.raises(UnsupportedOpError, match="scale of its activations is not positive"):
        nybble.load_onnx(negative)
