"""Packed weights decode to what they were, and kernels that use them equal the law."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from nybble.errors import ScheduleError
from nybble.ir import numerics
from nybble.schedules.cpu import panels
from nybble.schedules.cpu.panels import Panels
from nybble.schedules.target import resolve
from tests.cases import CONV, LINEAR
from tests.schedules.cpu import running
from tests.schedules.cpu.test_conv import TARGETS, family

pytestmark = pytest.mark.sweep

DTYPES = [f"{sign}int{bits}" for bits in range(1, 8) for sign in ("", "u")]
CASES = {case.name: case for case in CONV + LINEAR}
LAYERS = ("3x3", "1x1 tails", "grouped odd", "stem 7x7x3", "one output", "batch")


def drawn(dtype: str, shape: tuple[int, ...]) -> Any:
    rng = np.random.default_rng(len(dtype))
    if dtype == "int1":
        return rng.choice(np.array([-1, 1], np.int8), shape)
    lo, hi = numerics.limits(dtype)
    return rng.integers(lo, hi, shape, endpoint=True).astype(np.int8)


def decoder(layout: Panels, rows: int) -> Any:
    """A function that decodes all panels one behind the other."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_attr({"tirx.noalias": True})
        packed = T.arg("packed", T.buffer((rows, layout.packed), "uint8", layout=None))
        out = T.arg("out", T.buffer((rows * layout.decoded,), "int8", layout=None))
        with T.serial(rows) as row:
            panels.decode(layout, packed, row, out, row * layout.decoded)
    func = builder.get().with_attr("global_symbol", "main")
    return tvm.compile(tvm.IRModule({"main": func}), resolve("x86-64-v3").tvm_target())["main"]


@pytest.mark.isa("avx2")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chunks", [1, 8, 21])
def test_decoding_undoes_packing(dtype: str, chunks: int) -> None:
    layout = Panels(dtype, chunks * 32, 32)
    values = drawn(dtype, (3, layout.length))
    packed = panels.pack(layout, values)
    assert packed.shape == (3, layout.packed)
    assert layout.packed * 8 == layout.decoded * layout.bits
    out = tvm.runtime.tensor(np.zeros(3 * layout.decoded, np.int8))
    decoder(layout, 3)(tvm.runtime.tensor(packed), out)
    found = out.numpy().reshape(3, -1)[:, : layout.length]
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize(
    ("dtype", "value"), [("int4", 8), ("int2", -3), ("int1", 0), ("uint3", -1)]
)
def test_values_beyond_the_dtype_are_refused(dtype: str, value: int) -> None:
    with pytest.raises(ScheduleError, match=f"{dtype} does not have"):
        panels.pack(Panels(dtype, 32, 32), np.full((1, 32), value, np.int8))


def rows(names: tuple[str, ...], dtypes: list[str]) -> Iterator[Any]:
    """Every layer and every dtype on some instruction set now; all with all when there is time."""
    isas = tuple(TARGETS)
    for (i, name), (j, dtype), (k, isa) in product(*map(enumerate, (names, dtypes, isas))):
        now = i == j % len(names) and k == j % len(isas)
        yield pytest.param(name, isa, dtype, marks=() if now else pytest.mark.slow)


@pytest.mark.parametrize(("name", "isa", "dtype"), list(rows(LAYERS, DTYPES)))
def test_equals_the_law(name: str, isa: str, dtype: str) -> None:
    case = replace(CASES[name], weights=dtype)
    kernel, target = family(isa, case)
    assert kernel.supports(case.problem(), target) is None
    running.check(kernel, case, target)


ACTIVATIONS = [f"{sign}int{bits}" for bits in range(1, 9) for sign in ("", "u")]


@pytest.mark.parametrize(
    ("name", "isa", "dtype"), list(rows(("3x3 add", "1x1 tails", "pad value"), ACTIVATIONS))
)
def test_narrow_activations(name: str, isa: str, dtype: str) -> None:
    case = replace(CASES[name], weights="int4", dtypes=(dtype, dtype), other=dtype, pad_value=0)
    kernel, target = family(isa, case)
    assert kernel.supports(case.problem(), target) is None
    running.check(kernel, case, target)
