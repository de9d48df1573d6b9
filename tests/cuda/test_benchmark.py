"""What is packed for a machine with a GPU checks kernels there; here the CPU plays the GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tvm import tirx

from benchmarks import (
    cuda_arrays,
    cuda_goals,
    cuda_pack,
    cuda_run,
    cuda_sanitizer,
    cuda_work,
)
from benchmarks.cuda_jobs import EARLY, Ledger, gathered, phases
from benchmarks.cuda_row import Row
from benchmarks.cuda_rows import rows
from nybble import simt
from nybble.errors import NybbleError
from nybble.ir import two_levels
from nybble.runtime import engine, gpu
from nybble.schedules.cuda import compile as code
from nybble.schedules.target import resolve
from tests.cuda.serial import serial

NAMES = (
    "ten classes", "3x3 add", "16 x 4096 x 4096 int8 x int8",
    "matmul 2 x 17 x 20 x 36 uint8 int8, zeros 129 -77",
)  # fmt: skip
OPS = (
    "softmax 2 x 3 x 37 int32 uint8", "softmax 2 x 5 x 21 int32 uint8, 5 rows of a mask",
    "layer_norm 2 x 4 x 45 int8", "rms_norm 2 x 4 x 64 int8",
    "matmul 2 x 4 x 5 x 17 x 33 int8 int8 to int8, zeros -9 0", "row_tops 3 x 5 x 6 float32",
    "quantize_rows 3 x 5 x 6 float32", "rescale_rows 3 x 5 x 6 float32",
    "5 x 140 x 256 int8 x int8, scales at run time",
)  # fmt: skip
ROOT = Path(__file__).resolve().parents[2]
TARGET = resolve("cuda:sm_80")


def on_cpu(function: Any, _target: Any) -> Any:
    """In the place of `device_code`."""
    return SimpleNamespace(module=tirx.build(serial(function), target="llvm"), usage=())


@pytest.fixture(scope="module")
def chosen() -> dict[str, Row]:
    return {name: next(rows(name)) for name in NAMES}


def packed(row: Row, data: Path, number: int = 0) -> dict[str, Any]:
    """The generic kernel of a row, as it is packed."""
    data.mkdir(exist_ok=True)
    takers = cuda_pack.built(replace(row, is_timed=False), number, TARGET, "cuda.generic")
    one = replace(next(takers), row=row)
    return json.loads(json.dumps(cuda_pack.put(data, one, TARGET)))


@pytest.fixture
def _cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code, "device_code", on_cpu)
    monkeypatch.setattr(gpu, "DEVICE", (1, 0))


@pytest.mark.usefixtures("_cpu")
@pytest.mark.parametrize("name", NAMES)
def test_kernels_are_held_against_the_law(
    chosen: dict[str, Row], name: str, tmp_path: Path
) -> None:
    row = chosen[name]
    about = packed(row, tmp_path / "data")
    assert cuda_work.check(tmp_path, about, False) == {"right": True, "why": ""}
    kernel = cuda_work.Kernel(tmp_path, about, engine.ffi())
    assert kernel.size > row.arrays["x"].size
    kernel.data["expected"] = np.array(kernel.data["expected"])
    kernel.data["expected"].flat[0] ^= 1
    assert kernel.wrong().startswith("1 of ")
    if row.is_timed:  # what repeats itself takes little space
        assert (tmp_path / "data" / f"{about['file']}.npz").stat().st_size < row.arrays[
            "w"
        ].size / 8


@pytest.mark.parametrize("name", OPS)
def test_ops_on_rows_are_expected_as_the_law_has_them(name: str) -> None:
    """What is packed of them, with the interpreter in the GPU's place."""
    row = next(rows(name))
    one = next(cuda_pack.built(row, 0, TARGET))
    operands = [row.arrays[name] for name in ("x", "b") if name in row.arrays]
    stored = row.problem.output.stored
    got = np.zeros(tuple(map(int, stored.shape)), stored.dtype)
    given = map(np.ascontiguousarray, (*operands, *one.given))
    simt.run(one.function, [*given, got], target=TARGET.name)
    assert row.at is not None
    lines = got.reshape(-1, got.shape[-1])
    np.testing.assert_array_equal(lines[np.ix_(*row.at)], row.expected)


