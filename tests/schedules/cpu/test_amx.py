"""Tile kernels equal the law bit for bit, whatever the knobs; Linux is asked for the tiles."""

import dataclasses
import random
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import tvm

from nybble import tiles
from nybble.runtime import artifact, engine, host
from nybble.schedules.cpu import amx, conv
from nybble.schedules.kernel import Kernel, Knobs
from nybble.schedules.target import host_features, resolve
from tests.cases import CONV, LINEAR, Case
from tests.low_cases import LOW, LOW_LINEAR
from tests.runtime.tiny import tiny_executable, tiny_manifest
from tests.schedules.cpu import running
from tests.schedules.cpu.test_conv import sample

pytestmark = pytest.mark.sweep

TARGET = resolve("x86-64-v4-amx")
AMX = pytest.mark.isa("amx_int8")
LENGTHS = (1, 31, 33, 255, 257, 2177, 4099, 65537)


def kernel_of(case: Case, kernels: tuple[Kernel, ...] = amx.KERNELS) -> Kernel:
    return next(kernel for kernel in kernels if kernel.op == case.op)


def is_supported(case: Case) -> bool:
    return kernel_of(case).supports(case.problem(), TARGET) is None


CASES = {c.name: c for c in (*CONV, *LINEAR, *LOW, *LOW_LINEAR) if is_supported(c)}


def rows(values: Iterable[Any], step: int) -> list[Any]:
    """Every ``step``th now, the others when there is time."""
    return [
        pytest.param(value, marks=() if i % step == 0 else pytest.mark.slow)
        for i, value in enumerate(values)
    ]


@AMX
@pytest.mark.parametrize("name", rows(CASES, 3))
def test_equals_the_law(name: str) -> None:
    running.check(kernel_of(CASES[name]), CASES[name], TARGET)


@AMX
@pytest.mark.parametrize("k", rows(LENGTHS, 3))
@pytest.mark.parametrize(
    ("operands", "dtypes"),
    [
        ("high", ("uint8", "int32")),
        ("low", ("int8", "int32")),
        ("alternating", ("int8", "int32")),
        ("random", ("uint8", "uint8")),
    ],
)
def test_every_length(k: int, operands: str, dtypes: tuple[str, str]) -> None:
    epilogue = "none" if dtypes[1] == "int32" else "requantize"
    case = Case("", "linear", (17, k), (35, k), dtypes=dtypes, operands=operands, epilogue=epilogue)
    running.check(kernel_of(case), case, TARGET)


@AMX
@pytest.mark.parametrize("weights", rows([f"int{bits}" for bits in range(1, 8)], 2))
@pytest.mark.parametrize(("x", "y"), [("uint4", "uint4"), ("int2", "int8")])
def test_every_width(weights: str, x: str, y: str) -> None:
    size = {"w": (40, 3, 3, 20), "padding": (1, 1, 1, 1), "weights": weights}
    case = Case("", "conv2d", (2, 9, 11, 20), dtypes=(x, y), **size)  # type: ignore[arg-type]
    running.check(kernel_of(case), case, TARGET)


@AMX
@pytest.mark.parametrize(
    "size",
    [
        {"x": (1, 23, 37, 24), "w": (50, 3, 3, 24), "padding": (1, 1, 1, 1)},
        {"x": (1, 28, 28, 64), "w": (32, 1, 1, 64), "strides": (2, 2), "padding": (0, 0, 0, 0)},
        {"x": (1, 29, 31, 40), "w": (18, 3, 3, 40), "strides": (2, 1), "padding": (1, 0, 2, 1)},
        {"x": (2, 15, 15, 17), "w": (16, 5, 3, 17), "dilation": (2, 2), "padding": (4, 2, 4, 2)},
        {"x": (1, 7, 7, 96), "w": (70, 3, 3, 96), "padding": (1, 1, 1, 1), "epilogue": "add"},
        {"x": (3, 14, 14, 96), "w": (9, 1, 1, 96), "epilogue": "add", "symbolic": True},
        {"x": (3, 7, 7, 2048), "w": (32, 1, 1, 2048), "epilogue": "add", "symbolic": True},
        {"x": (2, 14, 14, 64), "w": (64, 3, 3, 64), "strides": (2, 2), "padding": (1, 1, 1, 1)},
        {
            "x": (1, 13, 13, 33),
            "w": (64, 3, 3, 33),
            "strides": (3, 2),
            "padding": (1, 1, 1, 1),
            "dilation": (2, 1),
            "dtypes": ("int8", "int8"),
            "pad_value": 3,
        },
    ],
)
def test_every_choice_gives_the_same_bits(size: dict[str, Any]) -> None:
    case = Case(str(size), "conv2d", **size)
    kernel, draw = kernel_of(case), random.Random(str(size))
    running.check(kernel, case, TARGET)
    for _ in range(2):
        running.check(kernel, case, TARGET, sample(kernel, case, TARGET, draw))


