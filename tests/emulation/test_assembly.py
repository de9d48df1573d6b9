"""The instructions that kernels for other machines are made of; compiled here, run elsewhere."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest
import tvm

from nybble.schedules import table
from nybble.schedules.build import kernel_library
from nybble.schedules.kernel import Knobs
from nybble.schedules.target import resolve
from tests.cases import CONV, DEPTHWISE
from tests.low_cases import LOW

CASES = {case.name: case for case in CONV + DEPTHWISE + LOW}
JUMP = re.compile(r"(b|b\.\w+|b(ne|eq|lt|ge|gt|le)[uz]?|j\w*|[ct]bn?z)\s")
FRAME = re.compile(r"\[(sp|rsp|rbp)[],#]|\(%rsp\)|\(sp\)")


def assembly(target: str, kernel: str, name: str) -> list[str]:
    """The lines of one kernel's assembly."""
    case, cpu = CASES[name], resolve(target)
    chosen = next(k for k in table.KERNELS if (k.name, k.op) == (kernel, case.op))
    assert chosen.supports(case.problem(), cpu) is None
    function: Any = chosen.build(case.problem(), cpu, Knobs())
    mod = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    return str(kernel_library(mod, cpu).inspect_source("asm")).splitlines()


def inner_loop(lines: list[str], instruction: str) -> list[str]:
    """Of the lines without labels and jumps between them, those with the most of an instruction."""
    runs: list[list[str]] = [[]]
    for line in lines:
        if re.match(r"\S+:", line):
            runs.append([])
        elif line.startswith("\t") and not line.startswith("\t."):
            runs[-1].append(line.strip())
            if JUMP.match(line.strip()):
                runs.append([])
    holding = [run for run in runs if any(line.startswith(instruction) for line in run)]
    assert holding, f"no {instruction}"
    return max(
        holding, key=lambda run: sum(line.startswith(instruction) for line in run) / len(run)
    )


@pytest.mark.parametrize(
    ("target", "kernel", "case", "instruction", "share"),
    [
        ("aarch64-i8mm", "cpu.int8.usmmla", "3x3", "usmmla", 0.5),
        ("aarch64-i8mm", "cpu.int8.smmla", "3x3 signed", "smmla", 0.5),
        ("aarch64-i8mm", "cpu.int8.usdot", "3x3", "usdot", 0.5),
        ("aarch64-dotprod", "cpu.int8.sdot", "3x3 signed", "sdot", 0.5),
        ("aarch64", "cpu.int8.neon", "3x3", "sadalp", 0.3),
        ("aarch64", "cpu.int8.depthwise.neon", "dw 3x3", "smlal", 0.2),
        ("aarch64", "cpu.lut.neon", "low 3x3 W1A1", "tbl", 0.25),
        ("riscv64-v", "cpu.int8.rvv", "3x3", "vwmacc.vx", 0.3),
        ("riscv64-v", "cpu.int8.depthwise.rvv", "dw 3x3", "vmacc.vv", 0.04),
        ("x86-64-v4-vnni", "cpu.int8.vnni", "3x3", "vpdpbusd", 0.5),
        ("x86-64-v3", "cpu.int8.avx2", "3x3", "vpmaddwd", 0.3),
    ],
)
def test_inner_loop(target: str, kernel: str, case: str, instruction: str, share: float) -> None:
    loop = inner_loop(assembly(target, kernel, case), instruction)
    count = Counter(line.split()[0] for line in loop)
    assert count[instruction] >= share * len(loop), loop
    if "depthwise" not in kernel:
        assert not [line for line in loop if FRAME.search(line)], "spilled"


@pytest.mark.parametrize("name", ["aarch64", "aarch64-dotprod", "aarch64-i8mm"])
def test_arm_scales_in_two_instructions(name: str) -> None:
    kernel = {"aarch64": "neon", "aarch64-dotprod": "sdot", "aarch64-i8mm": "usdot"}[name]
    lines = [
        line.split()[0] for line in assembly(name, f"cpu.int8.{kernel}", "3x3") if "\t" in line
    ]
    count = Counter(lines)
    assert count["sqdmulh"] == count["srshl"] > 0
    assert "smull2" not in count


def test_generic_kernels_are_vectors_on_riscv() -> None:
    text = "\n".join(assembly("riscv64-v", "cpu.generic", "3x3"))
    assert "vsetivli" in text
    assert re.search(r"vw?macc|vmadd|vw?mul", text)
    scalar = "\n".join(assembly("riscv64", "cpu.generic", "3x3"))
    assert "vset" not in scalar


def test_lower_targets_use_nothing_higher() -> None:
    for target, kernel, banned in (
        ("aarch64", "cpu.int8.neon", "dot"),
        ("aarch64-dotprod", "cpu.int8.sdot", "usdot|mmla"),
        ("x86-64-v3", "cpu.int8.avx2", "zmm|vpdpbusd"),
        ("x86-64", "cpu.generic", "ymm|zmm|vpmadd"),
    ):
        found = re.search(banned, "\n".join(assembly(target, kernel, "3x3")))
        assert found is None, (target, found)
