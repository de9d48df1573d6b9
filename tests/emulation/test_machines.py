"""Kernels for machines that are not this one equal the law bit for bit, under qemu-user."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nybble.ir import interpreter
from nybble.schedules import table
from nybble.schedules.kernel import Kernel
from nybble.schedules.target import resolve
from tests.cases import CONV, DEPTHWISE, LINEAR, MULTIPLIED, Case
from tests.emulation import machines
from tests.emulation.networks import Deployed, Emulated
from tests.low_cases import LOW, LOW_LINEAR, TABLED
from tests.schedules.cpu.test_conv import sample
from tests.schedules.modules import inputs_of
from tests.schedules.test_integer import EVERY_OP, chain

FAMILIES = {
    "usmmla": ("aarch64-i8mm", "cpu.int8.usmmla"),
    "smmla": ("aarch64-i8mm", "cpu.int8.smmla"),
    "usdot": ("aarch64-i8mm", "cpu.int8.usdot"),
    "sdot": ("aarch64-dotprod", "cpu.int8.sdot"),
    "neon": ("aarch64", "cpu.int8.neon"),
    "rvv": ("riscv64-v", "cpu.int8.rvv"),
}
DEPTHWISE_FAMILIES = {
    "neon": ("aarch64", "cpu.int8.depthwise.neon"),
    "rvv": ("riscv64-v", "cpu.int8.depthwise.rvv"),
}
GENERIC = {
    name: (name, "cpu.generic") for name in ("aarch64", "riscv64", "riscv64-v", "c", "c-aarch64")
}
TABLES = tuple(case for case in TABLED if case.weights == "int8")
BLOCKED = {case.name: case for case in CONV + LINEAR + TABLES if case.name[:2] != "dw"}
CHANNELS = {case.name: case for case in DEPTHWISE + MULTIPLIED + TABLES if case.name[:2] == "dw"}
CASES = BLOCKED | CHANNELS
LOOKED_UP = {case.name: case for case in LOW + LOW_LINEAR}
LOOKED_UP_NOW = ("low 3x3 add", "low 3x3 signs", "low many rows", "low odd everything")
SIGNED = {"usmmla": False, "usdot": False, "smmla": True}
NOW = (
    "3x3 add", "3x3 signed", "dw 4x2", "3x3, table int8 uint8", "1x1 tails, table uint4 uint4",
    "dw, table uint8 int8",
)  # fmt: skip
KNOBS = ("3x3 add", "odd everything", "grouped odd")
TARGETS = tuple(dict.fromkeys(t for t, _ in [*FAMILIES.values(), *GENERIC.values()]))


def rows(
    families: Iterable[str], cases: Iterable[str], now: tuple[str, ...] = NOW
) -> Iterator[Any]:
    """Every case for every family; one of them at once, the rest when there is time."""
    named = list(families)
    for case in cases:
        for family in named:
            if family in SIGNED and SIGNED[family] != CASES[case].dtypes[0].startswith("i"):
                continue  # its twin for the other sign takes it
            marks = () if case in now else pytest.mark.slow
            yield pytest.param(family, case, marks=marks, id=f"{family}-{case}")


def kernel_of(name: str, case: Case) -> Kernel:
    return next(k for k in table.KERNELS if (k.name, k.op) == (name, case.op))


def check(target: str, name: str, case: Case, folder: Path, tasks: int = 3) -> None:
    kernel, cpu = kernel_of(name, case), resolve(target)
    reason = kernel.supports(case.problem(), cpu)
    assert reason is None or (reason == "a single pixel would be computed twice")
    if reason is not None:
        pytest.skip(reason)
    machines.check(kernel, case, cpu, folder, tasks)


@pytest.mark.sweep
@pytest.mark.parametrize(("family", "name"), list(rows(FAMILIES, BLOCKED)))
def test_blocked(family: str, name: str, tmp_path: Path) -> None:
    check(*FAMILIES[family], BLOCKED[name], tmp_path)


@pytest.mark.parametrize(("family", "name"), list(rows(DEPTHWISE_FAMILIES, CHANNELS)))
def test_depthwise(family: str, name: str, tmp_path: Path) -> None:
    check(*DEPTHWISE_FAMILIES[family], CHANNELS[name], tmp_path)


@pytest.mark.parametrize(("family", "name"), list(rows(GENERIC, CASES, ("rows",))))
def test_generic(family: str, name: str, tmp_path: Path) -> None:
    check(*GENERIC[family], CASES[name], tmp_path)


@pytest.mark.sweep
@pytest.mark.parametrize(("family", "name"), list(rows(("neon",), LOOKED_UP, LOOKED_UP_NOW)))
def test_tables(family: str, name: str, tmp_path: Path) -> None:
    case = LOOKED_UP[name]
    machines.check(kernel_of(f"cpu.lut.{family}", case), case, resolve("aarch64"), tmp_path)


def test_tables_of_products(tmp_path: Path) -> None:
    case = LOOKED_UP["low 3x3 add"]
    machines.check(kernel_of("cpu.products.neon", case), case, resolve("aarch64"), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "name"), list(rows(FAMILIES, KNOBS, ())))
def test_every_choice_gives_the_same_bits(family: str, name: str, tmp_path: Path) -> None:
    target, kernel = FAMILIES[family]
    case, cpu = BLOCKED[name], resolve(target)
    chosen = kernel_of(kernel, case)
    draw = random.Random(name)
    for _ in range(2):
        machines.check(chosen, case, cpu, tmp_path, knobs=sample(chosen, case, cpu, draw))


@pytest.mark.parametrize("tasks", [1, 2, 5])
def test_tasks_do_not_matter(tasks: int, tmp_path: Path) -> None:
    check("aarch64-dotprod", "cpu.int8.sdot", BLOCKED["3x3 add unsigned"], tmp_path, tasks)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", EVERY_OP)
def test_every_op(name: str, target: str, tmp_path: Path) -> None:
    mod = EVERY_OP[name]
    emulated = Emulated(mod, resolve(target), tmp_path)
    for batch in (1, 3):
        arrays = inputs_of(mod, batch)
        np.testing.assert_array_equal(emulated(arrays), interpreter.run(mod, arrays)[0])


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_network(target: str, tmp_path: Path) -> None:
    mod = chain("half_up")
    emulated = Emulated(mod, resolve(target), tmp_path)
    arrays = inputs_of(mod, 2)
    np.testing.assert_array_equal(emulated(arrays), interpreter.run(mod, arrays)[0])


@pytest.mark.slow
@pytest.mark.parametrize("target", ["x86-64", *TARGETS])
def test_library(target: str, tmp_path: Path) -> None:
    """The whole ``.so`` of a network: linked for the machine, opened and run there."""
    mod = chain("half_up")
    deployed = Deployed(mod, resolve(target), tmp_path)
    for batch in (1, 2):
        arrays = inputs_of(mod, batch)
        np.testing.assert_array_equal(deployed(arrays), interpreter.run(mod, arrays)[0])
