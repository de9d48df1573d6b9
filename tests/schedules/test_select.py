"""Which kernel is taken, what may force it, and what the errors say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from nybble.errors import ScheduleError
from nybble.schedules import select, table
from nybble.schedules.cpu import fallback
from nybble.schedules.kernel import Constants, Epilogue, Kernel, Problem, TensorSpec
from nybble.schedules.target import CpuTarget, resolve

V3 = resolve("x86-64-v3")
PROBLEM = Problem(
    "linear",
    (TensorSpec(("n", 64), "uint8"),),
    TensorSpec(("n", 16), "int32"),
    weights=TensorSpec((16, 64), "int8"),
)
CONSTANTS: Constants = {"w": np.ones((16, 64), np.int8), "bias": np.zeros(16, np.int32)}


def choose(
    target: CpuTarget, force: str | None = None, problem: Problem = PROBLEM, **plan: Any
) -> select.Choice:
    return select.choose(problem, CONSTANTS, target, select.Planner(force, **plan))


def refusing(name: str, reason: str) -> Kernel:
    return replace(fallback.LINEAR, name=name, supports=lambda _p, _t: reason)


def unpackable(*_args: Any) -> Any:
    raise ScheduleError("a value is too large")


def test_first_supporting_kernel_wins_and_refusals_are_kept() -> None:
    kernels = (
        refusing("cpu.a", "needs a thing"),
        replace(fallback.LINEAR, name="cpu.b", pack=unpackable),
        fallback.LINEAR,
        replace(fallback.LINEAR, name="cpu.later"),
    )
    choice = choose(V3, kernels=kernels)
    assert choice.candidate.kernel is fallback.LINEAR
    assert choice.refusals == ("cpu.a: needs a thing", "cpu.b: a value is too large")


def test_default_table_prefers_the_fast_family() -> None:
    assert choose(V3).candidate.kernel.name.startswith("cpu.int8.")
    baseline = choose(resolve("x86-64"))
    assert baseline.candidate.kernel.name == "cpu.generic"
    assert any("cpu.int8.avx2: needs" in reason for reason in baseline.refusals)


def test_size_takes_the_smallest() -> None:
    def padded(problem: Problem, constants: Constants) -> list[Any]:
        return [*fallback.LINEAR.pack(problem, constants), np.zeros(4096, np.int8)]

    kernels = (replace(fallback.LINEAR, name="cpu.wide", pack=padded), fallback.LINEAR) * 2
    assert choose(V3, kernels=kernels).candidate.kernel.name == "cpu.wide"
    assert choose(V3, kernels=kernels, prefer="size").candidate.kernel is fallback.LINEAR


def test_weights_that_would_be_decoded_in_every_call_are_stored_in_bytes() -> None:
    decoding = replace(fallback.LINEAR, name="cpu.decoding", decodes=True)
    problem = replace(PROBLEM, weights=TensorSpec((16, 64), "int4"))
    for kernel, prefer, stored in (
        (decoding, "speed", "int8"), (decoding, "size", "int4"), (fallback.LINEAR, "speed", "int4"),
    ):  # fmt: skip
        found = choose(V3, problem=problem, kernels=(kernel, fallback.LINEAR), prefer=prefer)
        assert (found.candidate.kernel.name, found.candidate.weights) == (kernel.name, stored)


def test_ternary_rows_are_stored_by_threes_where_that_pays() -> None:
    weights = TensorSpec((64, 96), "int2")
    specs = TensorSpec((1, 96), "int8"), TensorSpec((1, 64), "int32")
    problem = replace(PROBLEM, inputs=specs[:1], output=specs[1], weights=weights)
    constants: Constants = {"w": np.ones((64, 96), np.int8), "bias": np.zeros(64, np.int32)}
    fast, small = (
        select.choose(problem, constants, V3, select.Planner(prefer=prefer)).candidate
        for prefer in ("speed", "size")
    )
    assert fast.kernel.name == "cpu.int2.gemv.avx2"
    assert small.kernel.name == "cpu.trits.avx2"
    assert small.size < fast.size


@pytest.mark.parametrize("target", ["x86-64", "x86-64-v3", "aarch64", "riscv64-v"])
def test_refusals_name_kernels_of_the_same_architecture(target: str) -> None:
    cpu = resolve(target)
    arch = {kernel.name: kernel.arch for kernel in table.KERNELS}
    names = [reason.partition(":")[0] for reason in choose(cpu).refusals]
    assert {arch[name] for name in names} <= {cpu.arch, None}
    assert names or target != "x86-64"


def test_pattern_forces_a_family(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose(V3, "cpu.gen*").candidate.kernel.name == "cpu.generic"
    monkeypatch.setenv("NYBBLE_KERNEL", "*.generic")
    assert choose(V3).candidate.kernel.name == "cpu.generic"
    assert choose(V3, "*int8.avx2").candidate.kernel.name == "cpu.int8.avx2"


def test_pattern_leaves_other_ops_alone() -> None:
    spec = TensorSpec(("n", 8, 8, 4), "uint8")
    attrs = (
        ("dilation", (1, 1)), ("padding", (0, 0, 0, 0)), ("pool_size", (2, 2)), ("strides", (2, 2)),
    )  # fmt: skip
    pool = Problem("max_pool2d", (spec,), spec, attrs)
    assert choose(V3, "cpu.int8.avx2", problem=pool).candidate.kernel.name == "cpu.generic"


def test_unknown_pattern_lists_the_kernels() -> None:
    with pytest.raises(ScheduleError, match=r"No kernel is called 'cpu\.none'.*cpu\.generic"):
        choose(V3, "cpu.none")


def test_refusals_stand_in_the_error() -> None:
    needs = "linear for x86-64: .*cpu.int8.avx2: needs .*avx2"
    with pytest.raises(ScheduleError, match=needs):
        choose(resolve("x86-64"), "cpu.int8.avx2")


def test_every_op_of_the_table_ends_with_a_kernel_that_takes_anything() -> None:
    last = {kernel.op: kernel for kernel in table.KERNELS}
    spec, attrs = TensorSpec((1, 1), "int8"), (("axis", -1), ("group", 1))
    odd = Problem("none", (), spec, attrs, weights=spec, epilogue=Epilogue())
    for kernel in last.values():
        assert kernel.supports(odd, resolve("aarch64")) is None
