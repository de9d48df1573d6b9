"""Layers of 1 to 4 bits, and layers with a table behind their epilogue."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.cases import Case, conv, depthwise, linear


def low(name: str, x: tuple[int, ...], w: tuple[int, ...], widths: str, **kw: Any) -> Case:
    """A convolution of low widths: "weights activations output"."""
    weights, activations, output = widths.split()
    return conv(f"low {name}", x, w, weights=weights, dtypes=(activations, output), **kw)


def narrow(name: str, x: tuple[int, ...], o: int, widths: str, **kw: Any) -> Case:
    """A linear layer of low widths."""
    weights, activations, output = widths.split()
    return linear(f"low {name}", x, o, weights=weights, dtypes=(activations, output), **kw)


LOW = (
    low("3x3", (1, 14, 14, 32), (32, 3, 3, 32), "int2 uint2 uint2"),
    low("3x3 W1A1", (1, 9, 11, 32), (64, 3, 3, 32), "int1 uint1 uint1"),
    low("3x3 W1A2", (1, 9, 11, 64), (48, 3, 3, 64), "int1 uint2 uint2"),
    low("3x3 W1A4", (2, 7, 7, 32), (32, 3, 3, 32), "int1 uint4 uint4"),
    low("3x3 signs", (1, 9, 9, 32), (40, 3, 3, 32), "int1 int1 int1"),
    low("3x3 signs unpadded", (1, 9, 9, 64), (32, 3, 3, 64), "int1 int1 int8",
        padding=(0, 0, 0, 0)),
    low("3x3 bits", (1, 9, 9, 24), (33, 3, 3, 24), "uint1 uint1 uint8"),
    low("3x3 W2A8", (1, 9, 9, 16), (32, 3, 3, 16), "int2 uint8 uint8"),
    low("3x3 ternary", (1, 9, 9, 64), (32, 3, 3, 64), "int2 int8 int8", ternary=True),
    low("3x3 add", (1, 7, 7, 32), (48, 3, 3, 32), "int2 uint4 uint4", epilogue="add",
        other="int4"),
    low("3x3 accumulators", (1, 9, 7, 16), (40, 3, 3, 16), "int2 int2 int32", epilogue="none"),
    low("3x3 stride 2", (1, 15, 15, 32), (32, 3, 3, 32), "int1 uint2 uint2", strides=(2, 2)),
    low("3x3 dilated", (1, 13, 11, 8), (33, 3, 3, 8), "int2 uint4 int4", dilation=(2, 3),
        padding=(2, 3, 2, 3)),
    low("pad value", (1, 9, 9, 6), (24, 3, 3, 6), "int1 int4 int4", pad_value=-5),
    low("1x1", (1, 14, 14, 64), (96, 1, 1, 64), "int1 uint1 uint1"),
    low("1x1 stride 2", (1, 14, 14, 32), (64, 1, 1, 32), "int2 uint2 uint2", strides=(2, 2)),
    low("1x1 batch", (3, 7, 7, 32), (64, 1, 1, 32), "int2 int2 uint2", symbolic=True),
    low("3x3 batch", (2, 8, 8, 32), (32, 3, 3, 32), "int1 uint2 uint4", symbolic=True,
        epilogue="add", other="uint2"),
    low("grouped", (1, 9, 9, 64), (64, 3, 3, 16), "int1 uint2 uint2", groups=4),
    low("odd everything", (3, 5, 3, 5), (7, 2, 3, 5), "int2 uint3 uint3", padding=(1, 0, 2, 1),
        strides=(2, 1)),
    low("high", (1, 6, 6, 512), (32, 3, 3, 512), "int2 uint2 int32", operands="high",
        epilogue="none"),
    low("low", (1, 6, 6, 512), (32, 3, 3, 512), "int1 int1 int32", operands="low",
        epilogue="none", padding=(0, 0, 0, 0)),
    low("alternating", (1, 6, 6, 32), (32, 3, 3, 32), "int2 int2 int32", operands="alternating",
        epilogue="none"),
)  # fmt: skip
"""Convolutions of 1- to 4-bit weights and low-bit activations."""

LOW_LINEAR = (
    narrow("one row", (1, 512), 1000, "int1 int8 int8"),
    narrow("one output", (4, 64), 1, "int2 uint8 int8"),
    narrow("many rows", (37, 128), 72, "int2 int8 int8", ternary=True),
    narrow("tokens", (2, 9, 32), 24, "int3 uint4 uint4", epilogue="add"),
    narrow("batch", (5, 96), 100, "int1 uint4 uint4", symbolic=True),
    narrow("big batch", (35, 33), 21, "int2 int8 int8", symbolic=True, epilogue="add"),
    *(
        narrow(
            f"K={k} {widths} {operands}", (3, k), 35, f"{widths} int32", operands=operands,
            epilogue="none",
        )
        for i, k in enumerate((1, 31, 33, 255, 257, 2177, 4099, 65537))
        for operands, *lot in (
            ("high", "int1 int8", "int2 uint8", "int1 uint1"),
            ("low", "int1 int1", "int2 int8", "int2 int2"),
            ("alternating", "int1 uint8", "int2 uint2", "int1 int2"),
            ("random", "int1 int4", "int3 int8", "int2 uint4"),
        )
        for widths in lot[i % 3 : i % 3 + 1]
    ),
)  # fmt: skip
"""Linear layers of 1- to 4-bit weights."""

TABLES = ("int8 uint8", "uint8 int8", "uint4 uint4", "int4 uint2", "int1 int3", "uint6 int1")
"""Widths of index and entries behind an epilogue."""

TABLED = tuple(
    replace(case, name=f"{case.name}, table {widths}", table=widths.split()[0],
        dtypes=(case.dtypes[0], widths.split()[1]))
    for i, case in enumerate((
        conv("3x3", (1, 9, 9, 32), (48, 3, 3, 32)),
        conv("1x1 tails", (1, 7, 5, 31), (33, 1, 1, 31), epilogue="add"),
        conv("grouped odd", (1, 9, 9, 21), (27, 3, 3, 7), groups=3),
        conv("1x1 few channels", (1, 5, 5, 24), (10, 1, 1, 24), epilogue="add", other="uint8"),
        conv("large", (1, 24, 24, 64), (64, 3, 3, 64)),
        low("1x1", (1, 9, 9, 64), (96, 1, 1, 64), "int2 uint2 uint2"),
        low("3x3", (1, 7, 7, 32), (40, 3, 3, 32), "int1 uint1 uint1", epilogue="add"),
        depthwise("dw", (1, 8, 9, 40), (3, 3), epilogue="add"),
        depthwise("dw few channels", (1, 8, 9, 5), (3, 3)),
        narrow("one row", (1, 257), 72, "int4 int8 int8"),
        narrow("rows", (5, 96), 40, "int4 uint4 int8", symbolic=True),
    ))
    for widths in (TABLES[i % 6], TABLES[(i + 1) % 6])
)  # fmt: skip
"""A table as the end of the epilogue, behind every kind of kernel."""
