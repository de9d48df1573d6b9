"""Runs a kernel for a row of `tests.cases` through the interpreter, against the law."""

from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray

from nybble import simt
from nybble.ir import interpreter, numerics
from nybble.schedules import table
from nybble.schedules.cuda.arch import CudaTarget
from nybble.schedules.group import Group
from nybble.schedules.kernel import Kernel, Knobs, Problem
from nybble.schedules.match import groups
from nybble.schedules.target import resolve
from tests.cases import Arrays, Case


def gpu(arch: str) -> CudaTarget:
    """A target of one architecture."""
    found = resolve(f"cuda:{arch}")
    assert isinstance(found, CudaTarget)
    return found


def check(
    kernel: Kernel,
    case: Case,
    arch: str,
    knobs: Knobs | None = None,
    problem: Problem | None = None,
) -> simt.Report:
    """Builds, interprets, and compares with the law bit for bit.

    Args:
        kernel: the family.
        case: the layer.
        arch: ``sm_80``.
        knobs: decisions; the defaults when omitted.
        problem: the case's, if tensors are stored in another form.
    """
    problem, arrays = problem or case.problem(), case.data()
    function = kernel.build(problem, gpu(arch), knobs or Knobs())
    function = function.with_attr("global_symbol", "layer")
    wanted = stored(case.law(arrays), problem.output.dtype, problem.output.form)
    got = np.zeros_like(wanted, order="C")
    report = simt.run(function, [*arguments(kernel, problem, arrays), got], target=f"cuda:{arch}")
    np.testing.assert_array_equal(got, wanted, err_msg=f"{kernel.name} {case.name}")
    return report


def arguments(kernel: Kernel, problem: Problem, arrays: Arrays) -> list[NDArray[Any]]:
    """Activations and packed constants in the order of the parameters."""
    constants = {name: values for name, values in arrays.items() if name not in ("x", "b")}
    specs = [*problem.inputs, *([problem.epilogue.other] if problem.epilogue.other else [])]
    names = ("x", "b")[: len(specs)]
    given = [stored(arrays[n], s.dtype, s.form) for n, s in zip(names, specs, strict=True)]
    return [*given, *map(np.ascontiguousarray, kernel.constants(problem, constants))]


def stored(values: NDArray[Any], dtype: str, form: str) -> NDArray[Any]:
    """A tensor as memory holds it."""
    found = numerics.pack(values, dtype) if form == "packed" else values
    return np.ascontiguousarray(found)


def layer_of(mod: tvm.IRModule, arch: str, name: str = "*") -> tuple[Group, Problem, Kernel]:
    """The only layer of a module, and the first kernel of such a name that takes it."""
    target = gpu(arch)
    (group,) = groups(mod, target)
    assert group.problem is not None
    asked = [k for k in table.CUDA if k.op == group.problem.op and fnmatchcase(k.name, name)]
    return group, group.problem, next(k for k in asked if k.refuses(group.problem, target) is None)


def check_module(
    mod: tvm.IRModule,
    arch: str,
    arrays: list[NDArray[Any]],
    knobs: Knobs | None = None,
    name: str = "*",
) -> tuple[str, simt.Report]:
    """`check` for a module of one layer; also gives the kernel's name, which ``name`` restricts."""
    group, problem, kernel = layer_of(mod, arch, name)
    function = kernel.build(problem, gpu(arch), knobs or Knobs())
    packed = map(np.ascontiguousarray, kernel.constants(problem, group.constants))
    wanted = interpreter.run(mod, arrays)[0]
    got = np.zeros_like(wanted, order="C")
    function = function.with_attr("global_symbol", "layer")
    report = simt.run(function, [*arrays, *packed, got], target=f"cuda:{arch}")
    np.testing.assert_array_equal(got, wanted)
    return kernel.name, report
