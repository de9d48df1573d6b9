"""The most that this machine's multipliers can do: register-only loops, the kernels' yardstick."""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import time
from functools import cache
from pathlib import Path
from typing import Any

from nybble import compilers
from nybble.cache import folder
from nybble.ir import numerics
from nybble.runtime import host

SOURCE = Path(__file__).parent / "limits.c"
SECONDS = 0.02  # of one try
TRIES = 5


def multiply_rates(features: frozenset[str]) -> dict[str, float]:
    """Multiply-adds a second on one thread, by kind of weights.

    Args:
        features: that code may use, as Linux spells them; all of them this machine's.

    Returns:
        Rates of ``int8``, ``int4`` (all widths below 8 bits) and ``float32``; empty where the
        machine is no x86-64 with AVX2.

    Raises:
        ArtifactError: there is no C compiler.
    """
    return {kind: rate(name) for kind, name in loops(features).items()}


def kind_of(dtype: str) -> str:
    """The key of `multiply_rates` for weights stored as ``dtype``."""
    if dtype.startswith("float"):
        return "float32"
    return "int8" if numerics.width(dtype)[1] == 8 else "int4"


def loops(features: frozenset[str]) -> dict[str, str]:
    """Which loop of ``limits.c`` bounds which kind of arithmetic."""
    if host.arch() != "x86_64" or "avx2" not in features:
        return {}
    register = "zmm" if "avx512bw" in features else "ymm"
    by = {
        "int8": f"maddubs_maddwd_{register}",
        "int4": f"maddubs_paddw_{register}",
        "float32": f"fma_{register}",
    }
    if "avx512_vnni" in features:
        by["int8"] = by["int4"] = "vpdpbusd_zmm"
    if "amx_int8" in features:
        by["int8"] = by["int4"] = "tdpbusd"
    return by


@cache
def rate(name: str) -> float:
    """Multiply-adds a second of one loop."""
    loop = getattr(library(), name)
    loop.restype, loop.argtypes = ctypes.c_long, [ctypes.c_long]
    count, seconds = 1000, 0.0
    while seconds < SECONDS:
        count *= 4
        work, seconds = _timed(loop, count)
    best = min(_timed(loop, count)[1] for _ in range(TRIES))
    return work * count / best


def _timed(loop: Any, count: int) -> tuple[int, float]:
    start = time.thread_time()
    work = int(loop(count))
    return work, time.thread_time() - start


@cache
def library() -> ctypes.CDLL:
    """The loops, compiled into the cache folder; errors as of `compiled`."""
    return compiled(SOURCE, folder())


def compiled(source: Path, into: Path) -> ctypes.CDLL:
    """Loads a small C file as a library, made anew when the source changes.

    Args:
        source: the C file.
        into: the folder that keeps the library; made if it does not exist.

    Raises:
        ArtifactError: there is no C compiler.
        subprocess.CalledProcessError: it refused.
    """
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:12]
    path = into / f"{source.stem}-{digest}.so"
    if not path.exists():
        into.mkdir(parents=True, exist_ok=True)
        half = path.with_suffix(f".{os.getpid()}")  # never load what another process is writing
        compiler = compilers.find_compiler(host.arch())
        command = [*compiler, "-O2", "-shared", "-fPIC", "-pthread", "-o", str(half), str(source)]
        subprocess.run(command, check=True, capture_output=True)
        half.rename(path)
    return ctypes.CDLL(str(path))
