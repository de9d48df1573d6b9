"""Runs kernels of half precision through the interpreter, against the law."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nybble import simt
from nybble.ir import numerics
from nybble.ir.weight_only import HALF, HALF_BOUND
from nybble.schedules.kernel import Kernel, Knobs, Problem
from tests.cuda.layers import gpu
from tests.weight_only_cases import Arrays, Case


def half(*shape: Any, **given: Any) -> Case:
    """A row of `tests.weight_only_cases` in half precision."""
    return dataclasses.replace(Case(*shape, **given), compute=HALF)


def kernel_of(case: Case, kernels: Sequence[Kernel], tail: str = "") -> Kernel:
    """The kernel of a case's width or code book."""
    name = f"cuda.{case.book or f'w{numerics.width(case.weights)[1]}'}{tail}"
    return next(kernel for kernel in kernels if kernel.name == name)


def run(
    built: tuple[Kernel, Problem], case: Case, arch: str, arrays: Arrays, decisions: Any = ()
) -> NDArray[np.float32]:
    """What a kernel stores for a problem, as the interpreter has it."""
    kernel, problem = built
    function = kernel.build(problem, gpu(arch), Knobs(dict(decisions)))
    function = function.with_attr("global_symbol", "layer")
    inputs = [arrays[name] for name in ("x", "other") if name in arrays]
    unpacked = {name: v for name, v in arrays.items() if name not in ("x", "other")}
    packed = [np.ascontiguousarray(a) for a in kernel.constants(problem, unpacked)]
    y = np.zeros(case.y, np.float32)
    report = simt.run(function, [*inputs, *packed, y], target=f"cuda:{arch}")
    assert report.conflicts == 0, "lanes meet in a bank of shared memory"
    return y


def check(kernel: Kernel, case: Case, arch: str, decisions: Any = ()) -> None:
    """Within the bound where the law is finite, and not finite where it is not."""
    arrays = case.data()
    got, (value, bound) = (
        run((kernel, case.problem()), case, arch, arrays, decisions),
        case.bounded(arrays),
    )
    finite = np.isfinite(value)
    assert (np.isfinite(got) == finite).all()
    far = np.abs(got[finite] - value[finite])
    worst = np.max(far / bound[finite], initial=0) * HALF_BOUND
    assert worst <= HALF_BOUND, f"{case.name}: relative error {worst:.1e}"


def whole_numbers(case: Case) -> Arrays:
    """Operands whose sums are exact in any order."""
    rng, arrays = np.random.default_rng(1), case.data()
    arrays["x"] = rng.integers(-8, 9, case.x).astype(np.float32)
    arrays["scale"] = np.exp2(rng.integers(-3, 1, arrays["scale"].shape)).astype(np.float32)
    arrays["bias"] = rng.integers(-9, 9, case.o).astype(np.float32)
    return arrays
