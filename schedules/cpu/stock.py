"""Float ops without a family of their own as kernels: TVM's definition, our schedule, its knobs.

A `Problem` of such an op is called by its full name, ``relax.nn.softmax``, and says all that the
call says: `match` makes it of a call, and a kernel makes the call of it again.
"""

from __future__ import annotations

from functools import lru_cache
from math import isfinite
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax, tirx

from nybble.errors import ScheduleError
from nybble.ir import graph
from nybble.schedules.cpu import float_ops, float_schedule, loops
from nybble.schedules.cpu.float_schedule import Cut, Outline
from nybble.schedules.kernel import Constants, Kernel, Knobs, Problem, TensorSpec

SCALARS = "scalars"
"""The attribute of a problem for operands that are numbers of the code: (position, value) pairs."""
BOUNDED = ("relax.clip",)  # whose numbers are no tensors
KNOWN = 512  # functions that are kept

_NONE = ""
_PLAIN = (
    "abs", "negative", "exp", "sigmoid", "tanh", "erf", "sqrt", "rsqrt", "log", "add", "subtract",
    "multiply", "divide", "maximum", "minimum", "power", "clip", "nn.relu", "nn.silu", "nn.gelu",
    "nn.gelu_tanh",
)  # fmt: skip
_STATISTICS = ("mean", "sum", "max", "min", "variance")
OPS: dict[str, str] = {
    **{f"relax.{name}": _NONE for name in _PLAIN},
    **{f"relax.{name}": "relax.attrs.StatisticalAttrs" for name in _STATISTICS},
    "relax.matmul": "relax.attrs.MatmulAttrs",
    "relax.permute_dims": "relax.attrs.PermuteDimsAttrs",
    "relax.nn.leakyrelu": "relax.attrs.LeakyReluAttrs",
    "relax.nn.softmax": "relax.attrs.SoftmaxAttrs",
    "relax.nn.log_softmax": "relax.attrs.SoftmaxAttrs",
    "relax.nn.layer_norm": "relax.attrs.LayerNormAttrs",
    "relax.nn.rms_norm": "relax.attrs.RMSNormAttrs",
    "relax.nn.avg_pool2d": "relax.attrs.Pool2DAttrs",
    "relax.nn.adaptive_avg_pool2d": "relax.attrs.AdaptivePool2DAttrs",
    "relax.nn.conv3d": "relax.attrs.Conv3DAttrs",
}
"""The ops, and how TVM calls their attributes."""


def problem_of(call: relax.Call) -> tuple[Problem, tuple[Any, ...]] | None:
    """The layer that a call is, and its tensor operands in order.

    Returns:
        None for other ops, other dtypes than float32, computed extents, and whatever TVM does not
        lower to one function of blocks that reads every operand.
    """
    if graph.op_name(call) not in OPS:
        return None
    scalars = tuple(
        (i, value) for i, arg in enumerate(call.args) if (value := _scalar(arg)) is not None
    )
    tensors = [arg for i, arg in enumerate(call.args) if i not in dict(scalars)]
    if not all(map(_is_plain, (call, *tensors))) or not all(isfinite(v) for _, v in scalars):
        return None
    attrs = graph.attributes(call) | ({SCALARS: scalars} if scalars else {})
    specs = [TensorSpec(graph.shape_of(x), "float32") for x in (*tensors, call)]
    problem = Problem(
        graph.op_name(call), tuple(specs[:-1]), specs[-1], tuple(sorted(attrs.items()))
    )
    try:
        _function(problem)
    except ScheduleError:
        return None
    return problem, tuple(tensors)


def _scalar(arg: Any) -> float | None:
    """The value of an operand that becomes part of the code; None of a tensor."""
    if isinstance(arg, tirx.IntImm | tirx.FloatImm):
        return float(arg.value)
    if graph.is_constant(arg) and not arg.ty.shape:
        return float(graph.numpy_of(arg))
    return None


def _is_plain(arg: Any) -> bool:
    """Whether an operand or result is a float32 tensor of known or simply named extents."""
    if not isinstance(arg.ty, relax.TensorType) or graph.dtype_of(arg) != "float32":
        return False
    return all(isinstance(d, int | tirx.IntImm | tirx.Var) for d in arg.ty.shape)


# ---------------------------------------------------------------- the function


@lru_cache(KNOWN)
def _function(problem: Problem) -> Any:
    """TVM's function, unscheduled; parameters: the operands in order, the output.

    Raises:
        ScheduleError: there is none, or it cannot be scheduled.
    """
    symbols = loops.Symbols()
    params = [
        relax.Var(f"x{i}", relax.TensorType(symbols.extents(spec.shape), spec.dtype))
        for i, spec in enumerate(problem.inputs)
    ]
    func, args = float_ops.defined(_call(problem, params), problem.op)
    places = [next((i for i, arg in enumerate(args) if arg.same_as(p)), None) for p in params]
    if None in places or not float_ops.has_root(func):
        raise ScheduleError(f"{problem.op}: its function has another form than others.")
    order = [func.params[i] for i in (*places, len(args))]
    return tirx.PrimFunc(order, func.body, func.ret_type, func.attrs)


def _constant(value: float) -> Any:
    return relax.const(np.float32(value), "float32")


def _call(problem: Problem, params: list[Any]) -> relax.Call:
    attrs = dict(problem.attrs)
    scalars = dict(attrs.pop(SCALARS, ()))
    tensors = iter(params)
    number: Any = relax.prim_value if problem.op in BOUNDED else _constant
    args = [
        number(scalars[i]) if i in scalars else next(tensors)
        for i in range(len(params) + len(scalars))
    ]
    kind = OPS[problem.op]
    made = tvm.ir.make_node(kind, **attrs) if kind else None
    builder = relax.BlockBuilder()
    with builder.function("main", params):
        call = builder.normalize(relax.Call(tvm.ir.Op.get(problem.op), args, made))
        builder.emit_func_output(relax.Tuple([]))
    return call


@lru_cache(KNOWN)
def _outline(problem: Problem) -> Outline:
    return float_schedule.outline(float_ops.inlined(_function(problem)))


# ---------------------------------------------------------------- the kernels


def plan(problem: Problem, target: Any, knobs: Knobs) -> Cut:
    """The decisions for a layer."""
    registers = 16 if target.has("avx512f") else 8
    return float_schedule.decide(_outline(problem), knobs, registers)


def build(problem: Problem, target: Any, knobs: Knobs) -> Any:
    """The scheduled function."""
    cut = plan(problem, target, knobs)
    return float_schedule.scheduled(float_ops.inlined(_function(problem)), cut)


def _pack(_problem: Problem, _constants: Constants) -> list[NDArray[Any]]:
    """Nothing: constants are operands like others."""
    return []


def _always(_problem: Problem, _target: Any) -> str | None:
    return None


KERNELS = tuple(Kernel(float_ops.NAME, op, _always, _pack, build, plan=plan) for op in OPS)
"""One for each op."""
