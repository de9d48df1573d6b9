"""What is tuned: a `Task` is one distinct layer of a network, a `Point` one way to compile it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nybble.errors import ScheduleError
from nybble.ir.weight_only import HALF
from nybble.schedules import table
from nybble.schedules.kernel import Kernel, Knobs, Problem
from nybble.schedules.target import Target

Array = NDArray[Any]
ROUNDED = 1e-4  # of the largest output: what sums of float32 in another order may differ by
ROUNDED_HALF = 2e-3  # the same of products in half precision
EXACT = ("weight_only", "dequantize")  # float outputs that a law fixes to the last bit


@dataclass(frozen=True)
class Point:
    """One point of a task's space.

    Attributes:
        kernel: name in the table of kernels.
        weights: dtype of the weights as stored (narrow ones may be widened to ``int8``), None
            without weights.
        decisions: of the kernel's knobs, sorted by name; what is missing takes its default.
    """

    kernel: str
    weights: str | None
    decisions: tuple[tuple[str, Any], ...] = ()

    @staticmethod
    def of(kernel: str, weights: str | None, decisions: Mapping[str, Any]) -> Point:
        """A point with its decisions in order."""
        return Point(kernel, weights, tuple(sorted(decisions.items())))

    def knobs(self) -> Knobs:
        """Knobs that take these decisions."""
        return Knobs(dict(self.decisions))

    def realize(self, problem: Problem) -> tuple[Kernel, Problem]:
        """The kernel, and a layer as that kernel sees it.

        Raises:
            ScheduleError: the table holds no such kernel for the layer's op.
        """
        known = (*table.KERNELS, *table.CUDA)
        kernels = [k for k in known if (k.name, k.op) == (self.kernel, problem.op)]
        if not kernels:
            raise ScheduleError(f"The table holds no kernel {self.kernel!r} for {problem.op}.")
        if problem.weights is None or self.weights is None:
            return kernels[0], problem
        stored = replace(problem.weights, dtype=self.weights)
        return kernels[0], replace(problem, weights=stored)

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"kernel": self.kernel, "weights": self.weights, "decisions": dict(self.decisions)}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Point:
        """What `as_dict` gave, read back."""
        return Point.of(data["kernel"], data["weights"], data["decisions"])


@dataclass(frozen=True)
class Operands:
    """A task's arrays.

    Attributes:
        constants: unpacked, by operand name: what `Kernel.constants` takes.
        inputs: the activations in the order of the parameters, as memory holds them.
        expected: the law's output for them, as memory holds it.
    """

    constants: dict[str, Array]
    inputs: tuple[Array, ...]
    expected: Array


@dataclass(frozen=True)
class Task:
    """One distinct layer to tune.

    Attributes:
        key: hash of problem, constants and target.
        problem: the layer.
        target: the machine.
        calls: how often the network calls it.
        threads: of the kernels.
        reference: the default kernel with its default decisions.
        folder: of `Operands`: ``constants.npz``, ``inputs.npz``, ``expected.npy``.
    """

    key: str
    problem: Problem
    target: Target
    calls: int
    threads: int
    reference: Point
    folder: Path

    def operands(self) -> Operands:
        """The arrays, from the task's folder.

        Raises:
            OSError: the folder is not there.
        """
        with np.load(self.folder / "constants.npz") as file:
            constants = dict(file)
        with np.load(self.folder / "inputs.npz") as file:
            inputs = tuple(file[f"x{i}"] for i in range(len(file)))
        return Operands(constants, inputs, np.load(self.folder / "expected.npy"))

    def store(self, operands: Operands) -> None:
        """Writes the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        np.savez(self.folder / "constants.npz", **operands.constants)  # type: ignore[arg-type]
        named = {f"x{i}": array for i, array in enumerate(operands.inputs)}
        np.savez(self.folder / "inputs.npz", **named)  # type: ignore[arg-type]
        np.save(self.folder / "expected.npy", operands.expected)

    @property
    def is_exact(self) -> bool:
        """Whether every right kernel gives the same bits: all but sums of floats."""
        exact = self.problem.op in EXACT and not self._in_half
        return exact or not self.problem.output.dtype.startswith("float")

    @property
    def rounded(self) -> float:
        """Share of the largest output that outputs may differ by where they are not exact."""
        return ROUNDED_HALF if self._in_half else ROUNDED

    @property
    def _in_half(self) -> bool:
        return dict(self.problem.attrs).get("compute") == HALF

    def agrees(self, got: Array, expected: Array) -> bool:
        """Whether a kernel's output is right: the law's bits, or near enough for sums of floats."""
        if self.is_exact:
            return np.array_equal(got, expected)
        largest = float(np.abs(expected).max(initial=0))
        return np.allclose(got, expected, rtol=self.rounded, atol=self.rounded * largest)
