"""Which decisions a layer gets, which kernel a record may put in place; bits never change."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax

from nybble.errors import ScheduleError
from nybble.ir import ops
from nybble.schedules import select, table
from nybble.schedules.build import build
from nybble.schedules.forms import Step
from nybble.schedules.kernel import Constants, Kernel, Problem, TensorSpec
from nybble.schedules.lower import lower, plan_steps
from nybble.schedules.records import Record, Records
from nybble.schedules.replay import Replay
from nybble.schedules.select import Planner
from nybble.tuning.space import Variant
from tests.schedules.modules import inputs_of, module
from tests.schedules.recording import AVX2, CONV, ELSEWHERE, HERE, LINEAR, V3, decided, record
from tests.schedules.test_integer import bias, chain, clamped, scale, weights

GENERIC = ("cpu.generic", "int8")
RNG = np.random.default_rng(0)
CONSTANTS: Constants = {
    "w": RNG.integers(-127, 128, (32, 64), np.int8),
    "bias": np.zeros(32, np.int32),
}
AVX = next(k for k in table.KERNELS if (k.name, k.op) == (AVX2[0], "linear"))
HALF = decided(rows=4)  # legal for 8 rows
pytestmark = pytest.mark.isa("avx2")  # records of other machines count otherwise


def replay(*records: Record, behind: tuple[Record, ...] = (), threads: int | None = 1) -> Replay:
    known = Records(records)
    known.behind = Records(behind)
    return Replay(known, V3, threads)


def match(known: Replay, problem: Problem = LINEAR, kernel: Kernel = AVX) -> tuple[str, Any]:
    """The kind and the recorded ratio of what a kernel gets."""
    found = next(known.matches(kernel, problem, problem))
    return found.kind, found.ratio


def taken(known: Replay | None, problem: Problem = LINEAR, **plan: Any) -> str:
    """The kernel that is chosen."""
    found = select.choose(problem, CONSTANTS, V3, Planner(replay=known, **plan))
    return found.candidate.kernel.name


# ---------------------------------------------------------------- decisions


def test_the_best_record_of_the_layer_counts() -> None:
    worse, best = record(0.9, decisions=decided(rows=8)), record(0.7, decisions=HALF)
    found = next(replay(worse, best).matches(AVX, LINEAR, LINEAR))
    assert (found.kind, found.record, found.decisions) == ("exact", best, HALF)
    assert found.knobs(2).decisions == {"rows": 4}
    assert found.knobs(1).decisions == {"rows": 4, "parallel": False}
    assert replay(worse, best).best(LINEAR) == best
    assert replay(worse, best).best(LINEAR, threads=2) is None


def test_within_the_noise_the_defaults_stay() -> None:
    assert match(replay(record(0.95, noise=0.06, decisions=HALF))) == ("exact", 1.0)
    assert match(replay(record(0.95, noise=0.04, decisions=HALF))) == ("exact", 0.95)
    lucky, sure = record(0.70, noise=0.5, decisions=HALF), record(0.8, noise=0.0)
    assert match(replay(lucky, sure)) == ("exact", 0.8)


def test_short_races_are_left_aside() -> None:
    lucky, sure = record(0.5, decisions=HALF, turns=9), record(0.8, decisions=decided(rows=8))
    known = replay(lucky)
    assert match(known) == ("default", None)
    assert list(known.notes()) == ["those of 1 layers, not raced to the end (let it be tuned on)"]
    assert match(replay(lucky, sure)) == ("exact", 0.8)
    assert list(replay(lucky, sure).notes()) == []
    assert taken(replay(record(0.5, kernel=GENERIC[0], turns=9))) == AVX2[0]


def test_a_kernel_that_is_not_the_reference_must_beat_its_own_defaults() -> None:
    other = {"reference": GENERIC}
    tuned, untuned = record(1.2, decisions=HALF, **other), record(1.5, decisions=(), **other)
    usual = dict(replay()._taken(AVX, LINEAR, ()) or {})
    measured = replace(untuned, decisions=tuple(sorted(usual.items())))
    assert match(replay(tuned)) == ("default", None)
    assert match(replay(tuned, measured)) == ("exact", 1.2)
    assert match(replay(measured)) == ("exact", 1.5)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"sources": "of last year"}, "nearest"),
        ({"machine": ELSEWHERE}, "nearest"),
        ({"threads": 2}, "default"),
        ({"problem": replace(LINEAR, flush=8)}, "nearest"),
        ({"kernel": "cpu.int8.avx512"}, "default"),
        ({"weights": "int4"}, "default"),
        ({"machine": replace(HERE, features=("avx2",))}, "default"),
        ({"machine": replace(HERE, arch="aarch64")}, "default"),
        ({"machine": replace(HERE, compiler="c")}, "default"),
    ],
)
def test_what_differs_is_near_at_most(change: dict[str, Any], kind: str) -> None:
    one = record(0.5, decisions=decided(rows=4, parallel=True))
    assert match(replay(one))[0] == "exact"
    assert match(replay(replace(one, **change)))[0] == kind


def test_the_nearest_legal_layer_counts() -> None:
    def of(channels: int, ratio: float, **decisions: Any) -> Record:
        spec = replace(LINEAR.inputs[0], shape=(8, channels))
        weights = TensorSpec((32, channels), "int8")
        near = replace(LINEAR, inputs=(spec,), weights=weights)
        return record(ratio, problem=near, decisions=decided(**decisions))

    near, far = of(128, 0.9, rows=4), of(1024, 0.5, rows=4)
    assert match(replay(far, near)) == ("nearest", 0.9)
    assert match(replay(of(128, 0.9, rows=999), far)) == ("nearest", 0.5)  # 999 rows are not legal
    assert match(replay(of(128, 0.9, knob=1))) == ("default", None)  # no such knob
    assert match(replay(of(128, 0.999, rows=4))) == ("default", None)  # did not win
    assert match(replay(of(1 << 14, 0.5, rows=4))) == ("default", None)  # too far away


def test_illegal_decisions_are_left_aside_and_counted() -> None:
    known = replay(
        record(0.5, decisions=decided(rows=999)), record(0.6, decisions=decided(gone=1)),
        record(0.7, decisions=HALF),
    )  # fmt: skip
    assert match(known) == ("exact", 0.7)
    assert match(known) == ("exact", 0.7)
    assert list(known.notes()) == ["2 with decisions that the kernels do not offer today"]


def test_other_targets_are_counted() -> None:
    foreign = record(machine=replace(HERE, arch="aarch64"))
    assert list(replay(foreign, record()).notes()) == ["1 for other targets"]
    assert list(replay(record(), behind=(foreign,)).notes()) == []  # what ships is nobody's concern


def test_what_the_user_recorded_stands_before_what_ships() -> None:
    slow, fast = record(0.9, decisions=HALF), record(0.5, decisions=HALF)
    assert match(replay(slow, behind=(fast,))) == ("exact", 0.9)
    assert match(replay(behind=(fast,))) == ("exact", 0.5)


def test_names_of_symbolic_extents_do_not_matter() -> None:
    def named(name: str) -> Problem:
        inputs, output = (
            replace(s, shape=(name, *s.shape[1:])) for s in (*CONV.inputs, CONV.output)
        )
        return replace(CONV, inputs=(inputs,), output=output)

    kernel = next(k for k in table.KERNELS if (k.name, k.op) == (AVX2[0], "conv2d"))
    known = replay(record(0.5, problem=named("batch"), decisions=decided(splits=1)))
    assert match(known, named("N"), kernel) == ("exact", 0.5)


# ---------------------------------------------------------------- threads


def test_a_record_of_one_thread_says_nothing_of_layers_that_start_more() -> None:
    alone = decided(parallel=False, rows=4)
    small, several = record(0.5, decisions=alone), record(0.5, decisions=decided(parallel=True))
    for known in (replay(small, threads=None), replay(small, threads=8)):
        assert match(known) == ("exact", 0.5)  # neither starts threads
    for known in (replay(several, threads=None), replay(several, threads=8)):
        assert match(known) == ("default", None)
        assert "those of 1 layers, measured with another number" in next(known.notes())
    assert match(replay(several, threads=1)) == ("exact", 0.5)


def test_records_of_several_threads() -> None:
    two = record(0.5, decisions=decided(parallel=True), threads=2)
    assert match(replay(two, threads=2)) == ("exact", 0.5)
    assert match(replay(two, threads=None)) == ("exact", 0.5)
    assert match(replay(two, threads=4)) == ("nearest", 0.5)
    assert match(replay(two, threads=1)) == ("default", None)


# ---------------------------------------------------------------- kernels


def test_only_an_exact_record_beyond_the_noise_puts_another_kernel_in_place() -> None:
    assert taken(None) == AVX2[0]
    other = record(0.8, kernel=GENERIC[0])
    assert taken(replay(other)) == GENERIC[0]
    for change in (
        {"noise": 0.3}, {"turns": 9}, {"sources": "old"}, {"machine": ELSEWHERE},
        {"reference": None},
        {"reference": ("cpu.int8.vnni", "int8")}, {"problem": replace(LINEAR, flush=8)},
        {"decisions": decided(rows=4)}, {"weights": "int4"}, {"kernel": "cpu.int8.vnni"},
    ):  # fmt: skip
        assert taken(replay(replace(other, **change))) == AVX2[0], change
    assert taken(replay(other, record(0.7))) == AVX2[0]  # its own decisions are better
    assert taken(replay(other, record(0.79, noise=0.1))) == GENERIC[0]
    assert taken(replay(other), prefer="size") == taken(None, prefer="size")
    assert taken(replay(other), force="cpu.int8.avx2") == AVX2[0]


def test_a_record_may_widen_the_weights() -> None:
    narrow = replace(LINEAR, weights=TensorSpec((32, 64), "int4"))
    values = {**CONSTANTS, "w": np.zeros((32, 64), np.int8)}
    usual = select.choose(narrow, values, V3, Planner()).candidate
    name = (usual.kernel.name, usual.weights)
    wide = record(0.5, problem=narrow, kernel=GENERIC[0], weights="int8", reference=name)
    plan = Planner(replay=replay(wide))
    found = select.choose(narrow, values, V3, plan).candidate
    assert (found.kernel.name, found.weights) == ("cpu.generic", "int8")


def test_measured_times_count_with_the_records_ratio() -> None:
    known = replay(record(0.5, decisions=HALF), record(0.2, kernel="cpu.int8.vnni"))

    def ruler(candidates: Any, _target: Any) -> list[float]:
        return [8.0 if c.kernel.name == AVX2[0] else 10.0 for c in candidates]

    plain, tuned = (
        select.choose(LINEAR, CONSTANTS, V3, Planner(ruler=ruler, replay=given)).timed
        for given in (None, known)
    )
    pairs = list(zip(plain, tuned, strict=True))
    assert {t.kernel: t.seconds / p.seconds for p, t in pairs}[AVX2[0]] == 0.5
    assert all(t.seconds == p.seconds for p, t in pairs if p.kernel != AVX2[0])


def test_a_recorded_winner_is_timed_though_it_is_not_taken_by_default() -> None:
    def ruler(candidates: Any, _target: Any) -> list[float]:
        return [9.0 if c.kernel.name == GENERIC[0] else 5.0 for c in candidates]

    usual = record(1.0, decisions=HALF)
    winner = record(0.3, kernel=GENERIC[0], decisions=())
    plan = Planner(ruler=ruler, replay=replay(usual, winner))
    found = select.choose(LINEAR, CONSTANTS, V3, plan)
    assert GENERIC[0] in [timed.kernel for timed in found.timed]
    alone = select.choose(LINEAR, CONSTANTS, V3, replace(plan, replay=replay(usual)))
    assert GENERIC[0] not in [timed.kernel for timed in alone.timed]


def test_records_alone_tell_times_of_other_machines() -> None:
    tuned = record(0.5, decisions=HALF, seconds=1e-4)
    other = record(0.75, kernel=GENERIC[0], seconds=1.8e-4)
    plan = Planner(replay=replay(tuned, other), recorded=True)
    found = select.choose(LINEAR, CONSTANTS, V3, plan)
    assert found.candidate.kernel.name == AVX2[0]
    (timed,) = found.timed
    assert timed.seconds == pytest.approx(0.5 * 2.2e-4)  # the median of 2 and 2.4
    with pytest.raises(ScheduleError, match=r"records say nothing of linear uint8\[8, 64\]"):
        select.choose(LINEAR, CONSTANTS, V3, Planner(replay=replay(), recorded=True))


# ---------------------------------------------------------------- bits


def variants(step: Step) -> list[Variant]:
    """The fast kernels of the table that can compile a layer, or all where there are none."""
    assert step.problem is not None
    found = []
    for kernel in table.KERNELS:
        if kernel.op == step.problem.op and kernel.refuses(step.problem, V3) is None:
            with contextlib.suppress(ScheduleError):  # the weights' values are beyond the kernel
                kernel.constants(step.problem, step.group.constants)
                found.append(Variant(kernel, step.problem, V3))
    return [one for one in found if one.kernel.name != GENERIC[0]] or found


def drawn(mod: tvm.IRModule, seed: int) -> list[Record]:
    """For every layer of a module a record of random decisions of a random kernel."""
    rng, found = random.Random(seed), []
    for step, _ in plan_steps(mod, V3, Planner()):
        if step.problem is not None and step.kernel is not None:
            point = rng.choice(variants(step)).draw(rng)
            usual = (step.kernel.name, point.weights)
            what = {"kernel": point.kernel, "weights": point.weights, "reference": usual}
            found.append(record(0.5, problem=step.problem, decisions=point.decisions, **what))
    return found


def run(mod: tvm.IRModule, known: Replay | None, arrays: list[Any]) -> tuple[Any, Any]:
    scheduled = lower(mod, V3, Planner(replay=known))
    machine = relax.VirtualMachine(build(scheduled.module, V3), tvm.cpu())
    out = machine["main"](*map(tvm.runtime.tensor, arrays))
    return scheduled.layers, out.numpy()


def small() -> tvm.IRModule:
    """A convolution and a linear layer."""

    def body(e: Any, x: Any) -> Any:
        attrs = {"strides": (1, 1), "padding": (1, 1, 1, 1), "dilation": (1, 1), "groups": 1}
        acc = e.emit(ops.call("conv2d", [x, weights(24, 3, 3, 16), bias(24)], **attrs), "conv")
        y = e.emit(ops.call("requantize", [acc, *scale(24, 1, 40)], **clamped("uint8")), "y")
        flat = e.emit(relax.op.reshape(y, relax.ShapeExpr([x.ty.shape[0], 24 * 49])), "flat")
        return e.emit(ops.call("linear", [flat, weights(32, 24 * 49), bias(32)]), "z")

    return module(body, ((7, 7, 16), "uint8"))


def check_bits(mod: tvm.IRModule, seeds: Iterable[int]) -> None:
    """Random legal records give the bits of the defaults; they are taken, all of them."""
    arrays = inputs_of(mod, 2)
    usual, expected = run(mod, None, arrays)
    assert all(layer.match.kind == "default" for layer in usual)
    decisions = set[Any]()
    for seed in seeds:
        records = drawn(mod, seed)
        layers, got = run(mod, replay(*records), arrays)
        np.testing.assert_array_equal(got, expected)
        assert [layer.kernel for layer in layers] == [one.kernel for one in records]
        assert all(layer.match.kind == "exact" for layer in layers)
        decisions.update(layer.match.decisions for layer in layers)
    assert len(decisions) > 2


def test_no_legal_record_changes_a_bit() -> None:
    check_bits(small(), range(2))


@pytest.mark.slow
def test_no_legal_record_changes_a_bit_of_a_network() -> None:
    check_bits(chain("half_up"), range(10))


def test_decisions_that_cannot_be_built_are_refused() -> None:
    def fails(problem: Problem, target: Any, knobs: Any) -> Any:
        if "splits" in knobs.decisions:
            raise ScheduleError("not today")
        return AVX.build(problem, target, knobs)

    def body(emitter: Any, x: Any) -> Any:
        operands = [x, relax.const(CONSTANTS["w"]), relax.const(CONSTANTS["bias"])]
        return emitter.emit(ops.call("linear", operands), "y")

    mod = module(body, ((64,), "uint8"))
    kernels = (replace(AVX, build=fails), *table.KERNELS)
    usual = lower(mod, V3, Planner(kernels=kernels))
    step = plan_steps(mod, V3, Planner())[0][0]
    known = replay(record(0.5, problem=step.problem, decisions=decided(splits=1)))
    (layer,) = lower(mod, V3, Planner(kernels=kernels, replay=known)).layers
    assert (layer.kernel, layer.match.decisions) == (usual.layers[0].kernel, ())
    assert list(known.notes()) == ["1 with decisions that the kernels do not offer today"]
