"""Bit-serial kernels equal the law bit for bit: every pair of planes and shape."""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nybble.ir import graph, numerics, ops
from nybble.schedules.cpu import bitserial
from nybble.schedules.kernel import Form, Kernel, Knobs
from nybble.schedules.target import CpuTarget, host_features, resolve
from tests.cases import Case
from tests.low_cases import LOW, LOW_LINEAR
from tests.schedules.cpu import running
from tests.schedules.cpu.narrow import entered
from tests.schedules.modules import check_exact, module

pytestmark = pytest.mark.sweep

TARGETS = {"avx2": "x86-64-v3", "avx512": "x86-64-v4-amx"}
WIDTHS = [
    *(("int1", f"{sign}int{bits}") for bits in range(1, 5) for sign in ("", "u")),
    *(("uint1", f"{sign}int{bits}") for bits in (1, 2) for sign in ("", "u")),
    *(("int2", f"{sign}int{bits}") for bits in (1, 2) for sign in ("", "u")),
]


def family(isa: str, case: Case) -> tuple[Kernel, CpuTarget]:
    """The kernel of an instruction set, and its target; skips where this CPU lacks it."""
    target = resolve(TARGETS[isa])
    if not target.features <= host_features():
        pytest.skip(f"this CPU lacks {', '.join(sorted(target.features - host_features()))}")
    name = f"cpu.bitserial.{isa}"
    found = [k for k in (*bitserial.FIRST, *bitserial.KERNELS) if (k.name, k.op) == (name, case.op)]
    takes = [k for k in found if k.supports(case.problem(), target) is None]
    return (takes or found)[0], target


def possible(cases: tuple[Case, ...]) -> dict[str, Case]:
    """The rows that the kernels take."""
    target = resolve("x86-64-v3")
    kernels = {k.op: k for k in bitserial.KERNELS if k.name == "cpu.bitserial.avx2"}
    return {c.name: c for c in cases if kernels[c.op].supports(c.problem(), target) is None}


CASES = possible((*LOW, *LOW_LINEAR))


def rows() -> Iterator[Any]:
    """Every case on one instruction set now, alternating; on the other when there is time."""
    for i, name in enumerate(CASES):
        for j, isa in enumerate(TARGETS):
            yield pytest.param(isa, name, marks=() if i % 2 == j else pytest.mark.slow)


@pytest.mark.parametrize(("isa", "name"), list(rows()))
def test_equals_the_law(isa: str, name: str) -> None:
    kernel, target = family(isa, CASES[name])
    running.check(kernel, CASES[name], target)


def test_the_rows_cover_the_kernels() -> None:
    assert {case.op for case in CASES.values()} == {"conv2d", "linear"}
    assert len(CASES) >= 20


@pytest.mark.parametrize(("weights", "activations"), WIDTHS)
@pytest.mark.parametrize("operands", ["random", pytest.param("low", marks=pytest.mark.slow)])
def test_every_pair_of_planes(weights: str, activations: str, operands: str) -> None:
    case = Case(
        "pair", "linear", (3, 1203), (21, 1203), dtypes=(activations, "int32"), weights=weights,
        epilogue="none", operands=operands,
    )  # fmt: skip
    kernel, target = family("avx2", case)
    running.check(kernel, case, target)


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_do_not_matter(threads: int) -> None:
    case = CASES["low 3x3 W1A2"]
    kernel, target = family("avx2", case)
    tvm.get_global_func("runtime.config_threadpool")(1, threads)
    running.check(kernel, case, target, Knobs({"parallel": True, "splits": 2}))


@st.composite
def small_layers(draw: st.DrawFn) -> Case:
    """Convolutions of odd shapes, in every pair of planes; signs are not padded."""
    groups = draw(st.sampled_from([1, 1, 2]))
    inside = draw(st.integers(32, 70))
    weights, activations = draw(st.sampled_from(WIDTHS))
    image = draw(st.tuples(st.integers(1, 2), st.integers(4, 8), st.integers(4, 8)))
    outputs, *size = draw(st.tuples(st.integers(1, 20), st.integers(1, 3), st.integers(1, 3)))
    return Case(
        "small", "conv2d", (*image, groups * inside), (groups * outputs, *size, inside),
        strides=draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
        padding=draw(st.tuples(*[st.integers(0, 2)] * 4)),
        pad_value=1 if activations == "int1" else 0,
        groups=groups,
        dtypes=(activations, "int32"),
        weights=weights,
        epilogue="none",
        operands=draw(st.sampled_from(["random", "high", "low", "alternating"])),
    )  # fmt: skip


@settings(max_examples=6, suppress_health_check=list(HealthCheck))
@given(small_layers())
def test_small_layers(case: Case) -> None:
    kernel, target = family("avx2", case)
    assert kernel.supports(case.problem(), target) is None
    running.check(kernel, case, target)


