"""The layers that GPUs are checked and timed with: small ones of every kind, and large products.

What is expected of a layer is computed here, by the law; of large products for some rows and
columns. Their weights repeat a small block, so that they are carried in little space.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nybble.ir import numerics
from nybble.ir.two_levels import CODES, STEPS
from nybble.ir.weight_only import HALF
from nybble.schedules.cuda.levels import ATTR
from nybble.schedules.kernel import Epilogue, Problem, TensorSpec
from tests import cases, low_cases, weight_only_cases

Arrays = dict[str, NDArray[Any]]
BLOCK = (32, 256)  # of weights
PRODUCTS = (
    (16, 4096, 4096), (64, 11008, 4096), (128, 11008, 4096), (256, 11008, 4096), (256, 4096, 11008),
    (8192, 8192, 8192),
)  # fmt: skip
LONG = 4000  # weights of an output; longer ones are seldom met, and much to carry
TWO_LEVELS = "int4 on two levels"
PART = 128  # inputs that share a step and a base
SAMPLES = 32  # rows and columns of a large product


@dataclass(frozen=True)
class Row:
    """A layer, operands, and what a kernel must store.

    Attributes:
        name: unique.
        problem: what kernels are asked to compile.
        arrays: inputs ``x`` and ``b``, and constants by operand name.
        expected: values.
        bound: by how much stored floats may differ, of the same shape; None for equal.
        at: (rows, columns) of the output that ``expected`` is of; None for all of it.
        macs: multiply-adds of a call; 0 for what is not timed.
    """

    name: str
    problem: Problem
    arrays: Arrays
    expected: NDArray[Any]
    bound: NDArray[Any] | None = None
    at: tuple[NDArray[Any], NDArray[Any]] | None = None
    macs: int = 0


def rows(pattern: str = "*") -> Iterator[Row]:
    """The small ones first.

    Args:
        pattern: of names; of others nothing is computed.
    """
    integer = (*cases.CONV, *cases.DEPTHWISE, *cases.LINEAR, *low_cases.LOW, *low_cases.LOW_LINEAR)
    halves = (replace(case, compute=HALF) for case in weight_only_cases.CASES)
    found: list[tuple[str, Callable[[], Row]]] = [
        *((case.name, partial(_small, case)) for case in (*integer, *low_cases.TABLED)),
        *((f"weight-only {case.name}", partial(_small_half, case)) for case in halves),
        *(
            (f"{m} x {n} x {k} {w} x {x}", partial(_product, (m, n, k), w, x))
            for m, n, k in PRODUCTS
            for w, x in (
                ("int8", "int8"),
                ("int4", "int8"),
                (TWO_LEVELS, "int8"),
                ("int4", "int4"),
            )
        ),
        *(
            (f"{m} x {n} x {k} {w} x float16", partial(_half, (m, n, k), w))
            for m in (1, 16, 64, 256)
            for n, k in ((11008, 4096), (28672, 8192))
            for w in ("int4", "int3", "int2")
        ),
    ]
    for name, make in found:
        if fnmatchcase(name, pattern):
            made = make()
            if made.arrays["w"].shape[-1] < LONG or made.macs:
                yield replace(made, name=name)


def _small(case: cases.Case) -> Row:
    arrays = case.data()
    return Row(case.name, case.problem(), arrays, case.law(arrays))


def _small_half(case: weight_only_cases.Case) -> Row:
    arrays = case.data()
    value, bound = case.bounded(arrays)
    return Row(case.name, case.problem(), arrays, value, bound)


def _tiled(rng: np.random.Generator, shape: tuple[int, int], dtype: str) -> NDArray[Any]:
    if dtype == TWO_LEVELS:
        return _repeated(_on_two_levels(rng), shape)
    lo, hi = numerics.limits(dtype)
    block = rng.integers(lo, hi, BLOCK, endpoint=True).astype(numerics.storage(dtype))
    return _repeated(block, shape)


def _on_two_levels(rng: np.random.Generator) -> NDArray[np.int8]:
    """A block of weights that two levels can say."""
    codes = rng.integers(0, CODES, (BLOCK[0], BLOCK[1] // PART, PART), endpoint=True)
    step = rng.integers(1, STEPS, (*codes.shape[:2], 1), endpoint=True)
    base = rng.integers(-128, 127 - CODES * step, endpoint=True)
    return (base + step * codes).reshape(BLOCK).astype(np.int8)


def _repeated(block: NDArray[Any], shape: tuple[int, int]) -> NDArray[Any]:
    times = [-(-extent // side) for extent, side in zip(shape, BLOCK, strict=True)]
    return np.ascontiguousarray(np.tile(block, times)[: shape[0], : shape[1]])


def _at(rng: np.random.Generator, m: int, n: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Some rows and columns of an output, the last ones among them."""
    found = (np.append(rng.integers(0, extent, SAMPLES - 1), extent - 1) for extent in (m, n))
    down, across = (np.unique(one) for one in found)
    return down, across


def _product(size: tuple[int, int, int], weights: str, activations: str) -> Row:
    (m, n, k), rng = size, np.random.default_rng(1)
    x, w = _tiled(rng, (m, k), activations), _tiled(rng, (n, k), weights)
    spread = float(np.std(x, dtype=float) * np.std(w, dtype=float) * np.sqrt(k))
    multiplier, shift = numerics.dyadic(np.exp(rng.normal(0, 0.3, n)) * 40 / spread)
    bias = rng.integers(-999, 999, n, np.int32)
    problem = Problem(
        "linear", (TensorSpec((m, k), activations),), TensorSpec((m, n), "int8"),
        ((ATTR, PART),) if weights == TWO_LEVELS else (),
        TensorSpec((n, k), "int8" if weights == TWO_LEVELS else weights),
        Epilogue("requantize", -128, 127),
    )  # fmt: skip
    at = _at(rng, m, n)
    acc = numerics.linear(x[at[0]], w[at[1]], bias[at[1]])
    scale = multiplier[at[1]], shift[at[1]]
    kept: dict[str, Any] = {"dtype": "int8", "lo": -128, "hi": 127, "zero_point": 0}
    arrays = {"x": x, "w": w, "bias": bias, "multiplier": multiplier, "shift": shift}
    expected = numerics.requantize(acc, *scale, **kept)
    return Row("", problem, arrays, expected, at=at, macs=prod(size))


def _half(size: tuple[int, int, int], weights: str) -> Row:
    (m, n, k), rng = size, np.random.default_rng(2)
    case = weight_only_cases.Case((m, k), n, 128, weights, compute=HALF)
    groups = -(-k // case.group)
    scales = rng.uniform(0.01, 0.02, (BLOCK[0], groups)).astype(np.float32)
    arrays: Arrays = {
        "x": rng.standard_normal((m, k), np.float32),
        "w": _tiled(rng, (n, k), weights),
        "scale": np.tile(scales, (-(-n // BLOCK[0]), 1))[:n],
        "zero_point": np.full((n, groups), case.zero_point, np.int32),
        "bias": np.zeros(n, np.float32),
    }  # fmt: skip
    at = _at(rng, m, n)
    part = {name: values[at[1]] for name, values in arrays.items() if name != "x"}
    value, bound = case.bounded({**part, "x": arrays["x"][at[0]]})
    return Row("", case.problem(), arrays, value, bound, at, prod(size))
