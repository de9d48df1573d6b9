"""Activations of 4 bits stored two a byte: read, added and written, bit for bit."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import tvm

from nybble.ir import numerics
from nybble.schedules.cpu import conv
from nybble.schedules.kernel import Form, Knobs
from nybble.schedules.table import KERNELS
from nybble.schedules.target import host_features, resolve
from tests.cases import CONV

pytestmark = pytest.mark.sweep

CASES = {case.name: case for case in CONV}
TARGETS = {"avx2.pairs": "x86-64-v3", "avx2": "x86-64-v3", "vnni": "x86-64-v4-vnni"}
FORMS = [f for f in product((False, True), repeat=3) if any(f)]


def packed(values: Any, dtype: str, wanted: bool) -> Any:
    stored = numerics.pack(values, dtype) if wanted else values
    return tvm.runtime.tensor(np.ascontiguousarray(stored))


def _form(wanted: bool) -> Form:
    return "packed" if wanted else "values"


LAYERS = ("3x3 add", "1x1", "1x1 batch", "3x3 stride 2")


def rows() -> Iterator[Any]:
    """Everything with something now, everything with everything when there is time."""
    for (i, name), (j, forms), (k, isa) in product(*map(enumerate, (LAYERS, FORMS, TARGETS))):
        now = i == j % len(LAYERS) and k == j % len(TARGETS)
        yield pytest.param(name, forms, isa, marks=() if now else pytest.mark.slow)
    yield "3x3", (True, False, True), "winograd.avx2.pairs"
    yield "3x3", (False, True, True), "winograd.avx2.pairs"


@pytest.mark.parametrize(("name", "forms", "isa"), list(rows()))
def test_packed_activations(name: str, forms: tuple[bool, bool, bool], isa: str) -> None:
    target = resolve(TARGETS[isa.removeprefix("winograd.")])
    if not target.features <= host_features():
        pytest.skip(f"this CPU lacks {sorted(target.features - host_features())}")
    dtype = "int4" if forms[0] == forms[1] else "uint4"
    case = replace(CASES[name], weights="int4", dtypes=(dtype, dtype), other=dtype)
    if forms[1]:
        case = replace(case, epilogue="add")
    problem, arrays = case.problem(), case.data()
    x, other, y = (_form(wanted) for wanted in forms)
    epilogue = problem.epilogue
    if epilogue.other is not None:
        epilogue = replace(epilogue, other=replace(epilogue.other, form=other))
    problem = replace(
        problem,
        inputs=(replace(problem.inputs[0], form=x),),
        output=replace(problem.output, form=y),
        epilogue=epilogue,
    )
    kernel = next(k for k in KERNELS if k.name == f"cpu.int8.{isa}.packed")
    assert kernel.refuses(problem, target) is None
    function = kernel.build(problem, target, Knobs()).with_attr("global_symbol", "main")
    library = tvm.compile(tvm.IRModule({"main": function}), target=target.tvm_target())
    constants = {name: values for name, values in arrays.items() if name not in ("x", "b")}
    law = case.law(arrays)
    expected = numerics.pack(law, dtype) if forms[2] else law
    out = tvm.runtime.tensor(np.zeros(expected.shape, expected.dtype))
    activations = [packed(arrays["x"], dtype, forms[0])]
    activations += [packed(arrays["b"], dtype, forms[1])] if "b" in arrays else []
    weights = [tvm.runtime.tensor(array) for array in kernel.pack(problem, constants)]
    library["main"](*activations, *weights, out)
    np.testing.assert_array_equal(out.numpy(), expected)


def test_refuses_what_it_cannot_pack() -> None:
    kernel = next(k for k in conv.KERNELS if k.name == "cpu.int8.avx2.packed")
    target = resolve("x86-64-v3")
    assert "4 bits" in str(kernel.refuses(CASES["3x3"].problem(), target))
    odd = replace(CASES["1x1 few channels"], dtypes=("uint4", "uint4"), other="uint4").problem()
    odd = replace(odd, output=replace(odd.output, form="packed"))
    assert "multiples" in str(kernel.refuses(odd, target))
