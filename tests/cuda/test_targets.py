"""Names of GPUs, resolved; several targets for one file; the table by kind of target."""

from __future__ import annotations

from pathlib import Path

import pytest

import nybble
from nybble.errors import NybbleError, ScheduleError
from nybble.schedules import select, table
from nybble.schedules.cpu import stock
from nybble.schedules.kernel import Problem, TensorSpec
from nybble.schedules.target import host_of, resolve, resolve_all
from tests.schedules.recording import CONV
from tests.walking import tiny


@pytest.mark.parametrize(
    ("name", "generation", "codes", "portable"),
    [
        ("cuda:sm_75", "turing", ("sm_75",), 75),
        ("cuda:sm_89+sm_80", "ampere", ("sm_80", "sm_89"), 89),
        ("cuda:sm_90", "hopper", ("sm_90a",), None),
    ],
)
def test_names(name: str, generation: str, codes: tuple[str, ...], portable: int | None) -> None:
    target = resolve(name)
    assert target.name == f"cuda:{'+'.join(target.archs)}"
    assert (target.generation, target.machine_codes) == (generation, codes)
    assert target.portable == portable
    made = target.tvm_target()
    assert str(made.attrs["arch"]) == codes[0]
    assert made.host.kind.name == "llvm"
    assert int(made.attrs["max_shared_memory_per_block"]) == target.shared_memory
    assert host_of(target).arch == host_of(resolve("native")).arch


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("cuda:sm_70", r"no kernels for 'sm_70'\. Write 'cuda:' and one of sm_75, "),
        ("cuda:sm_90a", "no kernels for 'sm_90a'"),
        ("cuda", "no kernels for 'cuda'"),
        ("cuda:sm_80+sm_90", "list of targets .* 'cuda:sm_80', 'cuda:sm_90'"),
        ("gpu", "'cuda:sm_90'"),
    ],
)
def test_unknown_names_say_what_to_write(name: str, says: str) -> None:
    with pytest.raises(NybbleError, match=says):
        resolve(name)


def test_order_in_a_file() -> None:
    given = ["cuda:sm_90", "x86-64-v3", "cuda:sm_75", "x86-64", "cuda:sm_86"]
    names = [target.name for target in resolve_all(given)]
    assert names == ["x86-64", "x86-64-v3", "cuda:sm_75", "cuda:sm_86", "cuda:sm_90"]
    other = "aarch64" if host_of(resolve("native")).arch == "x86_64" else "x86-64"
    with pytest.raises(NybbleError, match="one file holds variants for one architecture"):
        resolve_all([other, "cuda:sm_90"])


def test_tables_are_apart() -> None:
    gpu, cpu = resolve("cuda:sm_80"), resolve("x86-64-v3")
    assert table.of(cpu) is table.KERNELS
    assert {kernel.arch for kernel in table.of(gpu)} == {"cuda"}
    assert "cuda" not in {kernel.arch for kernel in table.KERNELS}
    missing = {kernel.op for kernel in table.KERNELS} - {kernel.op for kernel in table.of(gpu)}
    missing -= set(stock.OPS)  # the GPU's own schedule of these has no knobs
    assert missing == set()
    whole = Problem("sort", (TensorSpec((4, 8), "int8"),), TensorSpec((4, 8), "int8"))
    with pytest.raises(ScheduleError, match=r"no kernel of sort for cuda:sm_80\. Keep the"):
        select.choose(whole, {}, gpu, select.Planner())
    with pytest.raises(
        ScheduleError, match=r"No kernel is called 'cpu\.generic'\. There are: cuda"
    ):
        select.choose(CONV, {}, gpu, select.Planner(force="cpu.generic"))


def test_what_is_not_for_gpus_says_so(tmp_path: Path) -> None:
    with pytest.raises(NybbleError, match=r"Cannot measure for cuda:sm_80 in a process of this"):
        nybble.compile(tiny(), "cuda:sm_80", measure=True)
    with pytest.raises(NybbleError, match=r"GPUs are measured by `nybble tune` behind a tracker"):
        nybble.tune(tiny(), tmp_path / "records", "cuda:sm_80")
