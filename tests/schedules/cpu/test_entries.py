"""A table fused behind an epilogue equals the law in every kernel that can have one."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from nybble.ir import graph, numerics, ops
from nybble.schedules import table
from nybble.schedules.kernel import Kernel
from nybble.schedules.target import CpuTarget, host_features, resolve
from tests.cases import Case
from tests.low_cases import TABLED
from tests.schedules.cpu import running
from tests.schedules.modules import check_exact, module

pytestmark = pytest.mark.sweep

LEVELS = ("x86-64", "x86-64-v3", "x86-64-v4", "x86-64-v4-vnni", "x86-64-v4-amx")


def takers(case: Case, target: CpuTarget) -> list[Kernel]:
    """The kernels that take a case, without those that lower levels have as well."""
    at = LEVELS.index(target.name)
    below = resolve(LEVELS[at - 1]) if at else None
    problem = case.problem()
    found = [k for k in table.KERNELS if k.op == case.op and not k.refuses(problem, target)]
    old = [k for k in found if below and not k.refuses(problem, below)]
    return [k for k in found if k not in old and not k.name.endswith(".packed")]


def rows() -> Iterator[Any]:
    """Every kernel of every level with every case; one case for each kernel now."""
    seen: set[tuple[str, str]] = set()
    for level in LEVELS:
        for case in TABLED:
            for kernel in takers(case, resolve(level)):
                now = (kernel.name, kernel.op) not in seen
                seen.add((kernel.name, kernel.op))
                mark = () if now else pytest.mark.slow
                yield pytest.param(level, case, kernel, id=f"{kernel.name}-{case.name}", marks=mark)


ROWS = list(rows())


@pytest.mark.parametrize(("level", "case", "kernel"), ROWS)
def test_equals_the_law(level: str, case: Case, kernel: Kernel) -> None:
    target = resolve(level)
    if not target.features <= host_features():
        pytest.skip(f"this CPU lacks {', '.join(sorted(target.features - host_features()))}")
    running.check(kernel, case, target)


def test_the_rows_cover_the_families() -> None:
    names = {row.values[2].name for row in ROWS}
    for family in ("lut", "bitserial", "gemv", "winograd", "depthwise.quads", "amx", "vnni"):
        assert any(family in name for name in names), family


@pytest.mark.parametrize(
    ("target", "index", "fuses"),
    [
        ("x86-64", "int8", True), ("x86-64-v3", "int8", False), ("x86-64-v3", "int4", True),
        ("x86-64-v4", "uint5", False), ("x86-64-v4-amx", "uint4", True),
    ],
)  # fmt: skip
@pytest.mark.parametrize("anchor", ["conv2d", "linear", "sum_pool2d"])
def test_the_matcher_fuses_what_pays(anchor: str, target: str, index: str, fuses: bool) -> None:
    cpu, rng = resolve(target), np.random.default_rng(0)
    if not cpu.features <= host_features():
        pytest.skip(f"this CPU lacks {', '.join(sorted(cpu.features - host_features()))}")
    low, high = numerics.limits(index)
    drawn = rng.integers(-128, 127, high - low + 1, np.int8, endpoint=True)
    weights = {"conv2d": (24, 3, 3, 16), "linear": (24, 16)}
    window = {"strides": (1, 1), "padding": (1, 1, 1, 1)}

    def body(e: graph.Emitter, x: Any) -> Any:
        operands, attrs = [x], {} if anchor == "linear" else dict[str, Any](window)
        if anchor in weights:
            w = graph.constant(rng.integers(-127, 127, weights[anchor], np.int8, endpoint=True))
            operands += [w, graph.constant(np.arange(24, dtype=np.int32))]
        else:
            attrs["pool_size"] = (3, 3)
        acc = e.emit(ops.call(anchor, operands, **attrs), "acc")
        scale = map(graph.constant, numerics.dyadic(np.asarray(0.01)))
        kept = {"dtype": index, "lo": low, "hi": high}
        q = e.emit(ops.call("requantize", [acc, *scale], **kept), "q")
        return e.emit(ops.call("table", [q, graph.constant(drawn)]), "y")

    shape = (16,) if anchor == "linear" else (7, 7, 16)
    compiled = check_exact(module(body, (shape, "uint8")), cpu)
    found = [op for op, _ in compiled.kernels]
    rescaled = f"{anchor}+requantize"
    assert found == ([f"{rescaled}+table"] if fuses else [rescaled, "table"])
