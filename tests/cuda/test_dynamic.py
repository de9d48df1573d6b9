"""Rows quantized at run time on GPUs equal the law bit for bit, without a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tvm

import nybble
from nybble import simt
from nybble.errors import NybbleError
from nybble.ir import graph, interpreter, numerics, ops
from nybble.ir.weight_only import LEAST, row_tops
from nybble.passes import pipeline
from nybble.runtime.manifest import read_all
from nybble.schedules.cuda import dynamic, toolkit
from nybble.schedules.kernel import Knobs, Problem, TensorSpec
from tests.cuda.layers import check_module, gpu, layer_of
from tests.cuda.opcodes import check_registers, code_of
from tests.cuda.serial import Network
from tests.schedules.modules import module
from tests.schedules.test_integer import one, steps, weights

slow = pytest.mark.slow
ARCHS = ("sm_75", "sm_80", "sm_90")
RNG = np.random.default_rng(11)


def floats(rows: int, length: int) -> Any:
    """Rows of every kind: plain, huge, tiny, zeros, ties of rounding, NaN, infinities."""
    x = RNG.normal(size=(2, rows, length)).astype(np.float32)
    x[1] *= np.float32(2) ** RNG.integers(-130, 120, (rows, 1)).astype(np.float32)
    kinds = x.reshape(-1, length)
    halves = np.arange(length) % 253 - 126 + np.float32(0.5)
    special = (halves, np.full(length, LEAST / 3), np.zeros(length), np.full(length, 3.4e38))
    for row, values in zip(kinds[1:], special, strict=False):
        row[:] = values
    kinds[1, -1] = 127  # so that a step is 1
    for row, value in zip(kinds[5:], (np.nan, np.inf, -np.inf, -np.nan), strict=False):
        row[RNG.integers(length)] = value
    return x


def tops(rows: int, length: int, arch: str, knobs: Knobs | None = None) -> simt.Report:
    """Largest magnitudes, and the rows by them."""
    x = floats(rows, length)
    name, report = check_module(one("row_tops", [], ((rows, length), "float32")), arch, [x], knobs)
    assert name == "cuda.rows"

    def body(emitter: graph.Emitter, x: Any, top: Any) -> Any:
        return emitter.emit(ops.call("quantize_rows", [x, top]), "y")

    mod = module(body, ((rows, length), "float32"), ((rows, 1), "float32"))
    assert check_module(mod, arch, [x, row_tops(x)], knobs)[0] == "cuda.rows"
    return report


def rescaled(rows: int, length: int, arch: str, knobs: Knobs | None = None) -> None:
    """Sums of all sizes, and tops of every kind."""

    def body(emitter: graph.Emitter, acc: Any, top: Any) -> Any:
        return emitter.emit(ops.call("rescale_rows", [acc, top, *steps(length)]), "y")

    mod = module(body, ((rows, length), "int32"), ((rows, 1), "float32"))
    shift = RNG.integers(0, 31, (2, rows, length))
    acc = RNG.integers(-(2**31), 2**31, shift.shape).astype(np.int32) >> shift
    given = [acc.astype(np.int32), row_tops(floats(rows, length))]
    assert check_module(mod, arch, given, knobs)[0] == "cuda.rows"


def layer(shape: tuple[int, int, int], dtype: str) -> tvm.IRModule:
    """A linear layer of rows quantized at run time, with a bias of its sums."""
    m, n, k = shape
    low, high = numerics.limits(dtype)
    w = graph.constant(RNG.integers(low, high, (n, k), np.int8, endpoint=True), dtype)
    bias = graph.constant(RNG.integers(-999, 999, n, np.int32))

    def body(emitter: graph.Emitter, x: Any, top: Any) -> Any:
        acc = emitter.emit(ops.call("linear", [x, w, bias]), "acc")
        return emitter.emit(ops.call("rescale_rows", [acc, top, *steps(n)]), "y")

    return module(body, ((m, k), "int8"), ((m, 1), "float32"))


LAYERS = (
    ("cuda.int8.mma", "int8", "sm_80", (9, 24, 64)),
    ("cuda.bitserial", "int1", "sm_80", (5, 24, 64)),
    ("cuda.generic", "int8", "sm_80", (5, 24, 33)),
    pytest.param("cuda.int8.wgmma", "int8", "sm_90", (9, 70, 64), marks=slow),
    pytest.param("cuda.int8.mma", "int8", "sm_75", (5, 33, 31), marks=slow),
    pytest.param("cuda.int8.mma", "int8", "sm_80", (70, 300, 160), marks=slow),
    pytest.param("cuda.int4.mma", "int4", "sm_80", (17, 40, 96), marks=slow),
    pytest.param("cuda.int4.wgmma", "int4", "sm_90", (9, 70, 64), marks=slow),
    pytest.param("cuda.bitserial", "int1", "sm_75", (5, 24, 64), marks=slow),
    pytest.param("cuda.generic", "int3", "sm_80", (3, 7, 20), marks=slow),
)


@pytest.mark.parametrize(("name", "dtype", "arch", "shape"), LAYERS)
def test_layers_rescale_their_rows(
    name: str, dtype: str, arch: str, shape: tuple[int, int, int]
) -> None:
    """No kernel of its own: int32 sums are not stored."""
    mod, (m, _, k) = layer(shape, dtype), shape
    x = RNG.integers(-127, 127, (2, m, k), np.int8, endpoint=True)
    assert check_module(mod, arch, [x, row_tops(floats(m, k))], name=name)[0] == name


def test_the_generic_kernel_has_the_same_end() -> None:
    """Chosen by name, compiled by LLVM; the sums' reader is no kernel of its own."""
    mod, x = layer((9, 24, 33), "int8"), RNG.integers(-127, 127, (3, 9, 33), np.int8)
    network, top = Network(mod), row_tops(floats(9, 33)[:1].repeat(3, 0))
    assert [one.op for one in network.scheduled.layers] == ["linear+rescale_rows"]
    assert network.kernels == {"cuda.generic"}
    np.testing.assert_array_equal(network([x, top]), interpreter.run(mod, [x, top])[0])


