"""Bundles that cannot be made: one message each, and nothing is left behind."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from pathlib import Path

import pytest

from nybble.commands_bundle import bundle
from nybble.errors import ArtifactError
from nybble.runtime import artifact
from nybble.runtime.manifest import Device
from tests.runtime.test_artifact import fill_disk
from tests.runtime.tiny import tiny_executable, tiny_manifest, tiny_outside


def no_compiler(folder: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("PATH", str(folder / "nowhere"))
    patch.delenv("CXX", raising=False)


def unknown_compiler(_folder: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("CXX", "icpx -O2")


def compiler(folder: Path, patch: pytest.MonkeyPatch, script: str) -> None:
    path = folder / "cxx"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    patch.setenv("CXX", str(path))


def broken_compiler(folder: Path, patch: pytest.MonkeyPatch) -> None:
    compiler(folder, patch, "echo cannot do it >&2; exit 3")


def broken_program(folder: Path, patch: pytest.MonkeyPatch) -> None:
    write = 'for a; do if [ "$o" = -o ]; then out=$a; fi; o=$a; done; '
    compiler(folder, patch, write + "printf '#!/bin/sh\\nexit 9\\n' > $out; chmod +x $out")


def full_disk(folder: Path, patch: pytest.MonkeyPatch) -> None:
    broken_program(folder, patch)
    patch.setattr("shutil.copyfile", fill_disk)


def damaged(folder: Path, _patch: pytest.MonkeyPatch) -> None:
    whole = (folder / "net.so").read_bytes()
    (folder / "net.so").write_bytes(whole[:4000] + b"?" + whole[4001:])


def no_parameters(folder: Path, _patch: pytest.MonkeyPatch) -> None:
    executable, values = tiny_outside()
    artifact.export_all([(executable, tiny_manifest(layers=()))], folder / "net.so", [values])
    (folder / "net.so.params").unlink()


def other_machine(_folder: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(platform, "machine", lambda: "riscv64")


def only_gpus(folder: Path, _patch: pytest.MonkeyPatch) -> None:
    device = Device(
        kind="cuda", archs=["sm_80"], portable=80, toolkit="13", graphed=False, usage=[]
    )
    artifact.export(tiny_executable(), tiny_manifest(device=device), folder / "net.so")


def full_folder(folder: Path, _patch: pytest.MonkeyPatch) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "mine.txt").write_text("keep")


def file_there(folder: Path, _patch: pytest.MonkeyPatch) -> None:
    (folder / "out").write_text("keep")


CASES = {
    no_compiler: r"No C\+\+ compiler.*apt install g\+\+",
    unknown_compiler: "CXX='icpx -O2' is not on the PATH",
    broken_compiler: "(?s)Compiling the program failed.*cannot do it",
    broken_program: "The program does not start",
    full_disk: "no space left",
    damaged: "do not match the checksum",
    no_parameters: "net.so.params: the parameters of net.so are not there",
    other_machine: "compiled for .*is for riscv64. Make the bundle on a machine",
    only_gpus: "only for GPUs",
    full_folder: "out is no empty folder",
    file_there: "out is no empty folder",
}


@pytest.mark.parametrize("trouble", CASES, ids=lambda case: case.__name__)
def test_refusals(
    library: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    trouble: Callable[[Path, pytest.MonkeyPatch], None],
) -> None:
    (tmp_path / "net.so").write_bytes(library.read_bytes())
    trouble(tmp_path, monkeypatch)
    before = {path: path.is_dir() or path.read_bytes() for path in tmp_path.rglob("*")}
    with pytest.raises(ArtifactError, match=CASES[trouble]):
        bundle(tmp_path / "net.so", tmp_path / "out")
    monkeypatch.undo()
    assert {path: path.is_dir() or path.read_bytes() for path in tmp_path.rglob("*")} == before


def test_no_folder_to_hold_it(library: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="there is no directory"):
        bundle(library, tmp_path / "none" / "out")
    assert os.listdir(tmp_path) == []
