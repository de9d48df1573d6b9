"""The shape of every Nybble module, and the few helpers that read and rewrite it.

A module holds one Relax function, ``main``: one dataflow block of bindings ``var = op(args)`` in
A-normal form. Arguments are variables, constants, or tuples of them. A binding's name is the source
model's node name (``layer1.0.conv1``), with a suffix for what was derived from it, so every later
stage can say where an op came from. Inputs are the parameters; output names stand in an attribute.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator, Mapping
from math import prod
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax
from tvm.runtime import _ffi_api

from nybble.ir import numerics

OUTPUT_NAMES = "output_names"
STAGE = "stage"
AT_RUN_TIME = "at_run_time"  # says of an imported module that activations get their scales so
RECIPE = "recipe"  # JSON of the recipe that a file of Nybble's own was quantized by


def bindings(mod: tvm.IRModule) -> list[relax.VarBinding]:
    """The bindings of ``main`` in order."""
    return [b for block in mod["main"].body.blocks for b in block.bindings]


def inputs(mod: tvm.IRModule) -> list[relax.Var]:
    """The parameters of ``main``: the model's inputs."""
    return list(mod["main"].params)


def outputs(mod: tvm.IRModule) -> list[relax.Var]:
    """The variables that ``main`` returns, in order."""
    result = mod["main"].body.body
    return list(result.fields) if isinstance(result, relax.Tuple) else [result]


def output_names(mod: tvm.IRModule) -> list[str]:
    """The source model's names of its outputs."""
    return [str(name) for name in mod["main"].attrs[OUTPUT_NAMES]]


def stage(mod: tvm.IRModule) -> str:
    """The spec that the module claims to satisfy: float, quantized, integer or scheduled."""
    attrs = mod["main"].attrs
    return str(attrs[STAGE]) if attrs and STAGE in attrs else "float"


def op_name(expr: Any) -> str:
    """The op of a call (``"relax.nn.conv2d"``), or "" when ``expr`` is no call of an op."""
    is_op_call = isinstance(expr, relax.Call) and isinstance(expr.op, tvm.ir.Op)
    return str(expr.op.name) if is_op_call else ""


def attributes(call: relax.Call) -> dict[str, Any]:
    """A call's attributes as plain Python: ints, floats, strings, tuples, None."""
    if call.attrs is None:
        return {}
    if isinstance(call.attrs, tvm.ir.DictAttrs):  # our own ops
        return {str(key): plain(value) for key, value in call.attrs.items()}
    names = [field.name for field in type(call.attrs).__tvm_ffi_type_info__.fields]
    return {name: plain(getattr(call.attrs, name)) for name in names}


def plain(value: Any) -> Any:
    """A TVM attribute value as plain Python."""
    if isinstance(value, str):
        return str(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, tvm.tirx.IntImm | tvm.tirx.FloatImm):
        return value.value
    if isinstance(value, Iterable):
        return tuple(plain(v) for v in value)
    return str(value)


def operands(expr: Any) -> list[Any]:
    """The tensor arguments of a call, tuples flattened, in order (no shapes, no scalars)."""
    found: list[Any] = []
    for arg in getattr(expr, "args", [expr]):
        found.extend(arg.fields if isinstance(arg, relax.Tuple) else [arg])
    return [arg for arg in found if is_constant(arg) or _is_tensor(arg)]


def _is_tensor(arg: Any) -> bool:
    """Whether an argument is a tensor variable; a symbolic extent is a variable too."""
    return isinstance(arg, relax.Var) and isinstance(arg.ty, relax.TensorType)


def users(mod: tvm.IRModule) -> dict[relax.Var, list[relax.VarBinding]]:
    """Every variable's reading bindings, in order; a model output has no extra entry."""
    found: dict[relax.Var, list[relax.VarBinding]] = {v: [] for v in inputs(mod)}
    for binding in bindings(mod):
        found[binding.var] = []
        for operand in operands(binding.value):
            if isinstance(operand, relax.Var):
                found[operand].append(binding)
    return found


def is_constant(expr: Any) -> bool:
    """Whether the expression is a tensor constant."""
    return isinstance(expr, tvm.ir.GenericConst)


def constant(values: Any, dtype: str | None = None) -> tvm.ir.GenericConst:
    """A Relax constant; the dtype is the array's own unless given, widths below 8 bits included."""
    if dtype is not None and _is_narrow(dtype):
        array = np.array(values, order="C")
        packed = numerics.pack(array.reshape(-1), dtype)
        tensor = tvm.runtime.empty(array.shape, dtype)
        _ffi_api.TVMTensorCopyFromBytes(tensor, _address(packed), packed.nbytes)
        return relax.const(tensor, dtype)
    array = np.asarray(values, dtype, order="C")  # ascontiguousarray would turn () into (1,)
    tensor = tvm.runtime.empty(array.shape, str(array.dtype))  # from an array TVM copies twice
    _ffi_api.TVMTensorCopyFromBytes(tensor, _address(array), array.nbytes)
    return relax.const(tensor, str(array.dtype))


