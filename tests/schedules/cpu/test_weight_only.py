"""Weight-only kernels equal the law bit for bit: every width, group, number of rows and thread."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tvm import relax

from nybble.errors import ScheduleError
from nybble.ir import graph, numerics, ops
from nybble.schedules.cpu import weight_only, weight_only_generic
from nybble.schedules.kernel import Kernel, Knobs
from nybble.schedules.target import CpuTarget, host_features, resolve
from tests.schedules.modules import check_exact, module
from tests.weight_only_cases import CASES, Case

pytestmark = pytest.mark.sweep

TARGETS = {"avx2": "x86-64-v3", "vnni": "x86-64-v4-vnni", "avx512": "x86-64-v4"}
GUARD = 64
BY_NAME = {case.name: case for case in CASES}


def family(isa: str, case: Case) -> tuple[Kernel, CpuTarget]:
    """The kernel for a case, and its target; skips where this CPU lacks it."""
    target = resolve(TARGETS[isa])
    if not target.features <= host_features():
        pytest.skip(f"this CPU lacks {', '.join(sorted(target.features - host_features()))}")
    name = f"cpu.{case.book or f'w{numerics.width(case.weights)[1]}'}.{isa}"
    return next(k for k in weight_only.KERNELS if k.name == name), target


def compiled(kernel: Kernel, case: Case, target: CpuTarget, knobs: Knobs | None = None) -> Any:
    """The kernel's function."""
    function = kernel.build(case.problem(), target, knobs or Knobs())
    named = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    return tvm.compile(named, target=target.tvm_target())["main"]


