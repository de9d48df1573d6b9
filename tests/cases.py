"""One row per layer shape: it drives correctness tests, the benchmark and the support matrix alike.

A `Case` names a problem completely; `data` draws operands for it and `law` computes what every
kernel must store, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nybble.ir import numerics
from nybble.schedules.cpu import singles, winograd_range
from nybble.schedules.cpu.headroom import flush_of, is_safe
from nybble.schedules.kernel import Epilogue, Problem, TensorSpec

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Case:
    """One layer.

    Attributes:
        name: unique.
        op: ``conv2d`` or ``linear``.
        x: shape of the input, NHWC or (…, K).
        w: shape of the weights, OHWI or (O, K).
        strides: along H and W.
        padding: top, left, bottom, right.
        dilation: along H and W.
        groups: of channels.
        pad_value: what stands in the padding.
        dtypes: of the input, of the output.
        weights: dtype of the weights.
        ternary: the weights are -1, 0 and 1 only (``weights`` is ``int2``).
        epilogue: ``none``, ``requantize``, ``add`` or ``float``.
        table: dtype of the index of a table of random entries behind the epilogue.
        other: dtype of the second branch.
        symbolic: the batch extent is the shape variable ``n``.
        operands: ``random``, or extremes: ``high``, ``low``, ``alternating``; ``normal`` is random
            with weights as networks have them.
        vectors: multiplier and shift are per-channel vectors, not scalars.
        gain: factor on the requantization ratios; 1 makes them small, as in real layers.
        flush: `Problem.flush`; None takes what the weights allow.
    """

    name: str
    op: str
    x: tuple[int, ...]
    w: tuple[int, ...]
    strides: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    pad_value: int = 0
    dtypes: tuple[str, str] = ("uint8", "uint8")
    weights: str = "int8"
    ternary: bool = False
    epilogue: str = "requantize"
    table: str | None = None
    other: str = "int8"
    symbolic: bool = False
    operands: str = "random"
    vectors: bool = True
    gain: float = 1
    flush: int | None = None

    @property
    def y(self) -> tuple[int, ...]:
        """Shape of the output."""
        if self.op == "linear":
            return (*self.x[:-1], self.w[0])
        size = [
            (self.x[1 + d] + self.padding[d] + self.padding[2 + d]
             - (self.w[1 + d] - 1) * self.dilation[d] - 1) // self.strides[d] + 1
            for d in range(2)
        ]  # fmt: skip
        return (self.x[0], *size, self.w[0])

    @property
    def rescaled(self) -> str:
        """What the epilogue clamps to: the output's dtype, or that of the table's index."""
        return self.table or self.dtypes[1]

    @property
    def bounds(self) -> tuple[int, int]:
        """The clamp: everything for odd numbers of channels, inside the dtype's limits for even."""
        if self.epilogue not in ("requantize", "add"):
            return 0, 0
        lo, hi = numerics.limits(self.rescaled)
        return (lo, hi) if self.w[0] % 2 or hi - lo < 16 else (lo + 3, hi - 5)

    @property
    def zero_points(self) -> tuple[int, int]:
        """Of the output and of the second branch."""
        return (7, -3) if self.w[0] % 3 == 0 and self.epilogue in ("requantize", "add") else (0, 0)

    @property
    def ratio(self) -> float:
        """The requantization ratios' middle: accumulators fill about half of the output's range."""
        spread = [float(np.ptp(numerics.limits(d))) / 2 for d in (self.dtypes[0], self.weights)]
        deviation = 0.58 * spread[0] * spread[1] * float(np.sqrt(np.prod(self.w[1:])))
        return 0.47 * float(np.ptp(numerics.limits(self.rescaled))) / 2 / deviation * self.gain

    def problem(self) -> Problem:
        """The problem that a kernel is asked to compile."""

        def spec(shape: tuple[int, ...], dtype: str) -> TensorSpec:
            return TensorSpec(("n", *shape[1:]) if self.symbolic else shape, dtype)

        epilogue = Epilogue(self.epilogue, *self.bounds)  # type: ignore[arg-type]
        if self.epilogue in ("requantize", "add"):
            small = self.gain == 1 and self.ratio * np.exp(2) < 1 / 4
            epilogue = replace(
                epilogue, zero_point=self.zero_points[0], small_ratios=small, table=self.table
            )
        if self.epilogue == "add":
            epilogue = replace(
                epilogue, other=spec(self.y, self.other), zero_point_other=self.zero_points[1]
            )
        attrs = {
            "dilation": self.dilation, "groups": self.groups, "pad_value": self.pad_value,
            "padding": self.padding, "strides": self.strides,
        }  # fmt: skip
        problem = Problem(
            self.op,
            (spec(self.x, self.dtypes[0]),),
            spec(self.y, self.dtypes[1]),
            tuple(sorted(attrs.items())) if self.op == "conv2d" else (),
            TensorSpec(self.w, self.weights),
            epilogue=epilogue,
        )
        data = self.data()
        weights = data["w"]
        if self.epilogue in ("requantize", "add"):
            exact = singles.is_exact(problem, data)
            problem = replace(problem, epilogue=replace(epilogue, singles=exact))
        flush = flush_of(problem, weights) if self.flush is None else self.flush
        tile_flush = winograd_range.flush_of(problem, weights)
        problem = replace(problem, flush=flush, tile_flush=tile_flush)
        return replace(problem, safe=self.flush is None and is_safe(problem, weights))

    def data(self, seed: int = 0) -> Arrays:
        """Input, second branch and constants by operand name; constants are alike in any batch."""
        rng = np.random.default_rng(seed)
        arrays = self._constants(rng)
        arrays["x"] = _draw(rng, self.x, self.dtypes[0], self.operands)
        if self.epilogue == "add":
            arrays["b"] = _draw(rng, self.y, self.other, "random")
        return arrays

    def _constants(self, rng: np.random.Generator) -> Arrays:
        o = self.w[0]
        arrays: Arrays = {
            "w": _draw(rng, self.w, self.weights, self.operands),
            "bias": rng.integers(-(2**12), 2**12, o, np.int32),
        }
        if self.ternary:
            arrays["w"] = np.maximum(arrays["w"], -1)
        if self.epilogue not in ("requantize", "add"):
            return arrays
        if self.table is not None:
            every = int(np.ptp(numerics.limits(self.table))) + 1
            arrays["entries"] = _draw(rng, (every,), self.dtypes[1], "random")
        size = o if self.vectors else ()
        ratio = self.ratio * np.exp(np.clip(rng.normal(0, 1, size), -2, 2))
        names = ("multiplier", "shift") if self.epilogue == "requantize" else _ADD[:2]
        arrays.update(zip(names, numerics.dyadic(ratio), strict=True))
        if self.epilogue == "add":
            ratio = np.exp(rng.normal(0, 1, size))
            arrays.update(zip(_ADD[2:], numerics.dyadic(ratio), strict=True))
        return arrays

    def law(self, arrays: Arrays) -> NDArray[Any]:
        """What must be stored."""
        x, w, bias = arrays["x"], arrays["w"], arrays["bias"]
        if self.op == "linear":
            acc = numerics.linear(x, w, bias)
        else:
            acc = numerics.conv2d(
                x, w, bias, strides=self.strides, padding=self.padding, dilation=self.dilation,
                groups=self.groups, pad_value=self.pad_value,
            )  # fmt: skip
        return self.finish(acc, arrays)

    def finish(self, acc: NDArray[Any], arrays: Arrays) -> NDArray[Any]:
        """The law of the epilogue."""
        lo, hi = self.bounds
        after, before = self.zero_points
        kept: dict[str, Any] = {"dtype": self.rescaled, "lo": lo, "hi": hi, "zero_point": after}
        if self.epilogue == "requantize":
            scale = arrays["multiplier"], arrays["shift"]
            acc = numerics.requantize(acc, *scale, **kept)
        if self.epilogue == "add":
            ma, sa, mb, sb = (arrays[name] for name in _ADD)
            acc = numerics.add(acc, ma, sa, arrays["b"], mb, sb, zero_point_b=before, **kept)
        return acc if self.table is None else numerics.table(acc, arrays["entries"])