@pytest.mark.usefixtures("_cpu")
def test_a_run_from_begin_to_end(chosen: dict[str, Row], tmp_path: Path) -> None:
    """With the CPU in the place of the GPU, in processes of their own, as on the other machine."""
    small = replace(chosen["ten classes"], is_timed=True)
    about = [packed(small, tmp_path / "data", 0), packed(chosen["3x3 add"], tmp_path / "data", 1)]
    wrong = cuda_arrays.load(tmp_path / "data" / "1-cuda.generic.npz")
    cuda_arrays.save(
        tmp_path / "data" / "1-cuda.generic.npz", {**wrong, "expected": 1 - wrong["expected"]}
    )
    contents = {"target": "cuda:sm_80", "nybble": "0", "rows": about}
    (tmp_path / "rows.json").write_text(json.dumps(contents))
    (tmp_path / "run.py").write_text(
        f"""import sys, time
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
from nybble.runtime import gpu
gpu.find = lambda: gpu.Gpu("pretended", 80)
gpu.DEVICE, gpu.load_runtime = (1, 0), lambda: None
from benchmarks import cuda_peers, cuda_run, cuda_work
from benchmarks.cuda_clock import CALLS, Clock
from nybble.runtime.events import singly
class Pretended(Clock):
    __init__ = lambda self: None
    copy_rate = peak_rate = lambda self: 4e12
    def graph(self, call, count, on_stream): return singly(call, count), False
    def per_call(self, launch):
        start = time.perf_counter()
        launch()
        return (time.perf_counter() - start) / CALLS
cuda_work.Clock, cuda_run._driver = Pretended, lambda: 0
sys.modules["torch"] = None
cuda_run.main(Path({str(tmp_path)!r}))
"""
    )
    for _ in range(2):  # the second time nothing is left to do
        done = subprocess.run(
            [sys.executable, tmp_path / "run.py", "--limit", "60s", "--out", tmp_path / "o"],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 1, done.stdout + done.stderr  # one kernel is wrong
    assert "WRONG 3x3 add" in done.stdout
    found = json.loads((tmp_path / "o" / "results.json").read_text())
    assert [row["right"] for row in found["rows"]] == [True, False]
    assert found["rows"][0]["seconds"] > 0
    assert "torch is not installed" in found["rows"][0]["missing"]["torch"]
    assert "seconds" not in found["rows"][1]
    lines = (tmp_path / "o" / "results.jsonl").read_text().splitlines()
    assert sum("begun" in line for line in lines) == 4  # bandwidth, two checks, one time


def test_without_a_gpu_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "find", lambda: "there is no NVIDIA driver (libcuda.so.1)")
    monkeypatch.setattr(sys, "argv", ["run.py"])
    with pytest.raises(SystemExit, match="No GPU: there is no NVIDIA driver"):
        cuda_run.main(tmp_path)


# ---------------------------------------------------------------- order, limit, resumption

ROWS: list[dict[str, Any]] = [
    {"row": "a", "timed": False}, {"row": "b", "timed": True, "goal": True},
    {"row": "c", "timed": True}, {"row": "d", "timed": True, "goal": True, "default": True},
    {"row": "net", "operands": "x.npz"},
]  # fmt: skip


def test_what_has_a_goal_comes_first() -> None:
    found = phases(ROWS)
    assert [(phase.kind, phase.jobs) for phase in found] == [
        ("machine", ("machine 0",)),
        ("check", ("check 1", "check 3")),
        ("check", ("check 0", "check 2")),
        ("time", ("time 3", "time 1")),
        ("network", ("network 4",)),
        ("check", ("check 0", "check 2")),
        ("time", ("time 2",)),
        ("sanitize", ("sanitize memcheck", "sanitize racecheck")),
    ]
    assert [phase.share for phase in found] == [1, 1, EARLY, 1, 1, 1, 1, 1]
    assert {phase.kind for phase in phases(ROWS, check_only=True)} == {"check", "network"}