@pytest.mark.parametrize(("rows", "length", "arch"), [
    (5, 33, "sm_75"), (9, 48, "sm_80"), (5, 6, "sm_90"), (6, 1, "sm_80"),
])  # fmt: skip
def test_rows(rows: int, length: int, arch: str) -> None:
    """Tails of rows and of blocks, lanes of 1, 2 and 4 values."""
    tops(rows, length, arch)
    rescaled(rows, length, arch)


@pytest.mark.parametrize(("threads", "length"), [(4, 160), (64, 328)])
def test_every_team_gives_the_same_bits(threads: int, length: int) -> None:
    """Parts of a warp and several; rows that leave registers."""
    knobs = Knobs({"threads": threads})
    report = tops(5, length, "sm_80", knobs)
    assert bool(report.count("cta_sync")) == (threads > 32)
    rescaled(5, length, "sm_80", knobs)


@slow
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("length", [2, 3, 4, 31, 64, 197, 768, 4100, 16388, 20001])
def test_rows_everywhere(length: int, arch: str) -> None:
    rows = 5 if length < 1000 else 1
    tops(rows, length, arch)
    rescaled(rows, length, arch)


def test_ties_are_rounded_to_even() -> None:
    """The addition that rounds, on every half step there is and its neighbours."""
    halves = np.arange(-126.5, 127, dtype=np.float32)
    x = np.concatenate(
        [np.nextafter(halves, np.float32(side)) for side in (-1e3, 1e3)] + [halves, [127] * 2]
    ).astype(np.float32)

    def body(emitter: graph.Emitter, x: Any, top: Any) -> Any:
        return emitter.emit(ops.call("quantize_rows", [x, top]), "y")

    mod = module(body, ((1, len(x)), "float32"), ((1, 1), "float32"))
    check_module(mod, "sm_80", [x[None, None], np.full((1, 1, 1), 127, np.float32)])


# ---------------------------------------------------------------- machine code

SHAPES = {"row_tops": 1, "quantize_rows": 768, "rescale_rows": 3072}


