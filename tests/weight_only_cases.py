"""One row per weight-only layer: correctness tests and benchmarks read the same rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nybble.ir import code_books, numerics
from nybble.ir.weight_only import INT8, Float32, in_half, weight_only
from nybble.schedules.kernel import Problem, TensorSpec

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Case:
    """One weight-only layer.

    Attributes:
        x: shape of the input.
        o: output channels.
        group: weights that share a scale.
        weights: their dtype.
        zeros: ``common`` zero point, or ``each`` group its own.
        operands: ``random``, or extremes: ``high``, ``low``, ``alternating``.
        symbolic: the leading extent is the shape variable ``n``.
        compute: as of `nybble.ir.weight_only`.
        book: whose levels the weights are, with ``int8`` weights.
    """

    x: tuple[int, ...]
    o: int
    group: int
    weights: str = "int4"
    zeros: str = "common"
    operands: str = "random"
    symbolic: bool = False
    compute: str = INT8
    book: str = ""

    @property
    def name(self) -> str:
        """Unique."""
        shape = "x".join(map(str, self.x))
        tail = " symbolic" * self.symbolic
        width = self.book or self.weights
        return f"{shape} {self.o} {width} g{self.group} {self.zeros} {self.operands}{tail}"

    @property
    def y(self) -> tuple[int, ...]:
        """Shape of the output."""
        return (*self.x[:-1], self.o)

    @property
    def zero_point(self) -> int:
        """The common one: 0 for signed weights, the middle for unsigned ones."""
        lo, hi = numerics.limits(self.weights)
        return (lo + hi + 1) // 2

    def problem(self) -> Problem:
        """The problem that a kernel is asked to compile."""

        def spec(shape: tuple[int, ...]) -> TensorSpec:
            return TensorSpec(("n", *shape[1:]) if self.symbolic else shape, "float32")

        zero = self.zero_point if self.zeros == "common" else None
        attrs = () if self.compute == INT8 else (("compute", self.compute),)
        if self.book:
            attrs = (("book", self.book), *attrs)
        return Problem(
            "weight_only", (spec(self.x),), spec(self.y),
            (*attrs, ("group", self.group), ("zero_point", zero)),
            TensorSpec((self.o, self.x[-1]), self.weights),
        )  # fmt: skip

    def data(self, seed: int = 0) -> Arrays:
        """Input and constants by operand name."""
        rng = np.random.default_rng(seed)
        k, (lo, hi) = self.x[-1], numerics.limits(self.weights)
        shape = (self.o, -(-k // self.group))
        zero = rng.integers(lo, hi, shape, np.int32, endpoint=True)
        common = np.full(shape, self.zero_point, np.int32)
        return {
            "x": self._activations(rng),
            "w": self._weights(rng),
            "scale": rng.standard_normal(shape, np.float32),
            "zero_point": zero if self.zeros == "each" else common,
            "bias": rng.standard_normal(self.o, np.float32),
        }

    def _activations(self, rng: np.random.Generator) -> NDArray[np.float32]:
        if self.operands == "random":
            rows = np.exp(rng.normal(0, 4, (*self.x[:-1], 1)))
            return (rng.standard_normal(self.x) * rows).astype(np.float32)
        ends = {"high": [1.0], "low": [-1.0], "alternating": [1.0, -1.0]}[self.operands]
        return np.resize(np.array(ends, np.float32), self.x)

    def _weights(self, rng: np.random.Generator) -> NDArray[Any]:
        (lo, hi), dtype = numerics.limits(self.weights), numerics.storage(self.weights)
        shape = (self.o, self.x[-1])
        if self.book:
            levels = code_books.levels(self.book)
            lo, hi = int(levels.min()), int(levels.max())
        if self.book and self.operands == "random":
            return rng.choice(levels, shape)
        if self.operands == "random":
            return rng.integers(lo, hi, shape, endpoint=True).astype(dtype)
        ends = {"high": [hi], "low": [lo], "alternating": [lo, hi]}[self.operands]
        return np.resize(np.array(ends, dtype), shape)

    def law(self, arrays: Arrays) -> NDArray[np.float32]:
        """What must be stored."""
        return weight_only(*operands(arrays), group=self.group, book=self.book)

    def bounded(self, arrays: Arrays) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Of half precision: the value, and by how much what is stored may differ."""
        return in_half(*operands(arrays), group=self.group)


def operands(arrays: Arrays) -> tuple[Float32, NDArray[Any], Float32, NDArray[Any], Float32]:
    """Of the law, in order."""
    names = ("x", "w", "scale", "zero_point", "bias")
    x, w, scale, zero, bias = (arrays[name] for name in names)
    return x, w, scale, zero, bias


WIDTHS = range(2, 9)
CASES = (
    *(Case((1, 300), 33, 128, f"int{bits}") for bits in WIDTHS),
    *(Case((9, 257), 41, 64, f"uint{bits}", "each") for bits in WIDTHS),
    *(Case((1, 512), 72, group) for group in (32, 64, 128, 256)),
    *(Case((m, 320), 70, 64, "uint4") for m in (2, 3, 4, 5, 7, 16, 131)),
    *(Case((2, k), 17, 128, operands=operands)
      for k in (1, 31, 33, 255, 257, 2177, 4099, 65537)
      for operands in ("high", "low", "alternating")),
    *(Case((m, 520), 9, 256, f"{sign}int{bits}", "each", operands)
      for m, bits, sign in ((1, 8, "u"), (1, 7, ""), (5, 3, "u"), (6, 2, ""), (6, 8, ""))
      for operands in ("high", "low", "alternating")),
    Case((1, 90), 40, 20),
    Case((5, 90), 3, 7, "uint3", "each"),
    Case((1, 1000), 24, 4096, "int2"),
    Case((2, 3, 96), 48, 32, "int4"),
    Case((1, 640), 264, 128, symbolic=True),
    Case((37, 640), 40, 128, "uint4", "each", symbolic=True),
    *(Case((m, k), o, group, "int8", operands=ends, book=book)
      for book in code_books.NAMES
      for m, k, o, group, ends in (
          (1, 300, 33, 64, "random"), (9, 257, 41, 300, "random"), (2, 2177, 17, 128, "low"),
          (6, 520, 9, 256, "high"), (5, 90, 3, 7, "alternating"),
      )),
)  # fmt: skip
