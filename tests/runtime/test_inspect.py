"""Reading a manifest runs nothing of the file; loading it does."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nybble import __main__
from nybble.errors import ArtifactError
from nybble.runtime.manifest import Variant, read, seal
from nybble.runtime.session import load
from tests.runtime.tiny import tiny_manifest

STARTS = """#include <stdio.h>
__attribute__((constructor)) void start(void) { fclose(fopen("%s", "w")); }
"""


@pytest.fixture
def armed(tmp_path: Path) -> Path:
    """A sealed library that leaves a file as soon as the dynamic linker opens it."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    source, path = tmp_path / "armed.c", tmp_path / "armed.so"
    source.write_text(STARTS % (tmp_path / "ran"))
    subprocess.run([compiler, "-shared", "-fPIC", "-s", "-o", path, source], check=True)
    elf = path.read_bytes()
    whole = seal([Variant(tiny_manifest(), 0, len(elf))], hashlib.sha256(elf))
    path.write_bytes(elf + whole)
    return path


def test_inspect_runs_nothing(armed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for more in ([], ["--json"]):
        monkeypatch.setattr(sys, "argv", ["nybble", "inspect", str(armed), *more])
        with pytest.raises(SystemExit) as ended:
            __main__.main()
        assert ended.value.code == 0
    assert read(armed) == tiny_manifest()
    assert not (armed.parent / "ran").exists()
    with pytest.raises(ArtifactError):  # it is no network, but by now its code has run
        load(armed)
    assert (armed.parent / "ran").exists()