def run(kernel: Kernel, case: Case, function: Any, arrays: dict[str, Any]) -> NDArray[Any]:
    """The output; raises AssertionError if the kernel wrote beside it."""
    constants = {name: values for name, values in arrays.items() if name != "x"}
    packed = kernel.pack(case.problem(), constants)
    size = int(np.prod(case.y))
    raw = np.full(size + 2 * GUARD + 16, 123.0, np.float32)
    start = GUARD + -(raw.ctypes.data // 4 + GUARD) % 16
    view = raw[start : start + size].reshape(case.y)
    given = [tvm.runtime.tensor(np.ascontiguousarray(a)) for a in (arrays["x"], *packed)]
    function(*given, tvm.runtime.from_dlpack(view))
    assert (raw[:start] == 123).all(), "wrote before its output"
    assert (raw[start + size :] == 123).all(), "wrote behind its output"
    return view


def check(kernel: Kernel, case: Case, target: CpuTarget, knobs: Knobs | None = None) -> None:
    """Compiles, runs, compares."""
    arrays = case.data()
    got = run(kernel, case, compiled(kernel, case, target, knobs), arrays)
    np.testing.assert_array_equal(got, case.law(arrays), err_msg=f"{kernel.name} {case.name}")


def rows() -> Iterator[Any]:
    """Every third case on one instruction set now, alternating; all of them in the slow tests."""
    for i, name in enumerate(BY_NAME):
        for isa in TARGETS:
            now = i % 3 == 0 and isa == ("avx2", "vnni", "avx2", "avx512")[i // 3 % 4]
            yield pytest.param(isa, name, marks=() if now else pytest.mark.slow)


@pytest.mark.parametrize(("isa", "name"), list(rows()))
def test_equals_the_law(isa: str, name: str) -> None:
    kernel, target = family(isa, BY_NAME[name])
    assert kernel.supports(BY_NAME[name].problem(), target) is None
    check(kernel, BY_NAME[name], target)


@pytest.mark.parametrize("name", list(BY_NAME)[::9])
def test_generic_equals_the_law(name: str) -> None:
    check(weight_only_generic.WEIGHT_ONLY, BY_NAME[name], resolve("x86-64-v3"))


def test_generic_without_fused_multiply_add_in_hardware() -> None:
    check(weight_only_generic.WEIGHT_ONLY, CASES[0], resolve("x86-64"))


@pytest.mark.parametrize("isa", TARGETS)
@pytest.mark.parametrize(("wide", "parallel"), [(1, True), (2, False), (4, True)])
def test_knobs_and_threads_do_not_matter(isa: str, wide: int, parallel: bool) -> None:
    case = Case((11, 192), 260, 64, "uint4", "each")
    kernel, target = family(isa, case)
    check(kernel, case, target, Knobs({"parallel": parallel, "high": 3, "wide": wide}))


@pytest.mark.parametrize("parallel", [False, True])
def test_one_row_on_threads(parallel: bool) -> None:
    case = Case((1, 192), 260, 64)
    kernel, target = family("avx2", case)
    check(kernel, case, target, Knobs({"parallel": parallel}))


def test_the_rows_are_chosen_at_run_time() -> None:
    case = Case((5, 160), 72, 32, symbolic=True)
    kernel, target = family("avx2", case)
    function = compiled(kernel, case, target)
    for count in (1, 2, 4, 31, 32, 129, 260):
        now = dataclasses.replace(case, x=(count, 160))
        arrays = now.data(count)
        np.testing.assert_array_equal(run(kernel, now, function, arrays), now.law(arrays))


@pytest.mark.parametrize("isa", [*TARGETS, "generic"])
@pytest.mark.parametrize("rows", [1, 6])
def test_zeros_denormals_and_values_without_a_scale(isa: str, rows: int) -> None:
    case = Case((rows, 40), 24, 32)
    kernel, target = weight_only_generic.WEIGHT_ONLY, resolve("x86-64-v3")
    if isa != "generic":
        kernel, target = family(isa, case)
    function, arrays = compiled(kernel, case, target), case.data()
    for value in (0.0, 1e-45, -1e-38, 1e-30, 3.4e38, np.nan, np.inf, -np.inf):
        arrays["x"][:] = np.float32(value)
        arrays["x"][-1, -1] = 1e-40
        got = run(kernel, case, function, arrays)
        with np.errstate(over="ignore"):
            np.testing.assert_array_equal(got, case.law(arrays), err_msg=str(value))


@settings(max_examples=6)
@given(
    m=st.integers(1, 10), k=st.integers(1, 300), o=st.integers(1, 70), group=st.integers(1, 140),
    bits=st.integers(2, 8), sign=st.sampled_from(["", "u"]),
    zeros=st.sampled_from(["common", "each"]),
)  # fmt: skip
def test_any_shape(m: int, k: int, o: int, group: int, bits: int, sign: str, zeros: str) -> None:
    case = Case((m, k), o, group, f"{sign}int{bits}", zeros)
    kernel, target = family("avx2", case)
    check(kernel, case, target)


def layer(case: Case) -> tvm.IRModule:
    """A module of one weight-only layer."""
    arrays = case.data()

    def body(emitter: graph.Emitter, x: Any) -> Any:
        w = graph.constant(arrays["w"], case.weights)
        names = ("scale", "zero_point", "bias")
        operands = [x, w, *(graph.constant(arrays[name]) for name in names)]
        call = ops.call("weight_only", operands, group=case.group, book=case.book)
        return emitter.emit(call, "y")

    return module(body, (case.x[1:], "float32"))


@pytest.mark.parametrize("zeros", ["common", "each"])
@pytest.mark.parametrize("dtype", ["int4", "uint3", "int8"])
def test_through_the_compiler(dtype: str, zeros: str) -> None:
    compiled = check_exact(layer(Case((1, 96), 40, 32, dtype, zeros)))
    bits = numerics.width(dtype)[1]
    assert compiled.kernels == [("weight_only", f"cpu.w{bits}.avx2")]


@pytest.mark.parametrize("book", ["nf4", pytest.param("fp4", marks=pytest.mark.slow)])
def test_code_books_through_the_compiler(book: str) -> None:
    compiled = check_exact(layer(Case((1, 96), 40, 32, "int8", book=book)))
    assert compiled.kernels == [("weight_only", f"cpu.{book}.avx2")]


def test_code_books_take_four_bits() -> None:
    sizes = {}
    for case in (Case((1, 512), 64, 512, "int8", book="nf4"), Case((1, 512), 64, 512, "int4")):
        kernel, _ = family("avx2", case)
        constants = {name: values for name, values in case.data().items() if name != "x"}
        sizes[kernel.name] = kernel.pack(case.problem(), constants)[0].nbytes
    assert sizes["cpu.nf4.avx2"] == sizes["cpu.w4.avx2"]


def test_a_weight_beside_the_levels_is_refused() -> None:
    case = Case((1, 96), 40, 32, "int8", book="nf4")
    constants = case.data()
    constants["w"][3, 5] = 1
    with pytest.raises(ValueError, match="1 is no level of the code book nf4"):
        family("avx2", case)[0].pack(case.problem(), constants)


@pytest.mark.parametrize("target", ["x86-64", *TARGETS.values()])
@pytest.mark.parametrize("clamp", ["relu", "clip", ""])
@pytest.mark.parametrize("rows", [1, 9])
def test_residual_and_clamp_are_fused(rows: int, clamp: str, target: str) -> None:
    cpu, case = resolve(target), Case((rows, 70), 33, 32)
    if not cpu.features <= host_features():
        pytest.skip(f"this CPU lacks {', '.join(sorted(cpu.features - host_features()))}")
    arrays = case.data()

    def body(emitter: graph.Emitter, x: Any, other: Any) -> Any:
        names = ("scale", "zero_point", "bias")
        constants = (graph.constant(arrays[name]) for name in names)
        w = graph.constant(arrays["w"], case.weights)
        y = emitter.emit(ops.call("weight_only", [x, w, *constants], group=case.group), "y")
        y = emitter.emit(relax.op.add(other, y), "sum")
        if clamp == "relu":
            y = emitter.emit(relax.op.nn.relu(y), "relu")
        return emitter.emit(relax.op.clip(y, -1.5, 6.0), "clip") if clamp == "clip" else y

    other = np.random.default_rng(1).normal(size=case.y).astype(np.float32)
    arrays["x"][-1, 3] = np.nan  # all of its row's outputs are NaN
    mod = module(body, (case.x[1:], "float32"), (case.y[1:], "float32"))
    compiled = check_exact(mod, cpu, None, arrays["x"], other)
    fused = "weight_only+add" + (f"+{clamp}" if clamp else "")
    assert [op for op, _ in compiled.kernels] == [fused]


def test_refuses_in_words() -> None:
    case = Case((1, 96), 40, 32)
    kernel, _ = family("avx2", case)
    assert "avx2" in str(kernel.supports(case.problem(), resolve("aarch64")))
    other = dataclasses.replace(case, weights="int3")
    assert "int3" in str(kernel.supports(other.problem(), resolve("x86-64-v3")))
    long = Case((1, 70000), 8, 70000)
    assert "32 bits" in str(kernel.supports(long.problem(), resolve("x86-64-v3")))
    arrays = dataclasses.replace(case, zeros="each").data()
    arrays["zero_point"][3] = 9
    with pytest.raises(ScheduleError, match="zero point"):
        kernel.pack(dataclasses.replace(case, zeros="each").problem(), arrays)


def test_half_precision_is_left_to_gpus() -> None:
    case = dataclasses.replace(CASES[0], compute="float16")
    for kernel in (family("avx2", case)[0], weight_only_generic.WEIGHT_ONLY):
        reason = kernel.refuses(case.problem(), resolve("x86-64-v3"))
        assert reason == "computes in int8 only"
