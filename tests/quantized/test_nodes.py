"""The quantization cases of ONNX's own backend tests, through the integer law.

A compiler wants scales, zero points and weights at compile time: all inputs of a case but the first
are made initializers. Integers must be equal; where a float scale becomes a dyadic multiplier, they
may lie one unit apart. Only the 8- and 4-bit float types are refused.
"""

from __future__ import annotations

import importlib
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.backend.test.case import node

import nybble
from nybble.errors import UnsupportedOpError

MODULES = (
    "convinteger", "dequantizelinear", "dynamicquantizelinear", "matmulinteger", "qlinearconv",
    "qlinearmatmul", "quantizelinear",
)  # fmt: skip
FLOATS = ("e4m3fn", "e5m2", "float4e2m1")
ROUNDED = ("qlinearconv", "qlinearmatmul")


@cache
def cases() -> dict[str, Any]:
    """Name -> case. ``collect_testcases`` would import those of all operators."""
    for module in MODULES:
        importlib.import_module(f"onnx.backend.test.case.node.{module}")
    found = node._NodeTestCases
    pattern = re.compile(r"test_(de|dynamic)?quantizelinear|test_qlinear|test_(conv|matmul)integer")
    return {case.name: case for case in found if pattern.match(case.name)}


NAMES = (
    "convinteger_without_padding", "convinteger_with_padding", "matmulinteger", "qlinearconv",
    "dequantizelinear", "dequantizelinear_axis", "dequantizelinear_blocked",
    "dequantizelinear_e4m3fn", "dequantizelinear_e4m3fn_float16",
    "dequantizelinear_e4m3fn_zero_point", "dequantizelinear_e5m2",
    "dequantizelinear_float4e2m1", "dequantizelinear_int16", "dequantizelinear_int2",
    "dequantizelinear_int4", "dequantizelinear_uint16", "dequantizelinear_uint2",
    "dequantizelinear_uint4", "dynamicquantizelinear", "dynamicquantizelinear_expanded",
    "dynamicquantizelinear_max_adjusted", "dynamicquantizelinear_max_adjusted_expanded",
    "dynamicquantizelinear_min_adjusted", "dynamicquantizelinear_min_adjusted_expanded",
    "qlinearmatmul_2D_int8_float16", "qlinearmatmul_2D_int8_float32",
    "qlinearmatmul_2D_uint8_float16", "qlinearmatmul_2D_uint8_float32",
    "qlinearmatmul_3D_int8_float16", "qlinearmatmul_3D_int8_float32",
    "qlinearmatmul_3D_uint8_float16", "qlinearmatmul_3D_uint8_float32", "quantizelinear",
    "quantizelinear_axis", "quantizelinear_blocked_asymmetric",
    "quantizelinear_blocked_symmetric", "quantizelinear_e4m3fn", "quantizelinear_e5m2",
    "quantizelinear_float4e2m1", "quantizelinear_int16", "quantizelinear_int2",
    "quantizelinear_int4", "quantizelinear_uint16", "quantizelinear_uint2",
    "quantizelinear_uint4",
)  # fmt: skip


def specialized(case: Any) -> tuple[bytes, Any, list[Any]]:
    """The case with all but its first input as initializers; that input; its outputs."""
    model = onnx.ModelProto.FromString(case.model.SerializeToString())
    first, *others = map(_array, case.data_sets[0][0])
    for info, value in zip(list(model.graph.input)[1:], others, strict=True):
        model.graph.initializer.append(numpy_helper.from_array(value, info.name))
        model.graph.input.remove(info)
    return model.SerializeToString(), first, list(map(_array, case.data_sets[0][1]))


def _array(value: Any) -> Any:
    is_proto = isinstance(value, onnx.TensorProto)
    return numpy_helper.to_array(value) if is_proto else np.asarray(value)


def test_every_case_is_here() -> None:
    assert {f"test_{name}" for name in NAMES} == set(cases())
    assert len(NAMES) == 45


INTEGERS = [name for name in NAMES if not any(kind in name for kind in FLOATS)]


@pytest.mark.parametrize("name", INTEGERS)
def test_node(name: str) -> None:
    data, x, wanted = specialized(cases()[f"test_{name}"])
    results: Any = nybble.load_onnx(data).run(held(x))
    got = list(results.values()) if isinstance(results, dict) else [results]
    apart = 1 if name.startswith(ROUNDED) else 0
    for ours, theirs in zip(got, wanted, strict=True):
        if theirs.dtype.kind == "f":
            np.testing.assert_allclose(ours, theirs, rtol=1e-6)
        else:
            assert ours.shape == theirs.shape
            assert np.abs(ours.astype(np.int64) - theirs.astype(np.int64)).max() <= apart


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(INTEGERS)))
def test_small_floats_are_refused(name: str) -> None:
    with pytest.raises(UnsupportedOpError, match=r"(?i)float[48]"):
        nybble.load_onnx(specialized(cases()[f"test_{name}"])[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", INTEGERS)
def test_deployed(name: str, tmp_path: Path) -> None:
    data, x, _ = specialized(cases()[f"test_{name}"])
    model = nybble.load_onnx(data)
    session = nybble.load(nybble.compile(model).save(tmp_path / "net.so"))
    ours: Any = session(held(x))
    law: Any = model.run(held(x))
    for key in law if isinstance(law, dict) else [None]:
        np.testing.assert_array_equal(ours[key], law[key])  # None only adds an axis


def held(x: Any) -> Any:
    """Integers below 8 bits one in a byte, as callers hand them over."""
    if x.dtype.name not in ("int4", "uint4", "int2", "uint2"):
        return x
    return x.astype(np.int8 if x.dtype.name.startswith("int") else np.uint8)
