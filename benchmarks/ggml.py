"""ggml, the engine of llama.cpp: built from the sdist of llama-cpp-python, driven by ctypes.

    python -m benchmarks.ggml --isa native x86-64-v3

ggml chooses its instructions when it is compiled, so each level has a build of its own. Weights are
repacked for the CPU where ggml offers that for their type, as llama.cpp does.
"""

from __future__ import annotations

import argparse
import ctypes
import subprocess
import sys
import tarfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.output import RESULTS, console
from benchmarks.problems import Array

VERSION = "0.3.36"
FOLDER = RESULTS / "ggml"
_V3 = ("SSE42", "AVX", "AVX2", "FMA", "F16C", "BMI2")
OPTIONS = {
    "native": (),
    "x86-64-v3": _V3,
    "x86-64-v4": (*_V3, "AVX512"),
    "x86-64-v4-vnni": (*_V3, "AVX512", "AVX512_VNNI"),
}
TYPES = {
    "Q4_0": 2, "Q8_0": 8, "Q4_K": 12, "TQ1_0": 34, "TQ2_0": 35, "Q1_0": 41, "Q2_0": 42,
}  # fmt: skip  # enum ggml_type


def path(isa: str) -> Path:
    """Where the library for a level is, once it is built."""
    return FOLDER / isa / "src" / "libggml.so"


def build(isa: str, jobs: int = 1) -> Path:
    """Downloads the sdist with pip and compiles its ggml for a level.

    Raises:
        subprocess.CalledProcessError: no network, cmake or C++ compiler; they have said why.
    """
    if path(isa).exists():
        return path(isa)
    flags = [f"-DGGML_{name}=ON" for name in OPTIONS[isa]]
    native = "ON" if isa == "native" else "OFF"
    subprocess.run(
        ["cmake", "-S", str(_unpacked()), "-B", str(FOLDER / isa), "-DCMAKE_BUILD_TYPE=Release",
         "-DGGML_BUILD_TESTS=OFF", "-DGGML_BUILD_EXAMPLES=OFF", "-DGGML_CCACHE=OFF",
         "-DGGML_LLAMAFILE=ON", f"-DGGML_NATIVE={native}", *flags],
        check=True,
    )  # fmt: skip
    subprocess.run(
        ["cmake", "--build", str(FOLDER / isa), f"-j{jobs}", "--target", "ggml"], check=True
    )
    return path(isa)


def _unpacked() -> Path:
    name = f"llama_cpp_python-{VERSION}"
    inside = f"{name}/vendor/llama.cpp/ggml"
    if not (FOLDER / inside).exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(FOLDER)]
        subprocess.run(
            [*pip, "--no-binary", "llama-cpp-python", f"llama-cpp-python=={VERSION}"], check=True
        )
        with tarfile.open(FOLDER / f"{name}.tar.gz") as archive:
            members = [m for m in archive.getmembers() if m.name.startswith(inside)]
            archive.extractall(FOLDER, members, filter="data")
    (FOLDER / inside / "ggml.pc.in").touch()  # the sdist leaves it out, cmake asks for it
    _keep_tile_config(FOLDER / inside / "src" / "ggml-cpu" / "amx" / "mmq.cpp")
    return FOLDER / inside


def _keep_tile_config(source: Path) -> None:
    """GCC 12 drops most stores to AMX's tile configuration as dead, and ggml then crashes."""
    load = "\n    _tile_loadconfig(&tc);"
    text = source.read_text()
    kept = '\n    __asm__ volatile("" ::"r"(&tc) : "memory");' + load
    if kept not in text:
        source.write_text(text.replace(load, kept))


class _Parameters(ctypes.Structure):
    _fields_ = (
        ("mem_size", ctypes.c_size_t),
        ("mem_buffer", ctypes.c_void_p),
        ("no_alloc", ctypes.c_bool),
    )


_P, _I, _L, _Z = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_size_t
_SIGNATURES: dict[str, tuple[Any, ...]] = {  # name: result, then arguments
    "ggml_init": (_P, _Parameters),
    "ggml_free": (None, _P),
    "ggml_new_tensor_2d": (_P, _P, _I, _L, _L),
    "ggml_mul_mat": (_P, _P, _P, _P),
    "ggml_new_graph": (_P, _P),
    "ggml_build_forward_expand": (None, _P, _P),
    "ggml_row_size": (_Z, _I, _L),
    "ggml_quantize_chunk": (_Z, _I, _P, _P, _L, _L, _L, _P),
    "ggml_backend_cpu_init": (_P,),
    "ggml_backend_cpu_reg": (_P,),
    "ggml_backend_cpu_set_n_threads": (None, _P, _I),
    "ggml_backend_cpu_buffer_type": (_P,),
    "ggml_backend_reg_dev_get": (_P, _P, _Z),
    "ggml_backend_reg_get_proc_address": (_P, _P, ctypes.c_char_p),
    "ggml_backend_dev_supports_op": (ctypes.c_bool, _P, _P),
    "ggml_backend_alloc_ctx_tensors_from_buft": (_P, _P, _P),
    "ggml_backend_tensor_set": (None, _P, _P, _Z, _Z),
    "ggml_backend_tensor_get": (None, _P, _P, _Z, _Z),
    "ggml_backend_graph_compute": (_I, _P, _P),
}


