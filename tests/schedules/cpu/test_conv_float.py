"""Float32 convolution and linear kernels: every family agrees with float64 to rounding."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import tvm
from numpy.typing import NDArray

from nybble.ir import numerics
from nybble.schedules.cpu import conv, depthwise
from nybble.schedules.kernel import Epilogue, Knobs, Problem, TensorSpec
from nybble.schedules.target import host_features, resolve
from tests.cases import CONV, DEPTHWISE, LINEAR, Arrays, Case

pytestmark = pytest.mark.sweep

NAMES = (
    "odd everything",
    "3x3 add",
    "grouped odd",
    "1x1 batch",
    "big batch",
    "dw 4x2",
    "dw unpadded",
)
CASES = {case.name: case for case in CONV + LINEAR + DEPTHWISE}
TARGETS = {"avx512": "x86-64-v4", "avx2": "x86-64-v3"}


def floating(problem: Problem) -> Problem:
    """The same layer in float32, clamped to -3 and above."""

    def spec(tensor: TensorSpec) -> TensorSpec:
        return dataclasses.replace(tensor, dtype="float32")

    other = problem.epilogue.other
    assert problem.weights is not None
    return dataclasses.replace(
        problem,
        inputs=(spec(problem.inputs[0]),),
        output=spec(problem.output),
        weights=spec(problem.weights),
        epilogue=Epilogue("float", -3.0, np.inf, spec(other) if other else None),
    )


def expected(case: Case, arrays: Arrays) -> NDArray[Any]:
    x, w = arrays["x"].astype(np.float64), arrays["w"].astype(np.float64)
    if case.op == "linear":
        acc: NDArray[Any] = x @ w.T
    else:
        size = (case.w[1], case.w[2])
        view = numerics.windows(x, size, case.strides, case.padding, case.dilation, case.pad_value)
        acc = numerics.correlate(view, w, case.groups, np.float64)
    return np.maximum(acc + arrays["bias"] + arrays.get("other", 0), -3)


@pytest.mark.parametrize("isa", TARGETS)
@pytest.mark.parametrize("name", NAMES)
def test_agrees_with_float64(isa: str, name: str) -> None:
    case, target = CASES[name], resolve(TARGETS[isa])
    if not target.features <= host_features():
        pytest.skip(f"this CPU lacks {', '.join(sorted(target.features - host_features()))}")
    problem = floating(case.problem())
    family = f"cpu.f32.{'depthwise.' if name.startswith('dw') else ''}{isa}"
    kernels = (*depthwise.KERNELS, *conv.KERNELS)
    kernel = next(k for k in kernels if (k.name, k.op) == (family, case.op))
    assert kernel.supports(problem, target) is None
    rng = np.random.default_rng(0)
    shapes = {"x": case.x, "w": case.w, "bias": (case.w[0],)}
    if problem.epilogue.other:
        shapes["other"] = case.y
    arrays = {k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()}
    function = kernel.build(problem, target, Knobs()).with_attr("global_symbol", "main")
    compiled = tvm.compile(tvm.IRModule({"main": function}), target=target.tvm_target())["main"]
    packed = kernel.pack(problem, {"w": arrays["w"], "bias": arrays["bias"]})
    given = [arrays[k] for k in ("x", "other") if k in arrays]
    out = tvm.runtime.tensor(np.full(case.y, np.nan, np.float32))
    compiled(*map(tvm.runtime.tensor, (*given, *packed)), out)
    np.testing.assert_allclose(out.numpy(), expected(case, arrays), rtol=1e-5, atol=1e-4)