_ADD = ("multiplier_a", "shift_a", "multiplier_b", "shift_b")


def _draw(rng: np.random.Generator, shape: tuple[int, ...], dtype: str, kind: str) -> NDArray[Any]:
    (lo, hi), stored = numerics.limits(dtype), numerics.storage(dtype)
    if kind == "normal" and lo < 0:
        return np.clip(np.rint(rng.normal(0, hi / 4.5, shape)), -hi, hi).astype(stored)
    if kind in ("random", "normal"):
        step = 2 if dtype == "int1" else 1
        return (lo + step * rng.integers(0, (hi - lo) // step, shape, endpoint=True)).astype(stored)
    if kind == "alternating":
        return np.resize(np.array([lo, hi], stored), shape)
    return np.full(shape, hi if kind == "high" else lo, stored)


def conv(name: str, x: tuple[int, ...], w: tuple[int, ...], **kw: Any) -> Case:
    same = {"padding": (w[1] // 2, w[2] // 2, w[1] // 2, w[2] // 2)} if w[1] > 1 else {}
    return Case(name, "conv2d", x, w, **{**same, **kw})


def linear(name: str, x: tuple[int, ...], o: int, **kw: Any) -> Case:
    return Case(name, "linear", x, (o, x[-1]), **kw)


CONV = (
    conv("3x3", (1, 14, 14, 32), (32, 3, 3, 32)),
    conv("3x3 signed", (1, 14, 14, 32), (32, 3, 3, 32), dtypes=("int8", "int8")),
    conv("3x3 big ratios", (1, 7, 7, 16), (48, 3, 3, 16), gain=100),
    conv("3x3 huge ratios", (1, 7, 7, 16), (48, 3, 3, 16), gain=1e9, epilogue="add"),
    conv("3x3 tiny ratios", (1, 7, 7, 16), (48, 3, 3, 16), gain=1e-9),
    conv("3x3 add", (1, 7, 7, 16), (48, 3, 3, 16), epilogue="add"),
    conv("3x3 add unsigned", (2, 7, 7, 16), (32, 3, 3, 16), epilogue="add", other="uint8"),
    conv("3x3 accumulators", (1, 9, 7, 16), (40, 3, 3, 16), dtypes=("uint8", "int32"),
        epilogue="none"),
    conv("3x3 stride 2", (1, 15, 15, 16), (32, 3, 3, 16), strides=(2, 2)),
    conv("3x3 dilated", (1, 13, 11, 8), (16, 3, 3, 8), dilation=(2, 2), padding=(2, 2, 2, 2)),
    conv("3x3 dilated rows", (1, 13, 11, 8), (17, 3, 3, 8), dilation=(3, 1), padding=(3, 0, 1, 2)),
    conv("3x3 unpadded", (1, 12, 12, 16), (32, 3, 3, 16), padding=(0, 0, 0, 0)),
    conv("asymmetric padding", (1, 9, 9, 8), (32, 3, 3, 8), padding=(0, 0, 1, 1), strides=(2, 2)),
    conv("pad value", (1, 9, 9, 8), (24, 3, 3, 8), pad_value=13, dtypes=("int8", "uint8")),
    conv("stem 7x7x3", (1, 32, 32, 3), (64, 7, 7, 3), strides=(2, 2), dtypes=("int8", "uint8")),
    conv("stem 3x3x3", (1, 33, 33, 3), (32, 3, 3, 3), strides=(2, 2), padding=(0, 0, 1, 1)),
    conv("one channel", (1, 28, 28, 1), (16, 3, 3, 1)),
    conv("odd everything", (3, 5, 3, 5), (7, 2, 3, 5), padding=(1, 0, 2, 1), strides=(2, 1)),
    conv("1x1", (1, 14, 14, 64), (128, 1, 1, 64)),
    conv("1x1 signed", (1, 14, 14, 64), (128, 1, 1, 64), dtypes=("int8", "int8"), vectors=False),
    conv("1x1 tails", (1, 7, 5, 31), (33, 1, 1, 31), epilogue="add"),
    conv("1x1 few channels", (1, 5, 5, 24), (10, 1, 1, 24), epilogue="add", other="uint8"),
    conv("1x1 stride 2", (1, 14, 14, 32), (64, 1, 1, 32), strides=(2, 2)),
    conv("1x1 stride 2 signed", (2, 9, 7, 31), (40, 1, 1, 31), strides=(2, 3), epilogue="add",
        dtypes=("int8", "int8")),
    conv("1x1 stride 2 grouped", (1, 9, 9, 32), (48, 1, 1, 16), strides=(2, 2), groups=2,
        dtypes=("int8", "uint8")),
    conv("1x1 padded", (1, 6, 6, 16), (16, 1, 1, 16), padding=(1, 1, 1, 1), pad_value=9),
    conv("1x1 one pixel", (1, 1, 1, 32), (64, 1, 1, 32), symbolic=True),
    conv("1x1 batch", (3, 7, 7, 32), (64, 1, 1, 32), symbolic=True),
    conv("3x3 batch", (2, 8, 8, 16), (32, 3, 3, 16), symbolic=True, epilogue="add"),
    conv("grouped", (1, 9, 9, 64), (64, 3, 3, 16), groups=4),
    conv("grouped odd", (1, 9, 9, 21), (27, 3, 3, 7), groups=3, dtypes=("int8", "int8")),
    conv("grouped 1x1", (1, 6, 6, 32), (64, 1, 1, 8), groups=4, epilogue="add"),
    conv("full window", (1, 7, 7, 16), (20, 7, 7, 16), padding=(0, 0, 0, 0)),
    conv("high", (1, 6, 6, 32), (32, 3, 3, 32), operands="high"),
    conv("low signed", (1, 6, 6, 32), (32, 3, 3, 32), operands="low", dtypes=("int8", "int8")),
    conv("alternating", (1, 6, 6, 31), (32, 3, 3, 31), operands="alternating", dtypes=("int8",
        "int8")),
)  # fmt: skip


def depthwise(name: str, x: tuple[int, ...], size: tuple[int, int], **kw: Any) -> Case:
    c = x[3]
    same = {"padding": (size[0] // 2, size[1] // 2, size[0] // 2, size[1] // 2)}
    return Case(name, "conv2d", x, (c, *size, 1), groups=c, **{**same, **kw})


DEPTHWISE = (
    depthwise("dw 3x3", (1, 14, 14, 96), (3, 3)),
    depthwise("dw 3x3 signed", (1, 14, 14, 96), (3, 3), dtypes=("int8", "int8")),
    depthwise("dw 3x3 add", (1, 7, 7, 24), (3, 3), epilogue="add"),
    depthwise("dw 3x3 accumulators", (2, 9, 7, 17), (3, 3), dtypes=("uint8", "int32"),
        epilogue="none"),
    depthwise("dw 3x3 stride 2", (1, 28, 28, 32), (3, 3), strides=(2, 2), padding=(0, 0, 1, 1)),
    depthwise("dw 5x5", (1, 14, 14, 40), (5, 5), dtypes=("int8", "uint8")),
    depthwise("dw 7x7", (1, 9, 9, 16), (7, 7), pad_value=11),
    depthwise("dw 5x5 stride 2", (1, 15, 13, 20), (5, 5), strides=(2, 2), gain=100),
    depthwise("dw 3x3 dilated", (1, 13, 11, 16), (3, 3), dilation=(2, 3), padding=(2, 3, 2, 3)),
    depthwise("dw 1x3", (1, 6, 9, 31), (1, 3), padding=(0, 1, 0, 1), pad_value=-7,
        dtypes=("int8", "int8")),
    depthwise("dw 4x2", (1, 8, 9, 33), (4, 2), padding=(1, 0, 2, 1), strides=(1, 2)),
    depthwise("dw few channels", (1, 8, 9, 5), (3, 3), epilogue="add", other="uint8"),
    depthwise("dw one channel unpadded", (1, 8, 9, 1), (3, 3), padding=(0, 0, 0, 0)),
    depthwise("dw unpadded", (1, 8, 9, 32), (3, 3), padding=(0, 0, 0, 0), epilogue="add"),
    depthwise("dw batch", (3, 8, 8, 24), (3, 3), symbolic=True),
    depthwise("dw high", (1, 6, 6, 32), (3, 3), operands="high"),
    depthwise("dw low", (1, 6, 6, 32), (3, 3), operands="low", dtypes=("int8", "int8")),
    depthwise("dw alternating", (1, 6, 6, 31), (3, 3), operands="alternating", dtypes=("int8",
        "int8")),
)  # fmt: skip

MULTIPLIED = (  # several output channels for each input channel
    *(
        replace(
            depthwise(f"dw x{times}{more}", x, (3, 3), **kw), w=(times * x[3], 3, 3, 1)
        )
        for times, more, x, kw in (
            (2, "", (1, 9, 10, 24), {"epilogue": "add"}),
            (2, " few channels", (2, 6, 7, 5), {"dtypes": ("int8", "int8"), "pad_value": 3}),
            (2, " unpadded", (1, 7, 8, 32), {"padding": (0, 0, 0, 0)}),
            (4, " stride 2", (1, 11, 9, 12), {"strides": (2, 2)}),
            (8, "", (1, 5, 7, 3), {"dtypes": ("uint8", "int32"), "epilogue": "none"}),
            (16, " batch", (2, 5, 6, 4), {"symbolic": True}),
        )
    ),
)  # fmt: skip

QUADS = (
    *(
        depthwise(f"dw {w} x {x}", (1, 9, 13, 56), (3, 3), weights=w, dtypes=(x, y))
        for w, x, y in (
            ("int8", "uint8", "uint4"), ("int7", "uint8", "int8"), ("int6", "int8", "uint5"),
            ("int5", "uint6", "int3"), ("int4", "uint8", "uint8"), ("int3", "int4", "int1"),
            ("int2", "uint2", "uint1"), ("int1", "uint8", "uint8"), ("uint4", "int7", "int7"),
        )
    ),
    *(
        depthwise(f"dw {kh}x{kw} {kind}", (1, 11, 12, 33), (kh, kw), operands=kind, dtypes=dtypes)
        for kh, kw in ((1, 1), (2, 3), (3, 3), (5, 5), (6, 1), (7, 7))
        for kind, dtypes in (
            ("high", ("uint8", "uint8")), ("low", ("int8", "int8")),
            ("alternating", ("uint8", "int8")),
        )
    ),
    depthwise("dw 5x5 int4", (1, 8, 8, 40), (5, 5), weights="int4", operands="low"),
    depthwise("dw big ratios", (1, 8, 8, 48), (3, 3), gain=1e4, epilogue="add", other="int5"),
    depthwise("dw few rows", (1, 2, 30, 64), (3, 3), strides=(2, 1), dilation=(1, 2)),
    depthwise("dw large", (1, 30, 31, 144), (3, 3), dtypes=("int8", "int8"), symbolic=True),
    depthwise("dw large stride 2", (1, 31, 30, 96), (3, 3), strides=(2, 2)),
)  # fmt: skip
"""Depthwise layers of all widths, and those whose pairs of products exceed 16 bits."""

LINEAR = (
    linear("one row", (1, 512), 1000),
    linear("one output", (4, 64), 1),
    linear("ten classes", (1, 64), 10, dtypes=("uint8", "int32"), epilogue="none"),
    linear("rows", (37, 48), 40, dtypes=("int8", "int8")),
    linear("tokens", (2, 9, 32), 24, epilogue="add"),
    linear("batch", (5, 96), 100, symbolic=True),
    linear("big batch", (35, 33), 21, symbolic=True, epilogue="add"),
    linear("batch of tokens", (3, 19, 20), 16, symbolic=True, dtypes=("int8", "uint8")),
    *(
        linear(f"K={k} {operands}", (2, k), 18, operands=operands, dtypes=(x, y), epilogue=epilogue)
        for k in (1, 31, 33, 255, 257, 2177, 4099, 65537)
        for operands, x, y, epilogue in (
            ("high", "uint8", "int32", "none"),
            ("low", "int8", "int32", "none"),
            ("alternating", "int8", "int8", "requantize"),
            ("random", "uint8", "uint8", "requantize"),
        )
    ),
)
