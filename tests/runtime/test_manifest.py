"""The file format: what was written is read, and every other file is refused before dlopen."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from nybble.errors import ArtifactError
from nybble.runtime import manifest as format_
from nybble.runtime.manifest import Manifest, Port, Variant, read
from tests.runtime.tiny import tiny_manifest


def test_json_round_trip_keeps_every_field() -> None:
    full = tiny_manifest(
        inputs=(Port("x", ("n", 3, 8, 8), "float32", 0.25, 128),),
        recipe={"weights": 8, "keep_float": ["fc"]},
        features=("avx2",),
        rounding="half_up",
        kept_float=("fc: too small",),
        float_ops=("softmax",),
        hash="ab",
    )
    assert Manifest.from_json(full.to_json()) == full


@pytest.mark.parametrize("text", ["", "[]", "3", "{", '{"schema": 1}', '{"schema": "1"}'])
def test_other_json_is_refused(text: str) -> None:
    with pytest.raises(ArtifactError, match="manifest"):
        Manifest.from_json(text)


def test_newer_schema_says_update() -> None:
    values = json.loads(tiny_manifest().to_json())
    text = json.dumps({**values, "schema": format_.INDEX_SCHEMA + 1, "new": 1})
    with pytest.raises(ArtifactError, match=r"newer Nybble.*Update"):
        Manifest.from_json(text)


def test_exported_file_reads_back(library: Path) -> None:
    found = read(library)
    assert replace(found, hash="") == tiny_manifest()
    assert len(found.hash) == 64


def test_missing_file_directory_and_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty.so").touch()
    with pytest.raises(ArtifactError, match="No such file"):
        read(tmp_path / "none.so")
    with pytest.raises(ArtifactError, match="directory"):
        read(tmp_path)
    with pytest.raises(ArtifactError, match="empty"):
        read(tmp_path / "empty.so")


@pytest.mark.parametrize("text", [b"hello", b"\x7fEL", b"#!/bin/sh\necho NYBBLE01", b"NYBBLE01"])
def test_text_is_no_library(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "text.so"
    path.write_bytes(text)
    with pytest.raises(ArtifactError, match="not a shared library; it starts with"):
        read(path)


def test_foreign_library_is_refused(tmp_path: Path, library: Path) -> None:
    whole = library.read_bytes()
    path = tmp_path / "foreign.so"
    path.write_bytes(whole[: format_._elf_size(whole[:64])])
    with pytest.raises(ArtifactError, match="without Nybble's trailer"):
        read(path)


def test_every_truncation_is_refused(tmp_path: Path, library: Path) -> None:
    whole = library.read_bytes()
    path = tmp_path / "cut.so"
    for size in [*range(1, len(whole), 997), *range(len(whole) - 60, len(whole))]:
        path.write_bytes(whole[:size])
        with pytest.raises(ArtifactError, match=r"truncated|trailer|not a shared library"):
            read(path)


def test_every_flipped_bit_is_refused(tmp_path: Path, library: Path) -> None:
    whole = library.read_bytes()
    path = tmp_path / "flipped.so"
    for position in [*range(0, len(whole), 499), *range(len(whole) - 60, len(whole))]:
        damaged = bytearray(whole)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(ArtifactError):
            read(path)


def test_added_bytes_are_refused(tmp_path: Path, library: Path) -> None:
    path = tmp_path / "longer.so"
    path.write_bytes(library.read_bytes() + b"\n")
    with pytest.raises(ArtifactError, match="trailer"):
        read(path)


def test_verifying_12_megabytes_is_quick(tmp_path: Path, library: Path) -> None:
    whole = library.read_bytes()
    elf = whole[: format_._elf_size(whole[:64])] + bytes(12_000_000)
    path = tmp_path / "big.so"
    whole_file = Variant(tiny_manifest(), 0, len(elf))
    path.write_bytes(elf + format_.seal([whole_file], hashlib.sha256(elf)))
    start = time.perf_counter()
    read(path)
    assert time.perf_counter() - start < 0.2