PLANES = {
    "W1A1": ("int1", "uint1", "uint1"), "W1A2": ("int1", "uint2", "uint4"),
    "W2A2": ("int2", "int2", "int2"), "signs": ("int1", "int1", "int1"),
    "W1A3": ("int1", "int3", "uint2"),
}  # fmt: skip
FORMS: tuple[tuple[Form, Form], ...] = (
    ("planes", "values"), ("values", "planes"), ("planes", "planes"),
)  # fmt: skip
SHAPES = {
    "3x3": Case("3x3", "conv2d", (2, 7, 9, 64), (40, 3, 3, 64), padding=(1, 1, 1, 1), pad_value=1),
    "grouped": Case("grouped", "conv2d", (1, 7, 8, 64), (48, 3, 3, 32), groups=2, strides=(2, 1)),
    "1x1": Case("1x1", "conv2d", (2, 5, 5, 96), (24, 1, 1, 96), symbolic=True, epilogue="add"),
    "rows": Case("rows", "linear", (5, 160), (72, 160), epilogue="add", table="uint4"),
}


def in_planes() -> Iterator[Any]:
    """Every width and form now, on alternating shapes; all shapes when there is time."""
    for (i, widths), (j, forms) in itertools.product(enumerate(PLANES), enumerate(FORMS)):
        for k, shape in enumerate(SHAPES):
            for isa in TARGETS:
                if isa == "avx512" and forms[1] == "planes" and PLANES[widths][2][-1] != "1":
                    continue  # values are as fast there
                now = (i + j) % len(SHAPES) == k and isa == list(TARGETS)[(i + j) % 2]
                mark = () if now else pytest.mark.slow
                yield pytest.param(widths, forms, shape, isa, marks=mark)


@pytest.mark.parametrize(("widths", "forms", "shape", "isa"), list(in_planes()))
def test_planes_in_memory(widths: str, forms: tuple[Form, Form], shape: str, isa: str) -> None:
    weights, x, y = PLANES[widths]
    case = dataclasses.replace(SHAPES[shape], weights=weights, dtypes=(x, y), other="uint2")
    kernel, target = family(isa, case)
    problem, arrays = case.problem(), case.data()
    problem = dataclasses.replace(
        problem,
        inputs=(dataclasses.replace(problem.inputs[0], form=forms[0]),),
        output=dataclasses.replace(problem.output, form=forms[1]),
    )
    assert kernel.refuses(problem, target) is None
    function = kernel.build(problem, target, Knobs()).with_attr("global_symbol", "main")
    library = tvm.compile(tvm.IRModule({"main": function}), target=target.tvm_target())
    given = numerics.to_planes(arrays["x"], x) if forms[0] == "planes" else arrays["x"]
    law = case.law(arrays)
    want = numerics.to_planes(law, y) if forms[1] == "planes" else law
    others = [arrays["b"]] if "b" in arrays else []
    constants = {name: values for name, values in arrays.items() if name not in ("x", "b")}
    raw, out = running.placed(np.zeros_like(want), kernel)
    activations = [running.tensor(running.placed(a, kernel)[1]) for a in (given, *others)]
    packed = map(tvm.runtime.tensor, kernel.constants(problem, constants))
    library["main"](*activations, *packed, running.tensor(out))
    running.check_around(raw, out)
    np.testing.assert_array_equal(out, want)


@pytest.mark.parametrize("widths", ["W1A1", "W1A2", "W2A2"])
def test_a_chain_passes_planes_on(widths: str) -> None:
    weights, narrow, _ = PLANES[widths]
    rng, (lo, hi) = np.random.default_rng(0), numerics.limits(narrow)

    def layer(e: graph.Emitter, x: Any, name: str) -> Any:
        w = graph.constant(2 * rng.integers(0, 2, (64, 3, 3, 64)).astype(np.int8) - 1, weights)
        operands = [x, w, graph.constant(np.zeros(64, np.int32))]
        attrs: dict[str, Any] = {"strides": (1, 1), "padding": (1, 1, 1, 1)}
        acc = e.emit(ops.call("conv2d", operands, **attrs), f"{name}.acc")
        scale = map(graph.constant, numerics.dyadic(np.asarray(0.05)))
        kept = {"dtype": narrow, "lo": lo, "hi": hi, "zero_point": int(lo == 0)}
        return e.emit(ops.call("requantize", [acc, *scale], **kept), name)

    def body(e: graph.Emitter, x: Any) -> Any:
        first = layer(e, entered(e, x, narrow), "first")
        return layer(e, layer(e, first, "second"), "third")

    compiled = check_exact(module(body, ((6, 7, 64), "float32")), force="*.bitserial.avx2")
    layers = compiled.scheduled.layers[-3:]
    assert {layer.kernel for layer in layers} == {"cpu.bitserial.avx2"}
    assert [layer.form for layer in layers] == ["planes", "planes", "values"]


def test_refuses_in_words() -> None:
    case = CASES["low 3x3 W1A1"]
    kernel, target = family("avx2", case)

    def reason(target: CpuTarget = target, **changed: Any) -> str:
        return str(kernel.supports(dataclasses.replace(case, **changed).problem(), target))

    assert "avx2" in reason(resolve("x86-64"))
    assert "pairs of bit planes" in reason(weights="int2", dtypes=("uint4", "int8"))
    assert "no sign" in reason(dtypes=("int1", "int8"))
    assert "fill no word" in reason(x=(1, 9, 11, 16), w=(64, 3, 3, 16))
    assert reason() == "None"
