# mypy: disable-error-code="untyped-decorator,valid-type"
"""TensorIR to fat binaries: what is inside, what is said of it, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import tvm
import tvm_ffi
from tvm import tirx
from tvm.script import tirx as T

from nybble.errors import NybbleError, ScheduleError
from nybble.schedules.cuda import compile as code
from nybble.schedules.cuda import direct, nvcc, toolkit
from nybble.schedules.kernel import Knobs
from nybble.schedules.lower import lower
from nybble.schedules.select import Planner
from nybble.schedules.target import resolve
from tests.cuda.opcodes import code_of
from tests.cuda.test_generic import MODULES, ROWS, SM80

FATBIN = bytes.fromhex("50ed55ba")  # how a fat binary begins


@pytest.fixture(scope="module", autouse=True)
def _needs_nvcc() -> None:
    try:
        toolkit.find()
    except NybbleError as error:
        pytest.skip(str(error))


@T.prim_func(s_tir=True)
def scheduled(a: T.Buffer((64,), "int32"), b: T.Buffer((64,), "int32")) -> None:
    T.func_attr({"global_symbol": "scheduled", "tirx.noalias": True})
    for i in T.thread_binding(64, "threadIdx.x"):
        b[i] = a[i] + 1


@T.prim_func
def threads(a: T.Buffer((64,), "int32"), b: T.Buffer((64,), "int32")) -> None:
    T.func_attr({"global_symbol": "threads"})
    T.device_entry()
    i = T.thread_id([64])
    pool = T.SMEMPool()
    held = pool.alloc((64,), "int32")
    pool.commit()
    held[i] = a[i]
    T.cuda.cta_sync()
    b[i] = held[63 - i]


@T.prim_func(s_tir=True)
def unbound(a: T.Buffer((64,), "int32"), b: T.Buffer((64,), "int32")) -> None:
    T.func_attr({"global_symbol": "unbound"})
    for i in range(64):
        b[i] = a[i] + 1


@T.prim_func
def refused(b: T.Buffer((64,), "int32")) -> None:
    T.func_attr({"global_symbol": "refused"})
    T.device_entry()
    b[T.thread_id([64])] = T.cuda.func_call("nowhere", 1, source_code="", return_type="int32")


def test_both_kinds_of_functions_and_the_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NYBBLE_CACHE", str(tmp_path))
    stock = tvm_ffi.get_global_func("tvm_callback_cuda_compile")
    two = resolve("cuda:sm_80+sm_89")
    assert list(code.prepare([scheduled, threads], two)) == [1, 2]
    monkeypatch.setattr(nvcc, "_run", None)  # what follows is from the cache
    first, second = code.device_code(scheduled, two), code.device_code(threads, two)
    for made in (first, second):
        assert made.binary.startswith(FATBIN)
        assert [usage.arch for usage in made.usage] == ["sm_80", "sm_89"]
        assert all(usage.spills == usage.stack == 0 < usage.registers for usage in made.usage)
        assert "__global__" in made.source
    assert [usage.shared for usage in (*first.usage, *second.usage)] == [0, 0, 256, 256]
    assert [str(f.attrs["global_symbol"]) for f in first.functions] == ["scheduled_kernel"]
    assert tvm_ffi.structural_equal(first.functions[0], code.lowered(scheduled, two)[0])
    assert tvm_ffi.get_global_func("tvm_callback_cuda_compile").same_as(stock)


def test_refusals() -> None:
    with pytest.raises(ScheduleError, match="unbound: no thread is bound"):
        code.device_code(unbound, SM80)
    with pytest.raises(ScheduleError, match=r"nvcc.* fails:\n(.|\n)*nowhere"):
        code.device_code(refused, SM80)


def test_reading_machine_code_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    data = code.device_code(scheduled, SM80).binary
    if nvcc.disassemblers() is not None:
        assert "EXIT" in nvcc.sass(data, "sm_80")
        with pytest.raises(NybbleError, match="finds no code for sm_75"):
            nvcc.sass(data, "sm_75")
    monkeypatch.setattr(nvcc, "disassemblers", lambda: None)
    with pytest.raises(NybbleError, match="needs cuobjdump and nvdisasm"):
        nvcc.sass(data, "sm_80")


def test_what_ptxas_says_is_read() -> None:
    log = """
ptxas info    : Compiling entry function 'one_kernel' for 'sm_80'
ptxas info    : Function properties for one_kernel
    48 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 48 bytes cumulative stack size, 2048 bytes smem
ptxas info    : Compiling entry function 'other_kernel' for 'sm_90a'
ptxas info    : Function properties for other_kernel
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers
"""
    assert nvcc.usage_of(log) == (
        nvcc.Usage("one_kernel", "sm_80", 255, 16, 48, 2048),
        nvcc.Usage("other_kernel", "sm_90a", 8, 0, 0, 0),
    )


WIDE = ("quantize wide", "dequantize wide", "add 8 bytes", "maximum wide", "sum wide", "table wide",
        "image of three planes")  # fmt: skip
LAYERS = ("dw 3x3 signed", "dw batch", "grouped odd", "3x3 add", "tokens", "1x1 batch")


def test_generic_kernels_keep_to_registers() -> None:
    functions = [f for name in WIDE for f in tensorir(MODULES[name])]
    for name in LAYERS:
        kernel = direct.CONV2D if ROWS[name].op == "conv2d" else direct.LINEAR
        functions.append(kernel.build(ROWS[name].problem(), SM80, Knobs()))
    named = [f.with_attr("global_symbol", f"kernel{i}") for i, f in enumerate(functions)]
    usage = code.device_code(
        tvm.IRModule({f"kernel{i}": f for i, f in enumerate(named)}), SM80
    ).usage
    assert len(usage) == len(WIDE) + len(LAYERS)
    assert [one for one in usage if one.spills or one.stack or one.registers > 64] == []


def tensorir(mod: tvm.IRModule) -> list[tirx.PrimFunc]:
    """The functions of a module lowered for GPUs with generic kernels."""
    scheduled = lower(mod, SM80, Planner(force="cuda.generic")).module
    return [f for f in scheduled.functions.values() if isinstance(f, tirx.PrimFunc)]


def test_generic_kernels_move_sixteen_bytes_at_once() -> None:
    (function,) = tensorir(MODULES["add 16 bytes"])
    made = code_of(function, "sm_80")
    assert made.has(r"LDG\.E\.128")
    assert made.has(r"STG\.E\.128")
    assert not made.has("LDL|STL")
    assert max(usage.registers for usage in made.usage) <= 64
