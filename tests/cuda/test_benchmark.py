"""What is packed for a machine with a GPU checks kernels there; here the CPU plays the GPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tvm import tirx

from benchmarks import cuda, cuda_run
from benchmarks.cuda_rows import Row, rows
from nybble.runtime import engine, gpu
from nybble.schedules import table
from nybble.schedules.target import resolve
from tests.cuda.serial import serial

NAMES = ("ten classes", "3x3 add", "16 x 4096 x 4096 int8 x int8")


def on_cpu(function: Any, _target: Any) -> Any:
    """In the place of `device_code`."""
    return SimpleNamespace(module=tirx.build(serial(function), target="llvm"), usage=())


@pytest.fixture(scope="module")
def chosen() -> dict[str, Row]:
    return {name: next(rows(name)) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_kernels_are_held_against_the_law(
    chosen: dict[str, Row], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "device_code", on_cpu)
    monkeypatch.setattr(cuda_run, "HERE", tmp_path)
    monkeypatch.setattr(gpu, "DEVICE", (1, 0))
    row, target, data = chosen[name], resolve("cuda:sm_80"), tmp_path / "data"
    data.mkdir()
    generic = next(
        k for k in table.of(target) if (k.name, k.op) == ("cuda.generic", row.problem.op)
    )
    about = json.loads(json.dumps(cuda._put(data, "one", row, (generic, target))))
    kernel = cuda_run.Kernel(about, engine.ffi())
    assert kernel.wrong() == ""
    assert kernel.size > row.arrays["w"].size
    kernel.data["expected"] = np.array(kernel.data["expected"])
    kernel.data["expected"].flat[0] ^= 1
    assert kernel.wrong().startswith("1 of ")


def test_one_bad_kernel_costs_its_own_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines, program = tmp_path / "results.jsonl", tmp_path / "python"
    (tmp_path / "rows.json").write_text(json.dumps({"rows": [{"row": name} for name in "abcd"]}))
    right = '{"right": true, "why": ""}'
    program.write_text(
        f"""#!/bin/sh
        case $3 in
        0) echo '{right}' >> {lines}; echo boom >&2; exit 3;;
        2) exec sleep 60;;
        3) echo '{right}' >> {lines};;
        esac"""
    )
    program.chmod(0o755)
    for name, value in (("HERE", tmp_path), ("LINES", lines), ("PATIENCE", 0.5)):
        monkeypatch.setattr(cuda_run, name, value)
    monkeypatch.setattr(sys, "executable", str(program))
    found = cuda_run.supervise(check=True)
    assert [one["row"] for one in found] == list("abcd")
    assert [one["right"] for one in found] == [True, False, False, True]
    assert [one["why"] for one in found] == ["", "the process ends with 3: boom", "hangs", ""]
    assert "b: the process ends with 3: boom" in capsys.readouterr().out


def test_products_go_to_fast_kernels_only(chosen: dict[str, Row]) -> None:
    target = resolve("cuda:sm_80")
    small = [kernel.name for kernel in cuda._takers(chosen[NAMES[0]], target, "*")]
    large = [kernel.name for kernel in cuda._takers(chosen[NAMES[2]], target, "*")]
    assert "cuda.generic" in small
    assert large
    assert "cuda.generic" not in large
    assert list(cuda._takers(chosen[NAMES[0]], target, "no.*")) == []
