"""``cpu.generic`` products of two tensors: any zero points, any extents, any target."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray
from tvm import te, tirx

from nybble.schedules.cpu import elementwise, loops
from nybble.schedules.kernel import Constants, Kernel, Knobs, Problem


def pack(problem: Problem, constants: Constants) -> list[NDArray[Any]]:
    """The epilogue's constants."""
    return [constants[name] for name in elementwise.epilogue_names(problem.epilogue)]


def define(problem: Problem) -> Any:
    """The product, unscheduled: ``acc``, and ``out`` behind it where there is an epilogue."""
    symbols = loops.Symbols()
    a, b = (symbols.tensor(spec, name) for spec, name in zip(problem.inputs, "ab", strict=True))
    shape = symbols.extents(problem.output.shape)
    names = elementwise.epilogue_names(problem.epilogue)
    constants = elementwise.vectors(names, problem.output.shape[-1], {})
    zeros = [tirx.const(problem.attr(f"zero_point_{side}"), "int32") for side in "ab"]
    step = te.reduce_axis((0, a.shape[-1]), "k")

    def summed(*index: Any) -> Any:
        *lead, row, column = index
        right = (column, step) if problem.attr("transpose_b") else (step, column)
        left = a(*lead, row, step).astype("int32") - zeros[0]
        return te.sum(left * (b(*lead, *right).astype("int32") - zeros[1]), axis=step)

    acc = te.compute(shape, summed, "acc")

    def value(*index: Any) -> Any:
        read = elementwise.reader(constants, index[-1])
        return elementwise.epilogue(problem, acc(*index), None, read)

    fused = problem.epilogue.kind != "none"
    out = te.compute(shape, value, "out") if fused else acc
    return loops.function([a, b, *constants.values(), out])


def _build(problem: Problem, _target: Any, _knobs: Knobs) -> Any:
    sch, shape = define(problem), (*problem.output.shape, problem.inputs[0].shape[-1])
    _schedule(sch, problem.epilogue.kind != "none", loops.static_size(shape))
    return sch.mod["main"]


def _schedule(sch: Any, fused: bool, work: int) -> None:
    acc = sch.get_sblock("acc")
    if fused:
        sch.compute_at(acc, sch.get_loops(sch.get_sblock("out"))[-2], preserve_unit_loops=True)
    *outer, column, step = sch.get_loops(acc)
    sch.reorder(step, column)
    rows = sch.get_loops(sch.get_sblock("out"))[:-1] if fused else outer
    loops.parallel(sch, rows, work)
    sch.decompose_reduction(acc, step)


def _always(_problem: Problem, _target: Any) -> str | None:
    return None


MATMUL = Kernel(elementwise.NAME, "matmul", _always, pack, _build)
