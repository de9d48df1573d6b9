"""Several variants in one file: the loader takes the best that the CPU can run."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nybble.errors import ArtifactError
from nybble.runtime import artifact, host
from nybble.runtime.manifest import read, read_all
from nybble.runtime.session import load
from tests.runtime.tiny import tiny_executable, tiny_manifest

X = np.arange(12, dtype=np.float32).reshape(3, 4)
ONES = np.ones((1, 4), np.float32)
NAMES = ("low", "middle", "high")
NEEDS: dict[str, tuple[str, ...]] = {"low": (), "middle": ("one",), "high": ("one", "two")}


@pytest.fixture(scope="module")
def fat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three variants, told apart by their weights: 1 2 3 4, twice that, three times that."""
    path = tmp_path_factory.mktemp("fat") / "fat.so"
    parts = [
        (tiny_executable(factor=i + 1), tiny_manifest(target=name, features=NEEDS[name]))
        for i, name in enumerate(NAMES)
    ]
    artifact.export_all(parts, path)
    return path


def on_cpu(monkeypatch: pytest.MonkeyPatch, *features: str) -> None:
    monkeypatch.setattr(host, "features", lambda: frozenset(features))


@pytest.mark.parametrize(
    ("features", "taken"),
    [((), "low"), (("one",), "middle"), (("two",), "low"), (("one", "two", "three"), "high")],
)
def test_the_best_that_fits_is_taken(
    fat: Path, monkeypatch: pytest.MonkeyPatch, features: tuple[str, ...], taken: str
) -> None:
    on_cpu(monkeypatch, *features)
    session = load(fat)
    assert session.manifest.target == taken
    factor = NAMES.index(taken) + 1
    np.testing.assert_array_equal(session(ONES), (np.arange(1, 5)[None] * factor) ** 2)


def test_a_variant_is_forced_by_name(fat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_cpu(monkeypatch, "one")
    monkeypatch.setenv(host.VARIANT, "low")
    assert load(fat).manifest.target == "low"
    monkeypatch.setenv(host.VARIANT, "high")
    with pytest.raises(ArtifactError, match="target 'high'; this CPU lacks two"):
        load(fat)
    monkeypatch.setenv(host.VARIANT, "best")
    with pytest.raises(ArtifactError, match=r"NYBBLE_VARIANT='best'.*low, middle, high"):
        load(fat)


def test_the_name_concerns_files_with_several_variants_only(
    library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(host.VARIANT, "best")
    assert load(library).manifest.target == "x86-64"


def test_what_each_one_needs_is_told_when_none_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [
        (tiny_executable(), tiny_manifest(target=name, features=NEEDS[name]))
        for name in ("middle", "high")
    ]
    artifact.export_all(parts, tmp_path / "fat.so")
    on_cpu(monkeypatch, "two")
    with pytest.raises(ArtifactError, match=r"'middle'.*lacks one; .*'high'.*lacks one\. Compile"):
        load(tmp_path / "fat.so")


def test_variants_of_one_file_open_side_by_side(fat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_cpu(monkeypatch, "one", "two")
    sessions: dict[str, Any] = {}
    for name in NAMES[::-1]:
        monkeypatch.setenv(host.VARIANT, name)
        sessions[name] = load(fat)
    for i, name in enumerate(NAMES):
        np.testing.assert_array_equal(sessions[name](ONES)[0, 0], (i + 1) ** 2)


def test_without_memfd_a_temporary_file_serves(
    fat: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def none(*_: Any) -> int:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    on_cpu(monkeypatch, "one", "two")
    monkeypatch.setattr(os, "memfd_create", none)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    np.testing.assert_array_equal(load(fat)(X), X * (np.arange(1, 5) * 3.0) ** 2)
    assert list(tmp_path.iterdir()) == []


def test_the_file_says_what_it_holds(fat: Path) -> None:
    variants = read_all(fat)
    assert [v.manifest.target for v in variants] == list(NAMES)
    assert read(fat) == variants[0].manifest
    whole = fat.read_bytes()
    for variant in variants:
        assert whole[variant.offset : variant.offset + 4] == b"\x7fELF"
        assert variant.offset % 4096 == 0
    assert len({v.manifest.hash for v in variants}) == len(NAMES)
    text = whole[variants[-1].offset + variants[-1].size :].decode(errors="ignore")
    index, _ = json.JSONDecoder().raw_decode(text)
    assert index["schema"] == 2  # for which an older reader asks to be updated


def test_every_flipped_bit_is_refused(fat: Path, tmp_path: Path) -> None:
    whole, path = fat.read_bytes(), tmp_path / "flipped.so"
    last = read_all(fat)[-1]
    spots = [*range(0, len(whole), 4099), last.offset + 1, last.offset + last.size + 1]
    for position in [*spots, *range(len(whole) - 60, len(whole), 7)]:
        damaged = bytearray(whole)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(ArtifactError):
            load(path)


def test_every_truncation_is_refused(fat: Path, tmp_path: Path) -> None:
    whole, path = fat.read_bytes(), tmp_path / "cut.so"
    for size in [*range(1, len(whole), 4099), *(v.offset + v.size for v in read_all(fat))]:
        path.write_bytes(whole[:size])
        with pytest.raises(ArtifactError, match=r"truncated|trailer|not a shared library"):
            load(path)
