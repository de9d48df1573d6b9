"""What a kernel's sources are: its own modules and what they import, nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from nybble.schedules import sources, table


def files_of(op: str, name: str) -> set[str]:
    kernel = next(k for k in table.KERNELS if (k.op, k.name) == (op, name))
    modules = {module for value in vars(kernel).values() for module in sources._modules(value)}
    return {file.stem for module in modules for file in sources._closure(module)}


@pytest.mark.parametrize(
    ("op", "name", "has", "lacks"),
    [
        ("conv2d", "cpu.int8.winograd.avx2", {"winograd", "winograd_emit", "epilogue"}, {"lut"}),
        ("linear", "cpu.int8.avx2", {"conv", "template", "dot"}, {"gemv", "winograd"}),
        ("max_pool2d", "cpu.generic", {"pooling"}, {"epilogue", "conv"}),
        ("conv2d", "cpu.int8.sdot", {"dot_arm", "conv"}, {"winograd"}),
    ],
)
def test_the_files_of_a_kernel(op: str, name: str, has: set[str], lacks: set[str]) -> None:
    found = files_of(op, name)
    assert has <= found
    assert not lacks & found


def test_every_kernel_has_sources() -> None:
    assert all(files_of(kernel.op, kernel.name) for kernel in table.KERNELS)


def test_a_change_elsewhere_leaves_the_digest(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def copied(module: str) -> Path | None:
        """The files, of which those of one family lie changed elsewhere."""
        file = original(module)
        if file is None or not file.stem.startswith("lut"):
            return file
        (tmp_path / file.name).write_bytes(file.read_bytes() + b"\n# changed\n")
        return tmp_path / file.name

    original = sources._file
    cases = [("linear", "cpu.int8.avx2"), ("linear", "cpu.lut.avx2")]
    before = [sources.digest(*case) for case in cases]
    monkeypatch.setattr(sources, "_file", copied)
    sources.digest.cache_clear()
    sources._closure.cache_clear()
    after = [sources.digest(*case) for case in cases]
    sources.digest.cache_clear()
    sources._closure.cache_clear()
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False]
