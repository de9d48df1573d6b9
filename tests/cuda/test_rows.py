"""Softmax, norms and products of two tensors on GPUs equal the law bit for bit, without a GPU."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax

from nybble import simt
from nybble.errors import ScheduleError
from nybble.ir import graph, numerics, ops
from nybble.schedules.cuda import matmul, norms, softmax
from nybble.schedules.cuda.rowwise import plan_of
from nybble.schedules.kernel import Epilogue, Knobs, Problem, TensorSpec
from nybble.schedules.match import groups
from nybble.schedules.target import resolve
from tests.cuda.layers import check_module, gpu, layer_of
from tests.cuda.opcodes import Code, check_registers, code_of
from tests.schedules.modules import inputs_of, module
from tests.schedules.test_rows import norm, product, soft

slow = pytest.mark.slow
ARCHS = ("sm_75", "sm_80", "sm_90")
ROWS, MMA = "cuda.rows", "cuda.int8.mma"


def check(
    mod: tvm.IRModule, arch: str, *given: Any, knobs: Knobs | None = None
) -> tuple[str, simt.Report]:
    return check_module(mod, arch, list(given) or inputs_of(mod, 2), knobs)


def masked(rows: int, length: int) -> tvm.IRModule:
    """Masks with rows hidden whole, and values beyond all others that are hidden."""
    mask = np.random.default_rng(5).integers(0, 1, (rows, length), np.uint8, endpoint=True)
    mask[-1] = rows == 1
    constants = [graph.constant(c) for c in (mask, *numerics.dyadic(np.asarray(40.0)))]

    def body(emitter: Any, x: Any) -> Any:
        return emitter.emit(ops.call("masked_softmax", [x, *constants], dtype="uint8"), "y")

    return module(body, ((3, 5, length), "int32"))


# ---------------------------------------------------------------- rows

SOFTMAX = {
    "one value": (soft("int8", 1, 1500.0), "sm_75"),
    "odd": (soft("int32", 37, 1e-3), "sm_75"),
    "words": (soft("int32", 48, 2.0**28, "uint4"), "sm_80"),
    "bytes": (soft("uint8", 80, 900.0), "sm_90"),
    "masks": (masked(5, 21), "sm_80"),
    "one mask": (masked(1, 16), "sm_75"),
}


@pytest.mark.parametrize("name", SOFTMAX)
def test_softmax(name: str) -> None:
    assert check(*SOFTMAX[name])[0] == ROWS


@pytest.mark.parametrize("length", [pytest.param(2048, marks=slow), pytest.param(4100, marks=slow)])
def test_the_largest_sums_of_powers(length: int) -> None:
    """Equal values: every power is the largest, and their sum is beyond 32 bits."""
    check(soft("int8", length, 1500.0), "sm_80", np.zeros((1, 3, length), np.int8))


NORMS = {
    "layer, bytes": (norm("layer_norm", "uint8", 48), "sm_75"),
    "layer, odd": (norm("layer_norm", "int8", 45), "sm_80"),
    "rms, words": (norm("rms_norm", "int8", 64), "sm_90"),
    "rms, 16 bits": (norm("rms_norm", "int16", 12), "sm_80"),
}


@pytest.mark.parametrize("name", NORMS)
def test_norms(name: str) -> None:
    assert check(*NORMS[name])[0] == ROWS


def test_a_norm_of_rows_without_variance() -> None:
    rows = np.stack([np.full((4, 16), value, np.uint8) for value in (0, 255)])
    check(norm("layer_norm", "uint8", 16), "sm_80", rows)


@pytest.mark.parametrize(("arch", "threads"), [
    ("sm_80", 4), ("sm_80", 64), pytest.param("sm_75", 1, marks=slow),
    pytest.param("sm_75", 32, marks=slow), pytest.param("sm_90", 256, marks=slow),
])  # fmt: skip
def test_every_team_gives_the_same_bits(arch: str, threads: int) -> None:
    """Parts of a warp, whole ones, several; rows in registers and rows that are read again."""
    knobs = Knobs({"threads": threads})
    check(norm("layer_norm", "uint8", 160), arch, knobs=knobs)
    _, report = check(soft("int32", 160, 1e-3), arch, knobs=knobs)
    assert bool(report.count("cta_sync")) == (threads > 32)


@slow
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("length", [2, 3, 4, 31, 33, 128, 197, 257])
def test_rows_everywhere(length: int, arch: str) -> None:
    for mod in (
        soft("int32", length, 1e-3), soft("uint8", length, 900.0), masked(5, length),
        norm("layer_norm", "uint8", length), norm("rms_norm", "int8", length),
    ):  # fmt: skip
        assert check(mod, arch)[0] == ROWS


def plan(shape: tuple[int, ...], dtype: str) -> Any:
    """As softmax has it; norms have the same."""
    problem = Problem("softmax", (TensorSpec(shape, dtype),), TensorSpec(shape, "uint8"))
    return plan_of(problem, gpu("sm_90"), Knobs())


def test_teams_fit_their_rows() -> None:
    many = plan((64, 128, 768), "uint8")
    assert (many.threads, many.values) == (32, 24)  # no thread beyond the end
    assert plan((1, 1, 4096), "uint8").threads > 128  # a single row waits for nobody
    assert plan((32, 12, 128, 128), "int32").lanes == 4
    assert not plan((1, 65536), "int32").is_held


# ---------------------------------------------------------------- products

PRODUCTS: dict[str, tuple[Any, Any, int, bool, bool]] = {
    "scores": (("int8", (2, 20, 32)), ("int8", (2, 24, 32)), 7, True, False),
    "mixed": (("uint8", (2, 20, 32)), ("int8", (2, 32, 24)), 0, False, True),
    "odd": (("int8", (4, 5, 33)), ("int8", (4, 33, 17)), -9, False, True),
    "odd, no whole word": (("int8", (5, 33)), ("int8", (33, 17)), -9, False, True),
    "few rows": (("uint8", (1, 1, 7)), ("uint8", (1, 18, 7)), 5, True, False),
}


@pytest.mark.parametrize(("name", "arch"), [
    ("scores", "sm_80"), ("mixed", "sm_90"), ("mixed", "sm_75"), ("odd", "sm_80"),
    pytest.param("odd, no whole word", "sm_80", marks=slow),
    pytest.param("few rows", "sm_75", marks=slow), pytest.param("scores", "sm_75", marks=slow),
])  # fmt: skip
def test_products(name: str, arch: str) -> None:
    assert check(product(*PRODUCTS[name]), arch)[0] == MMA


def both_zeros(m: int, n: int, k: int, transposed: bool) -> tvm.IRModule:
    """Zero points on both sides."""
    attrs = {"zero_point_a": 129, "zero_point_b": -77, "transpose_b": transposed}

    def body(emitter: Any, a: Any, b: Any) -> Any:
        return emitter.emit(ops.call("matmul", [a, b], **attrs), "y")

    second = (2, n, k) if transposed else (2, k, n)
    return module(body, ((2, m, k), "uint8"), (second, "int8"))


@pytest.mark.parametrize("transposed", [False, True])
def test_zero_points_of_both(transposed: bool) -> None:
    assert check(both_zeros(17, 20, 36, transposed), "sm_80")[0] == MMA


HEADS = {  # in memory: tokens, heads, depth
    "scores": (((20, 2, 16), (0, 2, 1, 3)), ((24, 2, 16), (0, 2, 3, 1)), False),
    "scores, odd": (((5, 3, 7), (0, 2, 1, 3)), ((6, 3, 7), (0, 2, 3, 1)), False),
    "keys by head": (((2, 20, 16), (0, 1, 2, 3)), ((2, 24, 16), (0, 1, 3, 2)), False),
    "keys by depth": (((2, 20, 16), (0, 1, 2, 3)), ((2, 16, 24), (0, 1, 3, 2)), True),
    "mixed": (((2, 20, 24), (0, 1, 2, 3)), ((24, 2, 16), (0, 2, 1, 3)), False),
    "mixed, odd": (((3, 5, 6), (0, 1, 2, 3)), ((6, 3, 7), (0, 2, 1, 3)), False),
    "heads outside": (((2, 20, 16), (0, 1, 2, 3)), ((24, 2, 16), (0, 2, 3, 1)), False),
}


QUICK = {("scores", "sm_80"), ("mixed", "sm_80")}


def heads(name: str) -> tvm.IRModule:
    """A product of permuted tensors; mixed values are permuted back."""
    *operands, transposed = HEADS[name]
    attrs = {"zero_point_a": 129, "zero_point_b": -77, "transpose_b": transposed}

    def body(emitter: Any, *given: Any) -> Any:
        pairs = zip(given, operands, "ab", strict=True)
        moved = [emitter.emit(relax.op.permute_dims(x, axes), n) for x, (_, axes), n in pairs]
        y = emitter.emit(ops.call("matmul", moved, **attrs), "y")
        if not name.startswith("mixed"):
            return y
        return emitter.emit(relax.op.permute_dims(y, (0, 2, 1, 3)), "in memory")

    (a, _), (b, _) = operands
    return module(body, (a, "uint8"), (b, "int8"))


@pytest.mark.parametrize(("name", "arch"), [
    pytest.param(name, arch, marks=() if (name, arch) in QUICK else slow)
    for name in HEADS for arch in ARCHS
])  # fmt: skip
def test_products_of_tensors_as_they_lie(name: str, arch: str) -> None:
    """Permutations that leave lines whole are no layers of their own."""
    assert check(heads(name), arch)[0] == MMA  # of the only layer


def test_other_permutations_stay() -> None:
    """On CPUs, where lines are cut, where others read, where tensor cores do not multiply."""

    def count(mod: tvm.IRModule, target: str) -> int:
        return len(groups(mod, resolve(target)))

    def twice(emitter: Any, x: Any) -> Any:
        y = emitter.emit(relax.op.permute_dims(x, (0, 2, 1)), "moved")
        return emitter.emit(ops.call("matmul", [y, y], transpose_b=True), "y")

    def columns(emitter: Any, x: Any, y: Any) -> Any:
        x = emitter.emit(relax.op.permute_dims(x, (0, 2, 1)), "moved")
        return emitter.emit(ops.call("matmul", [x, y]), "y")

    def wide(emitter: Any, x: Any, y: Any) -> Any:
        y = emitter.emit(relax.op.permute_dims(y, (0, 2, 1)), "moved")
        return emitter.emit(ops.call("matmul", [x, y]), "y")

    assert count(heads("scores"), "x86-64-v3") == 3
    assert count(heads("scores"), "cuda:sm_80") == 1
    bytes_, words = ((8, 16), "int8"), ((8, 16), "int16")
    assert count(module(twice, bytes_), "cuda:sm_80") == 2
    assert count(module(columns, bytes_, bytes_), "cuda:sm_80") == 2
    assert count(module(wide, words, bytes_), "cuda:sm_80") == 2
    assert count(module(wide, bytes_, bytes_), "cuda:sm_80") == 1


@pytest.mark.parametrize("transposed", [False, pytest.param(True, marks=slow)])
def test_extreme_products(transposed: bool) -> None:
    """Sums that only 32 bits hold: 255·(-128), 400 times."""
    shape = (16, 400) if transposed else (400, 16)
    mod = product(("uint8", (16, 400)), ("int8", shape), 0, transposed, False)
    a = np.full((1, 16, 400), 255, np.uint8)
    check(mod, "sm_80", a, np.full((1, *shape), -128, np.int8))


@slow
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("extents", [
    (1, 1, 1), (3, 5, 31), (16, 8, 33), (70, 66, 64), (65, 130, 12), (33, 31, 197), (20, 72, 150),
])  # fmt: skip
def test_products_everywhere(extents: tuple[int, int, int], transposed: bool, arch: str) -> None:
    assert check(both_zeros(*extents, transposed), arch)[0] == MMA


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=slow) for seed in range(1, 9))])
def test_every_tile_gives_the_same_bits(seed: int) -> None:
    draw = random.Random(seed)
    mod = both_zeros(40, 80, 80, seed % 2 == 0)  # whole pieces of 16 bytes
    _, problem, kernel = layer_of(mod, "sm_80")
    while True:
        knobs = Knobs()
        kernel.plan(problem, gpu("sm_80"), knobs)
        knobs = Knobs({name: draw.choice(choices) for name, choices in knobs.space.items()})
        try:
            kernel.plan(problem, gpu("sm_80"), knobs)
        except ScheduleError:
            continue
        break
    _, report = check(mod, "sm_80", knobs=knobs)
    assert report.conflicts == 0, report.conflict_sites


def test_what_tensor_cores_leave_to_the_generic_kernel() -> None:
    wide = Problem(
        "matmul", (TensorSpec((2, 3, 4), "int16"), TensorSpec((2, 4, 5), "int8")),
        TensorSpec((2, 3, 5), "int32"), (("transpose_b", False),),
    )  # fmt: skip
    assert matmul.MATMUL.refuses(wide, gpu("sm_80")) == (
        "computes integers of up to 8 bits, not int16 x int8"
    )
    tokens = (TensorSpec(("n", "t", 8), "uint8"), TensorSpec(("n", 8, "t"), "int8"))
    open_ = Problem("matmul", tokens, TensorSpec(("n", "t", "t"), "int32"))
    reason = matmul.MATMUL.refuses(open_, gpu("sm_80"))
    assert reason == "an extent of the matrices is symbolic"


# ---------------------------------------------------------------- machine code

AFFINE = (("dtype", "uint8"), ("hi", 255), ("lo", 0), ("shift", 9), ("zero_point", 3))
LAYERS = {
    "softmax": ((32, 12, 128, 128), "int32", ()),
    "masked_softmax": ((8, 12, 197, 197), "int32", (("rows", 197),)),
    "layer_norm": ((64, 128, 768), "uint8", AFFINE),
    "rms_norm": ((1, 4096), "int8", (*AFFINE, ("zero_point_in", 3))),
}


def row_code(op: str, arch: str) -> Code:
    """Machine code of a row kernel, with nothing in local memory."""
    shape, dtype, attrs = LAYERS[op]
    problem = Problem(op, (TensorSpec(shape, dtype),), TensorSpec(shape, "uint8"), attrs)
    (kernel,) = [k for k in (*softmax.KERNELS, *norms.KERNELS) if k.op == op]
    code = code_of(kernel.build(problem, gpu(arch), Knobs()), arch)
    check_registers(code, 128, 6)
    return code


@slow
@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_86", "sm_89", "sm_90"])
@pytest.mark.parametrize("op", LAYERS)
def test_machine_code_of_rows(op: str, arch: str) -> None:
    code = row_code(op, arch)
    if op == "softmax":
        assert code.has(r"LDG\.E\.128")
        assert code.has("SHFL")  # several rows share a warp
    else:
        assert code.has("SHFL" if arch == "sm_75" else "REDUX")
    if op.endswith("norm"):
        assert code.has(r"IDP\.4A")
        assert code.has(r"LDG\.E\.128")
        assert code.has(r"STG\.E\.(64|128)")


ATTENTION = {
    "scores": ((128, 128, 64), True, False),
    "mixed": ((128, 64, 128), False, True),
    "scores of 197": ((197, 197, 64), True, False),
    "mixed of 197": ((197, 64, 197), False, True),
    "scores of heads": ((128, 128, 64), True, False),
    "mixed of heads": ((128, 64, 128), False, True),
}


def product_code(name: str, arch: str) -> None:
    """Products on tensor cores, fragments by ``ldmatrix``, nothing in local memory."""
    (m, n, k), transposed, rescaled = ATTENTION[name]
    order: tuple[tuple[str, Any], ...] = ()
    epilogue = Epilogue("requantize", -128, 127, small_ratios=True) if rescaled else Epilogue()
    lines, width = (n, k) if transposed else (k, n)
    second, output = (32, 12, lines, width), (32, 12, m, n)
    if "heads" in name:
        order = (("axes_b", (0, 2, 1, 3)), ("axes_y", (0, 2, 1, 3)))
        second, output = (32, lines, 12, width), (32, m, 12, n)
    problem = Problem(
        "matmul", (TensorSpec((32, 12, m, k), "uint8"), TensorSpec(second, "int8")),
        TensorSpec(output, "int8" if rescaled else "int32"),
        (*order, ("transpose_b", transposed), ("zero_point_a", 0), ("zero_point_b", 0)),
        epilogue=epilogue,
    )  # fmt: skip
    target = gpu(arch)
    made = matmul.MATMUL.build(problem, target, Knobs())
    cut = matmul.MATMUL.plan(problem, target, Knobs())
    code = code_of(made, arch)
    check_registers(code, cut.threads, 1)
    step = cut.units[0] * cut.units[1] * 2 * (4 if arch == "sm_75" else 1) * cut.slabs
    found = sum(n for one, n in code.counts.items() if one.startswith("IMMA"))
    assert found % step == 0, (found, step)
    wanted = ["IMMA.8816" if arch == "sm_75" else "IMMA.16832", "LDSM.16.M88.4"]
    wanted += [] if transposed else ["LDSM.16.MT88.4", "PRMT"]
    wanted += ["STS.128"] if cut.held else ["LDGSTS.E.BYPASS"]
    wanted += ["STG.E.128"] if name.startswith("scores") and n == 128 else []
    for pattern in wanted:
        assert code.has(pattern.replace(".", r"\.")), (pattern, code.counts)


@slow
@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_86", "sm_89", "sm_90"])
@pytest.mark.parametrize("name", ATTENTION)
def test_machine_code_of_products(name: str, arch: str) -> None:
    product_code(name, arch)
