"""Machines that are not this one: a cross compiler links a kernel, qemu-user runs it."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from numpy.typing import NDArray
from tvm import tirx

from nybble import compilers
from nybble.runtime import engine, host
from nybble.schedules.build import kernel_library
from nybble.schedules.kernel import Kernel, Knobs
from nybble.schedules.target import CpuTarget
from tests.cases import Arrays, Case

CALLER = Path(__file__).with_name("caller.c")
GUARD, SENTINEL = 256, 0xA5
CODES = {"i": 0, "u": 1, "f": 2}
QEMU_DEFECT = "decode_save_opc: Assertion `ctx->insn_start != NULL' failed"
QEMU = {
    "aarch64": ("qemu-aarch64", "max"),
    "x86_64": ("qemu-x86_64", "qemu64"),  # SSE3, no AVX
    "riscv64": ("qemu-riscv64", "rv64,v=true,vext_spec=v1.0"),
}


@dataclass(frozen=True)
class Machine:
    """How to link for a machine, and how to run there.

    Attributes:
        compiler: links statically.
        launcher: stands in front of the program.
        folder: scratch space.
    """

    compiler: tuple[str, ...]
    launcher: tuple[str, ...]
    folder: Path

    def link(self, kernel: Path) -> Path:
        """The program that calls a kernel: an object file, or C source."""
        return self._link("-static", str(kernel))

    def link_loader(self) -> Path:
        """The program that opens a library and calls a kernel of it."""
        return self._link("-DLIBRARY", "-rdynamic", "-ldl")

    def _link(self, *options: str) -> Path:
        program = self.folder / "program"
        include = Path(engine.ffi().__file__).parent / "include"
        runtime = Path(tvm.__file__).parent / "include"
        command = [*self.compiler, "-O2", "-w", f"-I{include}", f"-I{runtime}"]
        command += [str(CALLER), *options, "-o", str(program), "-lm"]
        subprocess.run(command, check=True)
        return program

    def run(
        self,
        program: Path,
        inputs: Sequence[NDArray[Any]],
        output: NDArray[Any],
        tasks: int,
        kernel: tuple[Path, str] | None = None,
    ) -> NDArray[Any]:
        """What the kernel writes; raises AssertionError if it writes beside its output.

        ``kernel`` is a library and the symbol in it, for `link_loader`'s program.
        """
        tensors, result = self.folder / "tensors", self.folder / "result"
        tensors.write_bytes(_serialized([*inputs, output]))
        arguments = (program, tensors, result, tasks, *(kernel or ()))
        command = [*self.launcher, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
        if QEMU_DEFECT in done.stderr:
            pytest.skip("this qemu (before 8.0) aborts on vfcvt.rtz, float to integer in vectors")
        assert done.returncode == 0, done.stderr
        raw = np.frombuffer(result.read_bytes(), np.uint8)
        assert (raw[:GUARD] == SENTINEL).all(), "wrote before its output"
        assert (raw[-GUARD:] == SENTINEL).all(), "wrote behind its output"
        return raw[GUARD:-GUARD].view(output.dtype).reshape(output.shape)


def _serialized(arrays: Sequence[NDArray[Any]]) -> bytes:
    parts = [struct.pack("<i", len(arrays))]
    for array in arrays:
        kind = (CODES[array.dtype.kind], 8 * array.itemsize, array.ndim)
        parts.append(struct.pack(f"<3i{array.ndim}qq", *kind, *array.shape, array.nbytes))
        parts.append(np.ascontiguousarray(array).tobytes())
    return b"".join(parts)


def machine(arch: str, folder: Path, emulated: bool = False) -> Machine:
    """The machine of an architecture; skips the test where the tools are missing.

    ``emulated``: even this machine's own, with a CPU that can do no more than the baseline.
    """
    compiler, launcher = _tools(arch, emulated)
    return Machine(compiler, launcher, folder)


@cache
def _tools(arch: str, emulated: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    is_here = arch == host.arch()
    if is_here and not emulated:
        return tuple(compilers.find_compiler(arch)), ()
    gcc = "gcc" if is_here else f"{arch}-linux-gnu-gcc"
    name, cpu = QEMU[arch]
    qemu = shutil.which(name) or shutil.which(f"{name}-static")
    if not shutil.which(gcc):
        pytest.skip(f"no {gcc} on the PATH (Debian: gcc-{arch}-linux-gnu)")
    if qemu is None:
        pytest.skip(f"no {name} on the PATH (Debian: qemu-user)")
    root = () if is_here else ("-L", f"/usr/{arch}-linux-gnu")  # of the dynamic linker
    return (gcc,), (qemu, *root, "-cpu", cpu)


def object_of(function: tirx.PrimFunc, target: CpuTarget, folder: Path) -> Path:
    """The function compiled to an object file, or to C source for the target ``c``."""
    named = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    module = kernel_library(named, target)
    kind = "c" if target.is_c else "o"
    path = folder / f"kernel.{kind}"
    module.write_to_file(str(path), kind)
    return path


def arguments(kernel: Kernel, case: Case, arrays: Arrays) -> list[NDArray[Any]]:
    """Activations and packed constants in the order of the parameters."""
    constants = {name: values for name, values in arrays.items() if name not in ("x", "b")}
    activations = [arrays[name] for name in ("x", "b") if name in arrays]
    return [*activations, *kernel.constants(case.problem(), constants)]


def check(
    kernel: Kernel,
    case: Case,
    target: CpuTarget,
    folder: Path,
    tasks: int = 3,
    knobs: Knobs | None = None,
) -> None:
    """Compiles for the target, runs under emulation, compares with the law bit for bit."""
    there = machine(target.arch, folder)
    function = kernel.build(case.problem(), target, knobs or Knobs())
    program = there.link(object_of(function, target, folder))
    arrays = case.data()
    want = case.law(arrays)
    got = there.run(program, arguments(kernel, case, arrays), np.zeros_like(want), tasks)
    np.testing.assert_array_equal(got, want, err_msg=f"{kernel.name} {case.name} {target.name}")