def test_a_ledger_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    ledger = Ledger(path)
    for number, right in ((1, True), (3, False)):
        ledger.begin(f"check {number}")
        ledger.finish(f"check {number}", {"right": right, "why": ""})
    ledger.begin("time 1")
    with path.open("a") as file:
        file.write('{"job": "time 1", "sec')  # killed in mid-line
    again = Ledger(path)
    time = next(phase for phase in phases(ROWS) if phase.kind == "time")
    assert again.left(time) == ["time 1"]  # row 3 is wrong, and is not timed
    assert again.blamed() == "time 1"
    again.finish("time 1", {"seconds": 1.0})
    last = Ledger(path)
    assert last.left(time) == []
    found = gathered(ROWS, last.done)
    assert [row["right"] for row in found] == [None, True, None, False, None]
    assert found[1]["seconds"] == 1.0


def pretended(home: Path, script: str) -> None:
    """An archive whose jobs a shell script does; ``$1`` is the first of them."""
    (home / "rows.json").write_text(
        json.dumps({"target": "cuda:sm_80", "nybble": "0", "rows": [dict(r) for r in ROWS]})
    )
    (home / "sh").write_text(
        f"""#!/bin/sh
        say() {{ echo "$1" >> {home}/results.jsonl; }}
        right() {{
            say "{{\\"begun\\": \\"$1\\"}}"
            say "{{\\"job\\": \\"$1\\", \\"right\\": true}}"
        }}
        keys=$(sed 's/.*"keys": \\["\\([^]]*\\)"\\].*/\\1/; s/", "/,/g')
        IFS=,
        for key in $keys; do
        {script}
        right "$key"
        done"""
    )
    (home / "sh").chmod(0o755)


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(gpu, "find", lambda: gpu.Gpu("pretended", 80))
    monkeypatch.setattr(cuda_run, "_driver", lambda: 0)
    monkeypatch.setattr(cuda_run, "PATIENCE", {"check": 0.5})
    monkeypatch.setattr(sys, "executable", str(tmp_path / "sh"))
    return tmp_path


