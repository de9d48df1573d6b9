"""The layers that GPUs are checked and timed with: small ones of every kind, and networks' own.

What is expected of a layer is computed here, by the law; of large products for some rows and
columns. Their weights repeat a small block, so that they are carried in little space.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import cuda_op_rows
from benchmarks.cuda_goals import LEVELS, product
from benchmarks.cuda_row import BLOCK, Arrays, Row, drawn, some, tiled
from nybble.ir import numerics
from nybble.ir.two_levels import CODES, STEPS
from nybble.ir.weight_only import HALF, rescale_rows
from nybble.schedules.cuda import row_scales
from nybble.schedules.cuda.levels import ATTR
from nybble.schedules.kernel import Epilogue, Problem, TensorSpec
from tests import cases, low_cases, weight_only_cases

PRODUCTS = (
    (16, 4096, 4096), (64, 11008, 4096), (128, 11008, 4096), (256, 11008, 4096), (256, 4096, 11008),
    (8192, 8192, 8192),
)  # fmt: skip
LONG = 4000  # weights of an output; longer ones are seldom met, and much to carry
DYNAMIC = ((64, 11008, 4096), (256, 11008, 4096))
FEW = ((5, 140, 256), (70, 40, 384))
GROUP = 128  # inputs that share step and base, or a scale


def rows(pattern: str = "*") -> Iterator[Row]:
    """The small ones first.

    Args:
        pattern: of names; of others nothing is computed.
    """
    integer = (*cases.CONV, *cases.DEPTHWISE, *cases.LINEAR, *low_cases.LOW, *low_cases.LOW_LINEAR)
    halves = (replace(case, compute=HALF) for case in weight_only_cases.CASES)
    small = ((case, case.w[-1]) for case in (*integer, *low_cases.TABLED))
    found: list[tuple[str, Callable[[], Row]]] = [
        *((case.name, partial(_small, case)) for case, k in small if k < LONG),
        *(
            (f"weight-only {case.name}", partial(_small_half, case))
            for case in halves
            if case.x[-1] < LONG
        ),
        *(
            (
                product(m, (n, k), LEVELS, "int8"),
                partial(_product, (m, n, k), LEVELS, "int8", False),
            )
            for m, n, k in FEW
        ),
        *((_dynamic_name(size), partial(_dynamic, size, False)) for size in FEW),
        *cuda_op_rows.small(),
    ]
    timed: list[tuple[str, Callable[[], Row]]] = [
        *(
            (product(m, (n, k), w, x), partial(_product, (m, n, k), w, x))
            for m, n, k in PRODUCTS
            for w, x in (("int8", "int8"), ("int4", "int8"), (LEVELS, "int8"), ("int4", "int4"))
        ),
        *(
            (product(m, size, w, "float16"), partial(_half, (m, *size), w))
            for m in (1, 16, 64, 256)
            for size in ((11008, 4096), (28672, 8192))
            for w in ("int4", "int3", "int2")
        ),
        *((_dynamic_name(size), partial(_dynamic, size)) for size in DYNAMIC),
        *cuda_op_rows.timed(),
    ]
    for name, make in (*found, *timed):
        if fnmatchcase(name, pattern):
            yield replace(make(), name=name)


def _small(case: cases.Case) -> Row:
    arrays = case.data()
    return Row(case.name, case.problem(), arrays, case.law(arrays))


def _small_half(case: weight_only_cases.Case) -> Row:
    arrays = case.data()
    value, bound = case.bounded(arrays)
    return Row(case.name, case.problem(), arrays, value, bound)


def _two_levels(rng: np.random.Generator) -> NDArray[Any]:
    """A block of weights with a step and a base for each group of inputs."""
    shape = (BLOCK[0], BLOCK[1] // GROUP, GROUP)
    step = rng.integers(1, STEPS, (*shape[:2], 1), endpoint=True)
    base = rng.integers(-128, 128 - CODES * step)
    found = base + step * rng.integers(0, CODES, shape, endpoint=True)
    return found.reshape(BLOCK).astype(np.int8)


def _product(
    size: tuple[int, int, int], weights: str, activations: str, is_timed: bool = True
) -> Row:
    (m, n, k), rng = size, np.random.default_rng(1)
    is_split = weights == LEVELS
    held = "int8" if is_split else weights
    block = _two_levels(rng) if is_split else drawn(rng, BLOCK, held)
    x, w = tiled(drawn(rng, BLOCK, activations), (m, k)), tiled(block, (n, k))
    at = some(rng, m), some(rng, n)
    bias = rng.integers(-999, 999, n, np.int32)
    acc = numerics.linear(x[at[0]], w[at[1]], bias[at[1]])
    multiplier, shift = numerics.dyadic(np.exp(rng.normal(0, 0.3, n)) * 40 / np.std(acc))
    problem = Problem(
        "linear", (TensorSpec((m, k), activations),), TensorSpec((m, n), "int8"),
        ((ATTR, GROUP),) if is_split else (), TensorSpec((n, k), held),
        Epilogue("requantize", -128, 127),
    )  # fmt: skip
    scale = multiplier[at[1]], shift[at[1]]
    kept: dict[str, Any] = {"dtype": "int8", "lo": -128, "hi": 127, "zero_point": 0}
    arrays = {"x": x, "w": w, "bias": bias, "multiplier": multiplier, "shift": shift}
    expected = numerics.requantize(acc, *scale, **kept)
    return Row("", problem, arrays, expected, None, at, is_timed, prod(size))


def _dynamic_name(size: tuple[int, int, int]) -> str:
    m, n, k = size
    return f"{product(m, (n, k), 'int8', 'int8')}, scales at run time"


def _dynamic(size: tuple[int, int, int], is_timed: bool = True) -> Row:
    """Of rows that were quantized at run time: floats, by the rows' tops."""
    (m, n, k), rng = size, np.random.default_rng(4)
    arrays: Arrays = {
        "x": tiled(drawn(rng, BLOCK, "int8"), (m, k)),
        "b": rng.uniform(0.5, 2, (m, 1)).astype(np.float32),
        "w": tiled(drawn(rng, BLOCK, "int8"), (n, k)),
        "bias": np.zeros(n, np.int32),
        "scale": rng.uniform(1e-4, 2e-4, n).astype(np.float32),
        "offset": rng.standard_normal(n, np.float32),
    }
    problem = Problem(
        "linear", (TensorSpec((m, k), "int8"),), TensorSpec((m, n), "float32"),
        weights=TensorSpec((n, k), "int8"),
        epilogue=Epilogue(row_scales.KIND, other=TensorSpec((m, 1), "float32")),
    )  # fmt: skip
    at = some(rng, m), some(rng, n)
    x, top = (arrays[name][at[0]] for name in ("x", "b"))
    w, bias, scale, offset = (arrays[name][at[1]] for name in ("w", "bias", *row_scales.NAMES))
    expected = rescale_rows(numerics.linear(x, w, bias), top, scale, offset)
    return Row("", problem, arrays, expected, None, at, is_timed, prod(size))


def _half(size: tuple[int, int, int], weights: str) -> Row:
    (m, n, k), rng = size, np.random.default_rng(2)
    case = weight_only_cases.Case((m, k), n, GROUP, weights, compute=HALF)
    groups = -(-k // case.group)
    scales = rng.uniform(0.01, 0.02, (BLOCK[0], groups)).astype(np.float32)
    arrays: Arrays = {
        "x": rng.standard_normal((m, k), np.float32),
        "w": tiled(drawn(rng, BLOCK, weights), (n, k)),
        "scale": tiled(scales, (n, groups)),
        "zero_point": np.full((n, groups), case.zero_point, np.int32),
        "bias": np.zeros(n, np.float32),
    }  # fmt: skip
    at = some(rng, m), some(rng, n)
    part = {name: values[at[1]] for name, values in arrays.items() if name != "x"}
    value, bound = case.bounded({**part, "x": arrays["x"][at[0]]})
    return Row("", case.problem(), arrays, value, bound, at, True, prod(size))
