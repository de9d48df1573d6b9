"""Promises of the house itself: what an import costs, what a checkout looks like."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import nybble

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("frontend", "passes", "schedules", "runtime")
FOLDERS = ("nybble", *ROOMS, "benchmarks", "examples", "tutorials", "tests")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def python(code: str) -> str:
    """Runs code in a fresh interpreter with this checkout first; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout.strip()


def test_import_loads_neither_tvm_nor_torch() -> None:
    heavy = "'tvm', 'tvm_ffi', 'torch', 'onnx', 'numpy'"
    code = f"import sys, nybble; print([m for m in ({heavy}) if m in sys.modules])"
    assert python(code) == "[]"


def test_import_is_quick() -> None:
    code = (
        "import time; t = time.process_time(); import nybble; nybble.Recipe; "
        "print(time.process_time() - t)"
    )
    assert float(python(code)) < 0.3  # CPU seconds, so that a busy machine does not matter


def test_public_names_are_the_contract() -> None:
    assert set(nybble.__all__) >= {
        "Recipe",
        "compile",
        "load",
        "load_onnx",
        "load_torch",
        "quantize",
    }
    for name in nybble.__all__:
        assert callable(getattr(nybble, name)), name
    assert set(nybble.__all__) <= set(dir(nybble))


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = nybble.no_such_name


def test_submodules_do_not_shadow_public_functions() -> None:
    python("import nybble.walk, nybble; assert callable(nybble.compile) and callable(nybble.load)")


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_are_relative_links(room: str) -> None:
    link = ROOT / "nybble" / room
    assert link.is_symlink()
    assert str(link.readlink()) == f"../{room}"


def test_rooms_are_imported_by_one_name_only() -> None:
    pattern = re.compile(rf"^\s*(from|import) ({'|'.join(ROOMS)})\b", re.MULTILINE)
    assert [str(p) for p in SOURCES if pattern.search(p.read_text())] == []


def test_files_stay_readable() -> None:
    long = {
        str(path.relative_to(ROOT)): count
        for path in SOURCES
        if not path.is_relative_to(ROOT / "tests")
        and (count := len(path.read_text().splitlines())) > 400  # 300 is the guide, this is the law
    }
    assert long == {}


def test_bare_make_lists_every_target() -> None:
    listed = subprocess.run(
        ["make"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    ).stdout
    targets = set(re.findall(r"^\s+make (\S+)", listed, re.MULTILINE))
    declared = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert declared is not None
    assert targets == set(declared[1].split())


def test_version_is_in_the_changelog() -> None:
    assert f"## [{nybble.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