@AMX
@pytest.mark.parametrize("threads", [1, 2])
def test_threads_do_not_matter(threads: int) -> None:
    case = Case("", "conv2d", (1, 28, 28, 64), (64, 3, 3, 64), padding=(1, 1, 1, 1))
    kernel, knobs = kernel_of(case), Knobs({"parallel": True, "splits": 2, "rows": 7})
    engine.run(threads, lambda: running.check(kernel, case, TARGET, knobs))


def assembly(kernel: Kernel, case: Case, target: str) -> str:
    cpu = resolve(target)
    function = kernel.build(case.problem(), cpu, Knobs()).with_attr("global_symbol", "main")
    built = tvm.tirx.build(tvm.IRModule({"main": function}), target=cpu.tvm_target())
    return str(built.inspect_source("asm"))


@pytest.mark.parametrize(("x", "product"), [("uint8", "tdpbusd"), ("int8", "tdpbssd")])
def test_a_product_costs_one_load_and_outputs_are_packed(x: str, product: str) -> None:
    case = Case("", "conv2d", (1, 56, 56, 256), (64, 1, 1, 256), dtypes=(x, "uint8"))
    text = assembly(kernel_of(case), case, "x86-64-v4-amx")
    products, stores = text.count(product), text.count("tilestored")
    assert products >= 4 * stores >= 16  # four steps of 64 bytes, unrolled
    assert text.count("tileloadd") <= 1.25 * products + stores  # and the bias for each stored tile
    assert text.count("ldtilecfg") == text.count("tilerelease") >= 1
    assert text.count("vpackuswb") >= 1
    assert "vpmovdb" not in text


def test_vnni_is_generated_for_its_target() -> None:
    case = CASES["3x3"]
    text = assembly(kernel_of(case, conv.KERNELS), case, "x86-64-v4-vnni")
    assert text.count("vpdpbusd") >= 8


def test_refuses_in_words() -> None:
    case = CASES["3x3"]
    kernel = kernel_of(case)
    assert "amx_int8" in str(kernel.supports(case.problem(), resolve("x86-64-v4-vnni")))
    few = dataclasses.replace(case, x=(1, 1, 4, 32), padding=(0, 0, 0, 0), w=(8, 1, 1, 32))
    assert "4 pixels fill no tile" in str(kernel.supports(few.problem(), TARGET))
    short = dataclasses.replace(case, padding=(0, 0, 0, 0), w=(8, 1, 1, 32))
    assert "32 products" in str(kernel.supports(short.problem(), TARGET))
    grouped = dataclasses.replace(case, w=(32, 3, 3, 16), groups=2)
    assert "groups" in str(kernel.supports(grouped.problem(), TARGET))


def test_native_uses_tiles_where_it_may() -> None:
    name = resolve("native").name
    assert (name == "x86-64-v4-amx") == (host_features() >= TARGET.features)


def test_without_permission_the_cpu_counts_as_one_without_tiles(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tiles, "refusal", lambda: "No space left on device")
    found = tiles.available(frozenset(("avx2", "amx_tile", "amx_int8")))
    assert found == {"avx2"}


_GRANTED = """
import ctypes, os, sys
libc, held = ctypes.CDLL(None), ctypes.c_uint64()
ask = lambda: libc.syscall(158, 0x1022, ctypes.byref(held)) or held.value >> 18 & 1
before = ask()
ctypes.CDLL(sys.argv[1], os.RTLD_LAZY)
print(before, ask())
"""


@AMX
def test_a_library_asks_for_the_tiles_when_it_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "tiny.so"
    manifest = tiny_manifest(features=tuple(sorted(TARGET.features & host.features())))
    artifact.export(tiny_executable(), manifest, path)
    runtime = Path(tvm.__file__).parent / "lib" / "libtvm_runtime.so"
    code = f"import tvm_ffi, ctypes; ctypes.CDLL({str(runtime)!r}, ctypes.RTLD_GLOBAL){_GRANTED}"
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["0", "1"], done.stderr