def test_one_bad_kernel_costs_its_own_row(quick: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pretended(
        quick,
        """case $key in
        "check 1") say '{"begun": "check 1"}'; echo boom >&2; exit 3;;
        "check 2") say '{"begun": "check 2"}'; exec sleep 60;;
        esac""",
    )
    run = cuda_run.Run(quick, quick, float("inf"))
    run.all(check_only=True)
    rows = run.result()["rows"]
    assert [row["right"] for row in rows] == [True, False, False, True, True]
    assert rows[1]["why"] == "the process ends with 3: boom"
    assert rows[2]["why"].startswith("hangs")
    assert "boom" in capsys.readouterr().out
    assert "WRONG b" in (quick / "results.txt").read_text()


def test_a_process_that_never_begins_costs_its_phase(quick: Path) -> None:
    pretended(quick, """case $key in check*) echo no library >&2; exit 1;; esac""")
    run = cuda_run.Run(quick, quick, float("inf"))
    run.all(check_only=True)
    assert [row["right"] for row in run.result()["rows"]] == [False] * 4 + [True]
    assert "no library" in run.result()["rows"][0]["why"]


def test_what_the_limit_leaves_is_done_the_next_time(quick: Path) -> None:
    pretended(quick, """[ "$key" = "check 3" ] && say '{"begun": "check 3"}' && exec sleep 60""")
    run = cuda_run.Run(quick, quick, 0.3)
    run.all(check_only=True)
    assert [row["right"] for row in run.result()["rows"]] == [None, True, None, None, None]
    pretended(quick, "")
    again = cuda_run.Run(quick, quick, 60)
    again.all(check_only=True)
    assert [row["right"] for row in again.result()["rows"]] == [True] * 5


def test_compute_sanitizers_words() -> None:
    assert cuda_sanitizer.summarized("x\n========= ERROR SUMMARY: 0 errors\n", 7)["right"] is True
    racy = cuda_sanitizer.summarized("========= RACECHECK SUMMARY: 2 hazards displayed", 7)
    assert (racy["right"], racy["why"]) == (False, "2 errors; see its log")
    refused = cuda_sanitizer.summarized("========= Error: Device not supported", 0)
    assert refused["right"] is None
    assert "Device not supported" in refused["why"]


def test_limits_are_read() -> None:
    assert [cuda_run.limit_of(text) for text in ("90", "9m", "1.5h")] == [90, 540, 5400]


# ---------------------------------------------------------------- packing


def test_products_go_to_fast_kernels_only(
    chosen: dict[str, Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = [kernel.name for kernel in cuda_pack.takers(chosen[NAMES[0]], TARGET, "*")]
    large = [kernel.name for kernel in cuda_pack.takers(chosen[NAMES[2]], TARGET, "*")]
    assert "cuda.generic" in small
    assert large
    assert "cuda.generic" not in large
    assert list(cuda_pack.takers(chosen[NAMES[0]], TARGET, "no.*")) == []
    made = list(cuda_pack.built(chosen[NAMES[0]], 5, TARGET))
    assert [one.is_default for one in made] == [True, *[False] * (len(made) - 1)]
    monkeypatch.setattr(cuda_pack, "TOGETHER", 2)
    assert [len(some) for some in cuda_pack.together([made[0]] * 3)] == [2, 1]
    monkeypatch.setattr(cuda_pack, "HELD", 0)
    assert [len(some) for some in cuda_pack.together([made[0]] * 3)] == [1, 1, 1]


def test_goals_name_layers_that_are_packed() -> None:
    names = {name for name in cuda_goals.needed() if not name.startswith("8192")}
    assert all(next(rows(name), None) is not None for name in sorted(names)[:2])
    from benchmarks import cuda_op_rows, cuda_rows  # noqa: PLC0415

    sizes = {f"{m} x {n} x {k}" for m, n, k in cuda_rows.PRODUCTS}
    wanted = {name for name in cuda_goals.needed() if name.endswith("int8")}
    assert {" ".join(name.split()[:5]) for name in wanted} <= sizes
    timed = {name for name, _ in cuda_op_rows.timed()}
    ops = {name for name in cuda_goals.needed() if not name[0].isdigit()}
    assert ops < timed


def test_weights_on_two_levels_go_to_the_kernel_for_them() -> None:
    row = next(rows("70 x 40 x 384 int4 on two levels x int8"))
    assert row.at is not None
    takers = [kernel.name for kernel in cuda_pack.takers(row, resolve("cuda:sm_90"), "*")]
    assert takers[0] == "cuda.int4.levels.wgmma"
    assert two_levels.split(row.arrays["w"], 128) is not None


def test_refusals_of_packing(tmp_path: Path) -> None:
    with pytest.raises(NybbleError, match="is no GPU"):
        cuda_pack.pack(cuda_pack.Wish(tmp_path / "a.tar.xz", "native"))
    with pytest.raises(NybbleError, match=r"expected a name in \.tar\.xz"):
        cuda_pack._archived(tmp_path, cuda_pack.Wish(tmp_path / "a.zip"))
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "noise").write_bytes(np.random.default_rng(0).bytes(200_000))
    with pytest.raises(NybbleError, match="Pack fewer layers"):
        cuda_pack._archived(tmp_path / "kernels", cuda_pack.Wish(tmp_path / "a.tar.gz", most=0.1))


def test_arrays_that_repeat_themselves(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tile = rng.integers(0, 255, (32, 256), np.uint8)
    arrays = {
        "tiled": np.tile(tile, (40, 3)), "cut": np.tile(tile, (40, 3))[:, :700].copy(),
        "noise": rng.standard_normal(40_000), "small": np.zeros(3, np.int8),
        "zeros": np.zeros((300, 300), np.int32),
    }  # fmt: skip
    cuda_arrays.save(tmp_path / "a.npz", arrays)
    for name, array in cuda_arrays.load(tmp_path / "a.npz").items():
        np.testing.assert_array_equal(array, arrays[name])
        assert array.dtype == arrays[name].dtype
    assert cuda_arrays.period_of(arrays["tiled"].reshape(-1)) == 32 * 256 * 3
    assert cuda_arrays.period_of(arrays["noise"]) is None
