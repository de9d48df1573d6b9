"""``cuda.generic`` element-wise ops: the CPU's definitions, a run of neighbours for a thread."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from nybble.schedules.cpu import elementwise, loops, pooling, resampling
from nybble.schedules.cuda import bind
from nybble.schedules.cuda.arch import KIND
from nybble.schedules.kernel import Kernel, Knobs, Problem, TensorSpec

NAME = "cuda.generic"
_PIXEL = 16  # channels that a thread takes of a pixel whose channels lie in planes


def _build(define: Callable[[Problem], Any], problem: Problem, _target: Any, _knobs: Knobs) -> Any:
    sch = define(problem)
    block, shape = sch.get_sblock("out"), problem.output.shape
    identity = tuple(range(len(shape)))
    if elementwise.axes_of(problem) != identity:
        _transposed(sch, block, problem)
        return sch.mod["main"]
    moved = {name: spec for name, spec in _inputs(problem).items() if spec.shape == shape}
    dtypes = [loops.stored(spec.dtype) for spec in (*moved.values(), problem.output)]
    bind.runs(sch, block, bind.lanes_of(shape[-1] if shape else 1, *dtypes), moved)
    return sch.mod["main"]


def _inputs(problem: Problem) -> dict[str, TensorSpec]:
    """The inputs by their names in the definitions."""
    names = {"requantize": ("x0",), "add": ("x0", "x1"), "multiply": ("a", "b")}
    given = names.get(problem.op, ("x",))
    return dict(zip(given, problem.inputs, strict=True))


def _transposed(sch: Any, block: Any, problem: Problem) -> None:
    """A thread takes a pixel: threads side by side read columns side by side of each plane."""
    spatial, channels = bind.spatial_of(sch, block), problem.output.shape[-1]
    if isinstance(channels, int) and channels <= _PIXEL:
        bind.grid(sch, spatial[:-1])
        sch.unroll(spatial[-1])
    else:
        bind.grid(sch, spatial)


def _always(_problem: Problem, _target: Any) -> str | None:
    return None


KERNELS = tuple(
    Kernel(NAME, op, _always, pack, partial(_build, define), arch=KIND)
    for op, pack, define in (
        ("requantize", elementwise.pack_rescaled, elementwise.define_rescaled),
        ("add", elementwise.pack_rescaled, elementwise.define_rescaled),
        ("multiply", elementwise.pack_product, elementwise.define_product),
        ("table", elementwise.pack_table, elementwise.define_table),
        ("quantize", elementwise.pack_border, elementwise.define_border),
        ("dequantize", elementwise.pack_border, elementwise.define_border),
        ("nearest2d", pooling.pack, resampling.define),
        ("bilinear2d", pooling.pack, resampling.define),
    )
)
