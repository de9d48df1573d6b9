"""CUDA source to a fat binary, kept in the cache by content, and what machine code says of itself.

A fat binary holds machine code for each architecture and, where instructions are not Hopper's own,
portable code (PTX) of the newest, which the drivers of newer GPUs compile. Neither products nor
sums are contracted and divisions are exact, so floats are rounded as on the CPU.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from nybble.cache import folder
from nybble.errors import NybbleError, ScheduleError
from nybble.schedules.cuda import toolkit
from nybble.schedules.cuda.arch import CudaTarget

_OPTIONS = (
    "--fatbin",
    "-O3",
    "-std=c++17",
    "--expt-relaxed-constexpr",
    "-fmad=false",
    "-Xptxas=-v",
)
_SHOWN = 4000  # characters of an error


@dataclass(frozen=True)
class Usage:
    """What a kernel takes on one architecture, as ``ptxas`` says.

    Attributes:
        kernel: the device function.
        arch: ``sm_80``, ``sm_90a``.
        registers: of a thread.
        spills: bytes that a thread stores to and loads from local memory for want of registers.
        stack: bytes of a thread's stack, which is local memory.
        shared: bytes of a block's shared memory; of `device_code` with what is asked for at the
            launch.
    """

    kernel: str
    arch: str
    registers: int
    spills: int
    stack: int
    shared: int


@dataclass(frozen=True)
class Binary:
    """What ``nvcc`` made of one source.

    Attributes:
        data: the fat binary.
        usage: by kernel and architecture.
    """

    data: bytes
    usage: tuple[Usage, ...]


def binary_of(source: str, target: CudaTarget) -> Binary:
    """The fat binary of CUDA source.

    Raises:
        NybbleError: there is no ``nvcc``.
        ScheduleError: ``nvcc`` refuses the source.
    """
    tools = toolkit.find()
    options = [*_OPTIONS, *_architectures(target)]
    key = hashlib.sha256("\0".join([tools.version, *options, source]).encode()).hexdigest()
    home = folder() / "cuda" / "kernels"
    data, log = home / f"{key}.fatbin", home / f"{key}.log"
    if not data.exists():
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home) as scratch:
            made = Path(scratch, "kernel.fatbin")
            said = _run([str(tools.nvcc), *options, "-o", str(made)], source, Path(scratch))
            written = Path(scratch, "log")
            written.write_text(said)
            os.replace(written, log)  # first: whoever sees the binary finds its log
            os.replace(made, data)
    return Binary(data.read_bytes(), usage_of(log.read_text()))


def _architectures(target: CudaTarget) -> list[str]:
    numbers = [code.removeprefix("sm_") for code in target.machine_codes]
    found = [f"-gencode=arch=compute_{n},code=sm_{n}" for n in numbers]
    if target.portable is not None:
        found.append(f"-gencode=arch=compute_{target.portable},code=compute_{target.portable}")
    return found


def _run(command: list[str], source: str, scratch: Path) -> str:
    """What ``nvcc`` prints."""
    text = scratch / "kernel.cu"
    text.write_text(source)
    # nvcc searches its own folder for the parts that it calls, and the PATH for the C++ compiler.
    done = subprocess.run([*command, str(text)], capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stdout + done.stderr).replace(str(text), "kernel.cu").strip()
        raise ScheduleError(f"{' '.join(command[:-2])} fails:\n{said[-_SHOWN:]}")
    return done.stdout + done.stderr


def usage_of(log: str) -> tuple[Usage, ...]:
    """What ``ptxas -v`` has printed, as data."""
    found = []
    for part in log.split("Compiling entry function ")[1:]:
        kernel, arch = re.findall(r"'(\w+)'", part)[:2]
        stack, stored, loaded = (
            int(_number(rf"(\d+) bytes {what}", part))
            for what in ("stack frame", "spill stores", "spill loads")
        )
        registers, shared = (
            _number(r"Used (\d+) registers", part),
            _number(r"(\d+) bytes smem", part),
        )
        found.append(Usage(kernel, arch, registers, stored + loaded, stack, shared))
    return tuple(found)


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    return int(found[1]) if found else 0


# ---------------------------------------------------------------- reading machine code


def sass(data: bytes, arch: str) -> str:
    """Machine code in words.

    Args:
        data: a fat binary.
        arch: ``sm_80``, ``sm_90a``.

    Raises:
        NybbleError: NVIDIA's ``cuobjdump`` and ``nvdisasm`` are not there, or the binary holds no
            code for the architecture.
    """
    tools = disassemblers()
    if tools is None:
        raise NybbleError("Reading machine code needs cuobjdump and nvdisasm: nybble[cuda].")
    dump, beside = tools
    paths = os.pathsep.join([str(beside.parent), os.environ.get("PATH", "")])
    with tempfile.NamedTemporaryFile(suffix=".fatbin") as file:
        file.write(data)
        file.flush()
        done = subprocess.run(
            [dump, "-sass", "-arch", arch, file.name],
            capture_output=True, text=True, check=False, env={**os.environ, "PATH": paths},
        )  # fmt: skip
    if done.returncode or "Function :" not in done.stdout:
        raise NybbleError(f"{dump} finds no code for {arch}: {done.stdout}{done.stderr}")
    return done.stdout


def disassemblers() -> tuple[Path, Path] | None:
    """NVIDIA's ``cuobjdump`` and ``nvdisasm``; None where they are not both."""
    tools = toolkit.find()
    found, beside = tools.tool("cuobjdump"), tools.tool("nvdisasm")
    return (found, beside) if found and beside else None
