"""In a process of its own: loading maps no compiler and no torch; compiling works afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys, time
from nybble.runtime.session import load
start = time.perf_counter()
import numpy as np
session = load(sys.argv[1])
x = np.ones((2, 4), np.float32)
assert session(x).tolist() == [[1, 4, 9, 16]] * 2

def mapped(library):
    return any(library in line for line in open("/proc/self/maps"))

assert mapped("libtvm_runtime") and not mapped("libtvm_compiler") and not mapped("libtorch")
assert not {"tvm", "torch"} & set(sys.modules), "imported"

from tests.runtime.tiny import tiny_executable, tiny_manifest
from nybble.runtime.artifact import export
export(tiny_executable(), tiny_manifest(), sys.argv[2])
assert mapped("libtvm_compiler") and not mapped("libtorch")
assert load(sys.argv[2])(x).tolist() == session(x).tolist()
print("fine")
"""


def test_load_first_compile_afterwards(library: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, library, tmp_path / "again.so"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.stdout == "fine\n", done.stderr