@slow
@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_86", "sm_89", "sm_90"])
@pytest.mark.parametrize("op", SHAPES)
def test_machine_code(op: str, arch: str) -> None:
    """Whole accesses, nothing in local memory; no conversions where an addition rounds."""
    rows, length = (64, 128), max(768, SHAPES[op])
    x = TensorSpec((*rows, length), "int32" if op == "rescale_rows" else "float32")
    inputs = (x,) if op == "row_tops" else (x, TensorSpec((*rows, 1), "float32"))
    dtype = "int8" if op == "quantize_rows" else "float32"
    problem = Problem(op, inputs, TensorSpec((*rows, SHAPES[op]), dtype))
    (kernel,) = [k for k in dynamic.KERNELS if k.op == op]
    code = code_of(kernel.build(problem, gpu(arch), Knobs()), arch)
    check_registers(code, 128, 6)
    assert code.has(r"LDG\.E\.128")
    wanted = {
        "row_tops": "SHFL" if arch == "sm_75" else "REDUX",
        "quantize_rows": r"STG\.E$",
        "rescale_rows": r"STG\.E\.128",
    }
    assert code.has(wanted[op]), code.counts
    assert not code.has("F2I|FRND"), code.counts


@slow
@pytest.mark.parametrize("rows", [16, 256])
@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_90"])
def test_machine_code_of_layers(arch: str, rows: int) -> None:
    """Rows' factors and channels' numbers fit into the registers that the sums leave."""
    mod = layer((rows, 4096, 1024), "int8")
    is_wgmma = arch == "sm_90" and rows > 16
    _, problem, kernel = layer_of(mod, arch, "cuda.int8.wgmma" if is_wgmma else "cuda.int8.mma")
    target = gpu(arch)
    code = code_of(kernel.build(problem, target, Knobs()), arch)
    check_registers(code, kernel.plan(problem, target, Knobs()).threads, 1)
    for pattern in ("I2FP?", "FFMA", r"STG\.E\.128"):
        assert code.has(pattern), code.counts


# ---------------------------------------------------------------- networks


def mlp() -> nybble.QuantizedModel:
    """Two linear layers, quantized at run time."""
    torch.manual_seed(3)
    net = torch.nn.Sequential(torch.nn.Linear(64, 96), torch.nn.ReLU(), torch.nn.Linear(96, 32))
    model = nybble.load_torch(net.eval(), torch.zeros(5, 64), dynamic_batch=False)
    return nybble.quantize(model, recipe=nybble.Recipe(weights=8, activations="dynamic"))


def test_gpus_keep_the_integers_of_cpus() -> None:
    """Of layers that became integer ones; the law of halves is for those that did not."""
    scale, bias = steps(9)
    scale = graph.constant(graph.numpy_of(scale)[:, None])
    for zero, kept in ((0, []), (1, ["float16"])):
        operands = [weights(9, 33), scale, graph.constant(np.full((9, 1), zero, np.int32)), bias]
        layer = one("weight_only", operands, ((4, 33), "float32"), group=33)
        made = pipeline.suited(pipeline.at_run_time(layer), "cuda")
        calls = [b.value for b in graph.bindings(made)]
        found = [c for c in calls if graph.op_name(c) == "nybble.weight_only"]
        assert [graph.attributes(c)["compute"] for c in found] == kept
        assert len(calls) == (1 if kept else 4)


@slow
@pytest.mark.parametrize("target", ["cuda:sm_80", "cuda:sm_90"])
def test_a_network_compiles(target: str, tmp_path: Path) -> None:
    """Row ops by rows, layers on tensor cores, without a spill."""
    try:
        toolkit.find()
    except NybbleError as error:
        pytest.skip(str(error))
    made = mlp()
    x = RNG.normal(size=(5, 64)).astype(np.float32)
    np.testing.assert_array_equal(made.run(x, target=target), made.run(x))
    (variant,) = read_all(nybble.compile(made, target).save(tmp_path / "net.so"))
    manifest = variant.manifest
    taken = {layer["op"]: layer["kernel"] for layer in manifest.layers}
    rows = dict.fromkeys(("row_tops", "quantize_rows"), "cuda.rows")
    assert taken == rows | {"linear+rescale_rows": "cuda.int8.mma", "relu": "cuda.stock"}
    assert manifest.device is not None
    assert all(use["spills"] == 0 for use in manifest.device["usage"])
