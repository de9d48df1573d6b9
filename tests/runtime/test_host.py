"""What the machine is, read from /proc/cpuinfo as Linux writes it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nybble import tiles
from nybble.errors import ArtifactError
from nybble.runtime import host
from tests.runtime.tiny import tiny_manifest

CORE = "processor\t: {cpu}\nphysical id\t: {package}\ncore id\t\t: {core}\nflags\t\t: sse2 avx2\n\n"


@pytest.fixture
def cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty stand-in for /proc/cpuinfo; nothing that was read before is remembered."""
    path = tmp_path / "cpuinfo"
    path.touch()
    monkeypatch.setattr(host, "_CPUINFO", path)
    monkeypatch.setattr(host, "features", host.features.__wrapped__)
    monkeypatch.setattr(host, "physical_cores", host.physical_cores.__wrapped__)
    return path


@pytest.mark.parametrize(
    ("cpus", "allowed", "cores"),
    [
        ([(0, 0, 0), (1, 0, 0), (2, 0, 1), (3, 0, 1)], {0, 1, 2, 3}, 2),  # two threads a core
        ([(0, 0, 0), (1, 1, 0)], {0, 1}, 2),  # two packages
        ([(0, 0, 0), (1, 0, 1), (2, 0, 2)], {1}, 1),  # the process may use one
    ],
)
def test_physical_cores(
    cpuinfo: Path,
    monkeypatch: pytest.MonkeyPatch,
    cpus: list[tuple[int, int, int]],
    allowed: set[int],
    cores: int,
) -> None:
    cpuinfo.write_text("".join(CORE.format(cpu=c, package=p, core=k) for c, p, k in cpus))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: allowed)
    assert host.physical_cores() == cores


def test_arm_counts_processors_and_reads_its_features(
    cpuinfo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpuinfo.write_text("processor\t: 0\nFeatures\t: fp asimd asimddp\n\nprocessor\t: 1\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1})
    assert host.physical_cores() == 2
    assert host.features() == {"fp", "asimd", "asimddp"}


def test_unreadable_features_are_no_licence_to_run(cpuinfo: Path) -> None:
    with pytest.raises(ArtifactError, match="names no CPU features"):
        host.check(tiny_manifest(features=("avx2",)))
    cpuinfo.unlink()
    with pytest.raises(ArtifactError, match="run on Linux only"):
        host.check(tiny_manifest(features=("avx2",)))


@pytest.mark.parametrize(
    ("flags", "advice"),
    [("avx2 bmi1 bmi2 f16c fma movbe", "target='x86-64-v3'"), ("sse2", "target='x86-64'")],
)
def test_advice_names_what_this_cpu_can_run(cpuinfo: Path, flags: str, advice: str) -> None:
    if host.arch() != "x86_64":
        pytest.skip("the named levels are those of x86_64")
    cpuinfo.write_text(f"flags\t: {flags}\n")
    with pytest.raises(ArtifactError, match=f"lacks avx512_vnni.*{advice}"):
        host.check(tiny_manifest(features=("avx512_vnni",)))


def test_says_that_linux_refuses_the_tiles(cpuinfo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpuinfo.write_text("flags\t: avx2 amx_tile amx_int8\n")
    monkeypatch.setattr(tiles, "refusal", lambda: "Operation not permitted")
    assert host.features() == {"avx2"}
    with pytest.raises(ArtifactError, match=r"lacks amx_tile .Linux refuses .*not permitted"):
        host.check(tiny_manifest(features=("avx2", "amx_tile")))
