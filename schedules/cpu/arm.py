"""Convolution, linear and depthwise kernels of AArch64, from the templates that x86 has.

Weights below 8 bits lie packed and are decoded a panel at a time, as there. Signed activations are
read as they lie by the dot products of signed numbers; only plain NEON and ``sdot`` on machines
without i8mm shift unsigned ones.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

from nybble.ir import numerics
from nybble.schedules.cpu import conv, depthwise
from nybble.schedules.cpu.dot_arm import FMA, MLAL, MULL, SDOT, SMMLA, USDOT, USMMLA, ArmDot
from nybble.schedules.kernel import Kernel, Problem


def _fitting(dot: ArmDot) -> tuple[Kernel, ...]:
    """The kernels of a dot product, which leave to another what that one does better."""

    def narrowed(kernel: Kernel) -> Kernel:
        def supports(problem: Problem, target: Any) -> str | None:
            return kernel.supports(problem, target) or _refuse(dot, problem)

        return replace(kernel, supports=supports)

    return tuple(narrowed(kernel) for kernel in conv.families((dot,)))


def _refuse(dot: ArmDot, problem: Problem) -> str | None:
    signed = numerics.width(problem.inputs[0].dtype)[0]
    if signed and dot.x == "uint8":
        return "signed activations would have to be shifted"
    if not signed and dot is SMMLA:
        return "unsigned activations would have to be shifted"
    if dot.pixels == 2 and prod(d for d in problem.output.shape[:-1] if isinstance(d, int)) == 1:
        return "a single pixel would be computed twice"
    return None


KERNELS = (
    *depthwise.families((MLAL, FMA)),
    *(kernel for dot in (USMMLA, SMMLA, USDOT) for kernel in _fitting(dot)),
    *conv.families((SDOT, MULL, FMA)),
)
"""By preference: i8mm before dotprod before plain NEON."""
