"""Sums of rows that were quantized at run time, as floats: the end of a linear layer's epilogue.

    fma(float32(sum)·scale, top / 127, offset)        `nybble.ir.weight_only.rescale_rows`

Scale and offset belong to a channel, the top to a row; it is the epilogue's second branch. So int32
sums are never stored. The order of operations is the law's: products join sums only in ``fmaf``.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tvm import te, tirx

from nybble.ir.weight_only import MOST
from nybble.schedules.cpu import loops
from nybble.schedules.kernel import Constants, Epilogue, Problem

KIND: Final = "rescale_rows"
"""Of the epilogue."""
NAMES = ("scale", "offset")
"""Its constants."""


def is_there(epilogue: Epilogue) -> bool:
    """Whether a layer ends so."""
    return epilogue.kind == KIND


def table(constants: Constants, padded: int) -> NDArray[np.int32]:
    """Rows of per-channel words: bias of the sums, scale, offset."""
    found = np.zeros((1 + len(NAMES), padded), np.int32)
    for row, name in zip(found, ("bias", *NAMES), strict=True):
        dtype = np.int32 if name == "bias" else np.float32
        values = np.asarray(constants[name], dtype).reshape(-1)
        row[: values.size] = values.view(np.int32)
    return found


def factor(top: Any) -> Any:
    """Of a row: the float that an integer of it stands for."""
    return top / tirx.const(float(MOST), "float32")


def value(acc: Any, scale: Any, offset: Any, row: Any) -> Any:
    """What is stored for a sum; ``row`` is the row's `factor`."""
    product = acc.astype("float32") * scale
    return tirx.call_pure_extern("float32", "fmaf", product, row, offset)


# ---------------------------------------------------------------- cuda.generic


def pack(constants: Constants) -> list[NDArray[Any]]:
    """Weights, a byte each, [1][K][O]; bias, scale and offset."""
    w = np.ascontiguousarray(constants["w"].T.astype(np.int8))[None]
    floats = (np.asarray(constants[name], np.float32) for name in NAMES)
    return [w, np.asarray(constants["bias"], np.int32), *floats]


def define(problem: Problem) -> Any:
    """The layer unscheduled, blocks ``acc`` and ``out`` as `nybble.schedules.cpu.fallback` has."""
    assert problem.weights is not None
    assert problem.epilogue.other is not None
    symbols = loops.Symbols()
    x, top = (
        symbols.tensor(spec, name)
        for spec, name in ((problem.inputs[0], "x"), (problem.epilogue.other, "top"))
    )
    channels, depth = map(int, problem.weights.shape)
    w = te.placeholder((1, depth, channels), "int8", "w")
    dtypes = {"bias": "int32", "scale": "float32", "offset": "float32"}
    given = {name: te.placeholder((channels,), dtype, name) for name, dtype in dtypes.items()}
    lead, k = list(x.shape[:-1]), te.reduce_axis((0, depth), "k")

    def product(*index: Any) -> Any:
        *row, block, channel = index
        return te.sum(x(*row, k).astype("int32") * w[block, k, channel].astype("int32"), axis=k)

    acc = te.compute([*lead, 1, channels], product, "acc")

    def stored(*index: Any) -> Any:
        *row, channel = index
        bias, scale, offset = (one[channel] for one in given.values())
        return value(acc(*row, 0, channel) + bias, scale, offset, factor(top(*row, 0)))

    out = te.compute([*lead, channels], stored, "out")
    return loops.function([x, top, w, *given.values(), out])
