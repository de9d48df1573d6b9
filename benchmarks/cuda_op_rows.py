"""Ops on whole rows and products of two tensors: small ones of every kind, and those of networks.

What is expected is what the law, in 64 bits, gives for some rows of an output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import cuda_goals
from benchmarks.cuda_row import PERIOD, Arrays, Row, drawn, some
from nybble.ir import numerics, rows, weight_only
from nybble.schedules.kernel import Epilogue, Problem, TensorSpec

Shape = tuple[int, ...]
Making = tuple[str, Callable[[], Row]]
FEW = 64  # lines
KEPT = 256  # values that are expected of a long line
LONG = 16388  # values, which a row does not keep in registers
SPREAD = 44_000.0  # of sums over a depth of 64
SOFTMAX: tuple[tuple[Shape, str, float, str, int], ...] = (
    ((2, 3, 1), "int8", 1500.0, "uint8", 0), ((2, 3, 37), "int32", 0.7, "uint8", 0),
    ((2, 3, 48), "int32", 2.0**20, "uint4", 0), ((2, 3, 80), "uint8", 900.0, "uint8", 0),
    ((1, 2, LONG), "int8", 2.0**15, "uint8", 0), ((2, 5, 21), "int32", 40.0, "uint8", 5),
    ((2, 5, 16), "int32", 40.0, "uint8", 1),
)  # fmt: skip
"""Shapes, dtypes, ratios, what is stored, and rows of a mask."""
NORMS: tuple[tuple[str, Shape, str], ...] = (
    ("layer_norm", (2, 4, 48), "uint8"), ("layer_norm", (2, 4, 45), "int8"),
    ("layer_norm", (3, LONG), "uint8"), ("rms_norm", (2, 4, 64), "int8"),
    ("rms_norm", (2, 4, 12), "int16"),
)  # fmt: skip
PRODUCTS: tuple[tuple[Shape, tuple[str, str], bool, tuple[int, int], bool], ...] = (
    ((2, 2, 20, 24, 32), ("int8", "int8"), True, (7, 0), False),
    ((2, 2, 20, 24, 32), ("uint8", "int8"), False, (0, 0), True),
    ((2, 4, 5, 17, 33), ("int8", "int8"), False, (-9, 0), True),
    ((1, 1, 18, 7), ("uint8", "uint8"), True, (5, 0), False),
    ((2, 17, 20, 36), ("uint8", "int8"), False, (129, -77), False),
    ((2, 197, 197, 64), ("int8", "int8"), True, (0, 0), False),
    ((2, 197, 64, 197), ("uint8", "int8"), False, (0, 0), True),
)
"""Images, rows, columns and depth; dtypes; the depth last in both; zero points; 8 bits stored."""
FLOATS: tuple[Shape, ...] = ((2, 5, 33), (2, 9, 48), (3, 5, 6), (6, 1), (5, LONG))


def small() -> Iterator[Making]:
    """Names and rows, to be made."""
    for shape, dtype, ratio, stored, masks in SOFTMAX:
        kind = f"{dtype} {stored}" + f", {masks} rows of a mask" * bool(masks)
        name = f"{cuda_goals.shaped('softmax', shape)} {kind}"
        yield name, partial(_softmax, shape, dtype, ratio, stored, masks)
    for op, shape, dtype in NORMS:
        yield f"{cuda_goals.shaped(op, shape)} {dtype}", partial(_norm, op, shape, dtype)
    for shape, dtypes, transposed, zeros, rescaled in PRODUCTS:
        kind = f"{' '.join(dtypes)}{' transposed' * transposed}{' to int8' * rescaled}"
        name = f"{cuda_goals.shaped('matmul', shape)} {kind}, zeros {zeros[0]} {zeros[1]}"
        yield name, partial(_product, shape, dtypes, transposed, zeros, rescaled)
    for op, make in DYNAMIC.items():
        for shape in FLOATS:
            yield f"{cuda_goals.shaped(op, shape)} float32", partial(make, shape)


def timed() -> Iterator[Making]:
    """Those of `benchmarks.cuda_goals.OPS`."""
    dtypes = ("int8", "int8")
    makers: dict[str, Callable[[Shape], Row]] = {
        "scores": lambda shape: _product(shape, dtypes, False, (0, 0), False),
        "scores of keys by row": lambda shape: _product(shape, dtypes, True, (0, 0), False),
        "mixed": lambda shape: _product(shape, ("uint8", "int8"), False, (0, 0), True),
        "softmax": lambda shape: _softmax(shape, "int32", 2 * 1.44 * 2**15 / SPREAD, "uint8", 0),
        "layer_norm": lambda shape: _norm("layer_norm", shape, "int8"),
        "rms_norm": lambda shape: _norm("rms_norm", shape, "int8"),
        **DYNAMIC,
    }
    for op, shapes in cuda_goals.OPS.items():
        for shape in shapes:
            yield cuda_goals.shaped(op, shape), partial(_timed, makers[op], shape)


def _timed(make: Callable[[Shape], Row], shape: Shape) -> Row:
    return replace(make(shape), is_timed=True)


def _generator(shape: Shape) -> np.random.Generator:
    return np.random.default_rng(shape)


def _repeated(rng: np.random.Generator, shape: Shape, dtype: str) -> NDArray[Any]:
    """Random values of a period that is prime to all extents."""
    if dtype == "float32":
        return np.resize(rng.standard_normal(PERIOD, np.float32), shape)
    if dtype == "int32":
        return np.resize((SPREAD * rng.standard_normal(PERIOD)).astype(np.int32), shape)
    return np.resize(drawn(rng, (PERIOD,), dtype), shape)


def _row(
    problem: Problem, arrays: Arrays, law: Callable[[NDArray[Any]], NDArray[Any]], macs: int = 0
) -> Row:
    """A row; ``law`` gives whole rows of the output."""
    shape, rng = tuple(map(int, problem.output.shape)), np.random.default_rng(3)
    at = some(rng, prod(shape[:-1])), some(rng, shape[-1], KEPT)
    return Row("", problem, arrays, law(at[0])[:, at[1]], at=at, macs=macs)


def _lines(array: NDArray[Any]) -> NDArray[Any]:
    return array.reshape(-1, array.shape[-1])


# ---------------------------------------------------------------- softmax and norms


def _softmax(shape: Shape, dtype: str, ratio: float, stored: str, masks: int) -> Row:
    rng, length = _generator(shape), shape[-1]
    arrays: Arrays = {"x": _repeated(rng, shape, dtype)}
    scale = numerics.dyadic(np.asarray(ratio))
    arrays |= {"multiplier": scale[0], "shift": scale[1]}
    attrs: tuple[tuple[str, Any], ...] = (("dtype", stored),)
    op, mask = "softmax", np.ones((1, length), np.uint8)
    if masks:
        mask = rng.integers(0, 1, (masks, length), np.uint8, endpoint=True)
        mask[-1] = masks == 1  # of several, one hides its row whole
        op, arrays["mask"], attrs = "masked_softmax", mask, (*attrs, ("rows", masks))
    problem = Problem(op, (TensorSpec(shape, dtype),), TensorSpec(shape, stored), attrs)

    def law(at: NDArray[Any]) -> NDArray[Any]:
        lines = _lines(arrays["x"])[at]
        return rows.masked_softmax(lines, mask[at % len(mask)], *scale, dtype=stored)

    return _row(problem, arrays, law)


def _norm(op: str, shape: Shape, dtype: str) -> Row:
    rng, channels = _generator(shape), shape[-1]
    sign = rng.choice([-1, 1], channels)
    arrays: Arrays = {
        "x": _repeated(rng, shape, dtype),
        "multiplier": (sign * rng.integers(1 << 28, 1 << 31, channels)).astype(np.int32),
        "offset": rng.integers(-(1 << 14), 1 << 14, channels, np.int32),
        "epsilon": np.array([999], np.int64),
    }
    given = {"dtype": "int8", "lo": -128, "hi": 120, "shift": 9, "zero_point": -7}
    if op == "rms_norm":
        given["zero_point_in"] = 30
    problem = Problem(
        op, (TensorSpec(shape, dtype),), TensorSpec(shape, "int8"), tuple(sorted(given.items()))
    )
    constants = [arrays[name] for name in ("multiplier", "offset", "epsilon")]
    compute: Any = {"layer_norm": rows.layer_norm, "rms_norm": rows.rms_norm}[op]
    return _row(problem, arrays, lambda at: compute(_lines(arrays["x"])[at], *constants, **given))


# ---------------------------------------------------------------- products


def _product(
    shape: Shape, dtypes: tuple[str, str], transposed: bool, zeros: tuple[int, int], rescaled: bool
) -> Row:
    *images, m, n, k = shape
    rng = _generator(shape)
    sides = (*images, m, k), (*images, *((n, k) if transposed else (k, n)))
    a, b = (_repeated(rng, side, dtype) for side, dtype in zip(sides, dtypes, strict=True))
    stored = "int8" if rescaled else "int32"
    given: dict[str, Any] = {
        "transpose_b": transposed,
        "zero_point_a": zeros[0],
        "zero_point_b": zeros[1],
    }
    problem = Problem(
        "matmul", (TensorSpec(sides[0], dtypes[0]), TensorSpec(sides[1], dtypes[1])),
        TensorSpec((*images, m, n), stored), tuple(sorted(given.items())),
        epilogue=Epilogue("requantize", -128, 127) if rescaled else Epilogue(),
    )  # fmt: skip
    arrays: Arrays = {"x": a, "b": b}
    if rescaled:
        ratio = np.full(n, 40 / (SPREAD * np.sqrt(k / 64)))
        arrays |= dict(zip(("multiplier", "shift"), numerics.dyadic(ratio), strict=True))

    def law(at: NDArray[Any]) -> NDArray[Any]:
        right = b.reshape(-1, *b.shape[-2:])
        parts = [
            rows.matmul(line[None], right[row // m], **given)
            for row, line in zip(at, _lines(a)[at], strict=True)
        ]
        acc = np.concatenate(parts)
        if not rescaled:
            return acc
        scale = arrays["multiplier"], arrays["shift"]
        return numerics.requantize(acc, *scale, dtype=stored, lo=-128, hi=127)

    return _row(problem, arrays, law, prod(shape))


# ---------------------------------------------------------------- scales at run time


def _floats(shape: Shape) -> NDArray[Any]:
    """Rows; of few, some of them without a scale, tiny and huge."""
    x = _repeated(_generator(shape), shape, "float32")
    lines = _lines(x)
    if len(lines) <= FEW and shape[-1] < LONG:
        lines[0], lines[1, -1], lines[2, 0] = 0, np.nan, np.inf
        lines[3] *= np.float32(2.0**100)
        lines[4] *= np.float32(2.0**-110)
    return x


def _tops(shape: Shape) -> Row:
    x = _floats(shape)
    one = TensorSpec((*shape[:-1], 1), "float32")
    problem = Problem("row_tops", (TensorSpec(shape, "float32"),), one)
    return _row(problem, {"x": x}, lambda at: weight_only.row_tops(_lines(x)[at]))


def _quantized(shape: Shape) -> Row:
    x = _floats(shape)
    top = weight_only.row_tops(x)
    inputs = TensorSpec(shape, "float32"), TensorSpec(top.shape, "float32")
    problem = Problem("quantize_rows", inputs, TensorSpec(shape, "int8"))

    def law(at: NDArray[Any]) -> NDArray[Any]:
        return weight_only.rounded(_lines(x)[at], _lines(top)[at])

    return _row(problem, {"x": x, "b": top}, law)


def _rescaled(shape: Shape) -> Row:
    rng, top = _generator(shape), weight_only.row_tops(_floats(shape))
    acc = _repeated(rng, shape, "int32")
    arrays: Arrays = {"x": acc, "b": top}
    arrays["scale"] = rng.uniform(1e-3, 2e-3, shape[-1]).astype(np.float32)
    arrays["bias"] = rng.standard_normal(shape[-1], np.float32)
    inputs = TensorSpec(shape, "int32"), TensorSpec(top.shape, "float32")
    problem = Problem("rescale_rows", inputs, TensorSpec(shape, "float32"))

    def law(at: NDArray[Any]) -> NDArray[Any]:
        constants = arrays["scale"], arrays["bias"]
        return weight_only.rescale_rows(_lines(acc)[at], _lines(top)[at], *constants)

    return _row(problem, arrays, law)


DYNAMIC: dict[str, Callable[[Shape], Row]] = {
    "row_tops": _tops, "quantize_rows": _quantized, "rescale_rows": _rescaled,
}  # fmt: skip