def numpy_of(expr: Any) -> NDArray[Any]:
    """The values of a constant, unpacked: those of ``int4`` come as int8."""
    dtype = str(expr.value.dtype)
    if not _is_narrow(dtype):
        return np.asarray(expr.value.numpy())
    shape = tuple(int(extent) for extent in expr.value.shape)
    packed = np.empty(-(-prod(shape) * numerics.width(dtype)[1] // 8), np.uint8)
    _ffi_api.TVMTensorCopyToBytes(expr.value, _address(packed), packed.nbytes)
    return numerics.unpack(packed, prod(shape), dtype).reshape(shape)


def _is_narrow(dtype: str) -> bool:
    """Whether TVM packs tensors of this dtype, so that NumPy cannot hold them as they are."""
    return dtype.startswith(("int", "uint")) and numerics.width(dtype)[1] < 8


def _address(array: NDArray[np.uint8]) -> Any:
    return array.ctypes.data_as(ctypes.c_void_p)


def shape_of(expr: Any) -> tuple[int | str, ...]:
    """Static extents as int, symbolic ones by name: (``"n"``, 56, 56, 64)."""
    shape = expr.ty.shape
    return tuple(int(d) if isinstance(d, int | tvm.tirx.IntImm) else str(d) for d in shape)


def dtype_of(expr: Any) -> str:
    """The dtype of a tensor expression, as a string."""
    return str(expr.ty.dtype)


class Emitter:
    """Builds a ``main``: emit bindings in order, then `finish`. Types are inferred on emission."""

    def __init__(self, params: Iterable[relax.Var]):
        self.params = list(params)
        self._bindings: list[relax.VarBinding] = []
        self._names = {str(p.name) for p in self.params}

    def emit(self, expr: Any, name: str) -> relax.Var:
        """Binds ``expr`` to a fresh variable called ``name`` (made unique by ``.2``, ``.3`` …)."""
        if isinstance(expr, relax.Var):
            return expr
        builder = relax.BlockBuilder()  # fresh: a failed inference leaves it unusable
        with builder.function("scratch", self.params):  # shape variables come from here
            expr = builder.normalize(expr)
            builder.emit_func_output(relax.Tuple([]))
        var = relax.DataflowVar(self._unique(name), expr.ty)
        self._bindings.append(relax.VarBinding(var, expr))
        return var

    def finish(
        self, results: Iterable[Any], names: Iterable[str], stage: str, attrs: Any = None
    ) -> tvm.IRModule:
        """The finished module; ``results`` are emitted variables, ``names`` the outputs' names."""
        finals, swaps = [], {}
        for result in results:
            if result not in swaps:
                swaps[result] = relax.Var(str(result.name), result.ty)
            finals.append(swaps[result])
        inner = {old: new for old, new in swaps.items() if old not in self.params}
        body = [self._exported(b, inner) for b in self._bindings]
        body += [relax.VarBinding(new, old) for old, new in swaps.items() if old in self.params]
        result = finals[0] if len(finals) == 1 else relax.Tuple(finals)
        block = relax.DataflowBlock(body)
        seq = relax.BlockBuilder().normalize(relax.SeqExpr([block], result))
        function = relax.Function(self.params, seq, seq.ty)
        function = function.with_attr("global_symbol", "main")
        for key, value in {**dict(attrs or {}), OUTPUT_NAMES: list(names), STAGE: stage}.items():
            function = function.with_attr(key, value)
        return tvm.IRModule({"main": function})

    def _exported(self, binding: relax.VarBinding, swaps: Mapping[Any, Any]) -> relax.VarBinding:
        """The binding with exported variables in place of the dataflow variables they replace."""
        value = substitute(binding.value, swaps)
        return relax.VarBinding(swaps.get(binding.var, binding.var), value)

    def _unique(self, name: str) -> str:
        candidate, count = name, 1
        while candidate in self._names:
            count += 1
            candidate = f"{name}.{count}"
        self._names.add(candidate)
        return candidate


def substitute(expr: Any, replace: Mapping[Any, Any]) -> Any:
    """A call (or tuple, or leaf) with variables and constants in it replaced; attributes stay."""
    if isinstance(expr, relax.Var) or is_constant(expr):
        return replace.get(expr, expr)
    if isinstance(expr, relax.Tuple):
        return relax.Tuple([substitute(f, replace) for f in expr.fields])
    if isinstance(expr, relax.Call):
        args = [substitute(a, replace) for a in expr.args]
        return relax.Call(expr.op, args, expr.attrs, expr.ty_args)
    return expr


Visit = Callable[[Emitter, str, Any], Any]


def rewrite(mod: tvm.IRModule, visit: Visit, stage_after: str | None = None) -> tvm.IRModule:
    """Rebuilds ``main`` binding by binding.

    Args:
        mod: the module; it is not changed.
        visit: called with (emitter, binding name, call with operands already rewritten); returns
            the new expression or an already emitted variable, or None to keep the call as it is.
        stage_after: the stage that the result claims; None keeps the module's.
    """
    emitter, replace = Emitter(inputs(mod)), dict[Any, Any]()
    for binding in bindings(mod):
        value = substitute(binding.value, replace)
        new = visit(emitter, str(binding.var.name), value)
        expr = value if new is None else new
        replace[binding.var] = emitter.emit(expr, str(binding.var.name))
    results = [replace.get(v, v) for v in outputs(mod)]
    keep = {k: v for k, v in dict(mod["main"].attrs).items() if k not in (OUTPUT_NAMES, STAGE)}
    return emitter.finish(results, output_names(mod), stage_after or stage(mod), keep)


def walk(mod: tvm.IRModule) -> Iterator[tuple[str, str, relax.Call]]:
    """Yields (binding name, op name, call) for every binding."""
    for binding in bindings(mod):
        yield str(binding.var.name), op_name(binding.value), binding.value