@cache
def library(isa: str) -> ctypes.CDLL:
    """The library for a level, with its functions declared.

    Raises:
        OSError: it is not built.
    """
    loaded = ctypes.CDLL(str(path(isa)))
    for name, (result, *arguments) in _SIGNATURES.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments
    return loaded


def product(
    g: ctypes.CDLL, kind: str, weights: Array, data: Array, threads: int
) -> Callable[[], Array]:
    """Multiplies ``data`` by weights that ggml has quantized.

    Args:
        g: from `library`.
        kind: a key of `TYPES`.
        weights: float32 (N, K).
        data: float32 (M, K).
        threads: that it runs on.

    Returns:
        A call that gives float32 (M, N).
    """
    backend = g.ggml_backend_cpu_init()
    g.ggml_backend_cpu_set_n_threads(backend, threads)
    context = g.ggml_init(_Parameters(1 << 20, None, True))
    x = g.ggml_new_tensor_2d(context, 0, data.shape[1], data.shape[0])
    y = g.ggml_mul_mat(context, _placed(g, kind, weights, context, x), x)
    graph = g.ggml_new_graph(context)
    g.ggml_build_forward_expand(graph, y)
    g.ggml_backend_alloc_ctx_tensors_from_buft(context, g.ggml_backend_cpu_buffer_type())
    g.ggml_backend_tensor_set(x, data.ctypes.data, 0, data.nbytes)
    result = np.empty((data.shape[0], weights.shape[0]), np.float32)

    def run() -> Array:
        if g.ggml_backend_graph_compute(backend, graph) != 0:
            raise RuntimeError("ggml: the graph failed")
        g.ggml_backend_tensor_get(y, result.ctypes.data, 0, result.nbytes)
        return result

    return run


def _placed(g: ctypes.CDLL, kind: str, weights: Array, context: int, x: int) -> int:
    """The weights in the first kind of memory that can multiply them: AMX, repacked, plain."""
    type_, (outputs, inputs) = TYPES[kind], weights.shape
    device = g.ggml_backend_reg_dev_get(g.ggml_backend_cpu_reg(), 0)
    for memory in (*_extra_memory(g, device), g.ggml_backend_cpu_buffer_type()):
        own = g.ggml_init(_Parameters(1 << 16, None, True))
        tensor = g.ggml_new_tensor_2d(own, type_, inputs, outputs)
        if not g.ggml_backend_alloc_ctx_tensors_from_buft(own, memory):
            continue
        if g.ggml_backend_dev_supports_op(device, g.ggml_mul_mat(context, tensor, x)):
            packed = np.empty(outputs * g.ggml_row_size(type_, inputs), np.uint8)
            size = g.ggml_quantize_chunk(
                type_, weights.ctypes.data, packed.ctypes.data, 0, outputs, inputs, None
            )
            g.ggml_backend_tensor_set(tensor, packed.ctypes.data, 0, size)
            return int(tensor)
    raise RuntimeError(f"ggml: no memory for {kind}")


def _extra_memory(g: ctypes.CDLL, device: int) -> list[int]:
    name = b"ggml_backend_dev_get_extra_bufts"
    address = g.ggml_backend_reg_get_proc_address(g.ggml_backend_cpu_reg(), name)
    found = ctypes.CFUNCTYPE(ctypes.POINTER(_P), _P)(address)(device)
    kinds: list[int] = []
    while found[len(kinds)]:
        kinds.append(int(found[len(kinds)]))
    return kinds


def main(argv: list[str] | None = None) -> None:
    """Builds ggml for the levels that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--isa", nargs="+", choices=list(OPTIONS), default=["native"])
    parser.add_argument("--jobs", type=int, default=1)
    args = parser.parse_args(argv)
    for isa in args.isa:
        console.print(f"ggml for {isa}: {build(isa, args.jobs)}")


if __name__ == "__main__":
    main()
