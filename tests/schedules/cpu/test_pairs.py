"""Kernels that add pairs of products in 16 bits equal the law, at the limits and beyond."""

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import tvm

from nybble.errors import ScheduleError
from nybble.schedules.build import kernel_library
from nybble.schedules.cpu import excess
from nybble.schedules.kernel import Knobs
from tests.cases import CONV, LINEAR, Case
from tests.schedules.cpu import running
from tests.schedules.cpu.test_conv import family

pytestmark = pytest.mark.sweep

CASES = {case.name: case for case in CONV + LINEAR}
LAYERS = ("3x3", "3x3 signed", "1x1 tails", "grouped odd", "stem 7x7x3", "3x3 dilated rows",
    "odd everything", "one output", "batch", "K=4099 random", "K=257 random")  # fmt: skip
PAIRS = ("avx2.pairs", "avx512.pairs")


def mixed() -> Iterator[Any]:
    """Every layer with some width now, all widths when there is time."""
    widths = ("int8", "int7", "int5", "int4", "int2")
    for (i, name), (j, weights) in product(enumerate(LAYERS), enumerate(widths)):
        now = i % len(widths) == j
        yield pytest.param(name, weights, marks=() if now else pytest.mark.slow)


@pytest.mark.parametrize(("name", "weights"), list(mixed()))
def test_equals_the_law(name: str, weights: str) -> None:
    case = replace(CASES[name], operands="normal", weights=weights)
    kernel, target = family(PAIRS[len(name) % 2], case)
    assert kernel.supports(case.problem(), target) is None
    running.check(kernel, case, target)


@pytest.mark.parametrize("flush", [1, 2, 3, 24])
@pytest.mark.parametrize("operands", ["random", "high", "low", "alternating"])
def test_any_window_is_exact_for_any_weights(
    flush: int, operands: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(excess, "MOST", 2.0)
    for isa, name in zip(PAIRS, ("3x3 signed", "K=257 high"), strict=True):
        case = replace(CASES[name], flush=flush, operands=operands)
        kernel, target = family(isa, case)
        running.check(kernel, case, target)


def test_too_many_further_steps_are_refused() -> None:
    case = replace(CASES["3x3"], flush=1, operands="high")
    kernel, _ = family("avx2.pairs", case)
    with pytest.raises(ScheduleError, match="beyond 16 bits"):
        running.arguments(kernel, case, case.data())


@pytest.mark.parametrize("name", ["3x3", "1x1 tails", "K=257 random", "grouped odd"])
def test_safe_windows_need_no_further_steps(name: str) -> None:
    case = replace(CASES[name], operands="normal", weights="int3")
    problem = case.problem()
    kernel, target = family("avx2.pairs", case)
    assert problem.safe
    assert len(running.arguments(kernel, case, case.data())) < len(
        running.arguments(kernel, replace(case, flush=problem.flush), case.data())
    )
    running.check(kernel, case, target)


def test_windows_that_are_not_safe_are_refused() -> None:
    case = replace(CASES["3x3"], flush=3, operands="high")
    kernel, _ = family("avx2.pairs", case)
    constants = {name: part for name, part in case.data().items() if name not in ("x", "b")}
    with pytest.raises(ScheduleError, match="exceed 16 bits"):
        kernel.pack(replace(case.problem(), safe=True), constants)


def inner_loops(assembly: str) -> Iterator[str]:
    """The loops of a single basic block."""
    for block in re.split(r"^(?=\.LBB)", assembly, flags=re.MULTILINE):
        label = block.split(":", 1)[0]
        again = re.search(rf"\sj\w+\s+{re.escape(label)}$", block, re.MULTILINE)
        if label.startswith(".LBB") and again:
            yield block[: again.end()]


@pytest.mark.parametrize("tile", ["2x1x4", "5x1x2", "14x1x1"])
def test_sums_of_long_windows_stay_in_registers(tile: str) -> None:
    high, _, vectors = (int(extent) for extent in tile.split("x"))
    case = Case("1x1", "conv2d", (1, 28, 28, 512), (128, 1, 1, 512), weights="int4")
    case = replace(case, operands="normal")
    kernel, target = family("avx2.pairs", case)
    function = kernel.build(case.problem(), target, Knobs({"tile": tile}))
    module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    loops = list(inner_loops(kernel_library(module, target).inspect_source("asm")))
    main = [loop for loop in loops if loop.count("vpmaddubsw") % (high * vectors) == 0]
    main = [loop for loop in main if loop.count("vpaddw") >= high * vectors]
    assert main
    for loop in main:
        assert not re.search(r"\(%r[sb]p\).*%ymm|%ymm.*\(%r[sb]p\)", loop)
