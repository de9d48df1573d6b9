"""The rules for ops on whole rows: products of two tensors, softmax and norms.

matmul -> requantize
linear -> rescale_rows
row_tops, quantize_rows, rescale_rows
softmax | masked_softmax | layer_norm | rms_norm
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from numpy.typing import NDArray
from tvm import relax

from nybble.ir import graph, ops
from nybble.schedules.cuda import row_scales
from nybble.schedules.group import Group, Matcher, constant_of, fused, spec_of, vector
from nybble.schedules.kernel import Epilogue, Problem


def _problem(binding: relax.VarBinding, activations: int) -> Problem:
    call = binding.value
    definition = ops.definition_of(graph.op_name(call))
    assert definition is not None
    inputs = tuple(map(spec_of, call.args[:activations]))
    attrs = tuple(sorted(graph.attributes(call).items()))
    return Problem(definition.name, inputs, spec_of(binding.var), attrs)


def matmul(_matcher: Matcher, binding: relax.VarBinding) -> Group:
    """A product of two tensors by itself; what follows it is the caller's."""
    return Group((binding,), _problem(binding, 2), tuple(binding.value.args))


def softmax(_matcher: Matcher, binding: relax.VarBinding) -> Group:
    """A softmax and the scale of its operand.

    Raises:
        ScheduleError: the scale is no constant.
    """
    return _rows(binding, {"multiplier": 1, "shift": 1})


def masked_softmax(_matcher: Matcher, binding: relax.VarBinding) -> Group:
    """A softmax with a mask; the attribute ``rows`` is the mask's number of rows.

    Raises:
        ScheduleError: the mask or the scale is no constant.
    """
    name, args = str(binding.var.name), binding.value.args
    constants = {
        operand: constant_of(arg, name, operand)
        for operand, arg in zip(("mask", "multiplier", "shift"), args[1:], strict=True)
    }
    problem = _problem(binding, 1)
    problem = replace(problem, attrs=(*problem.attrs, ("rows", len(constants["mask"]))))
    return Group((binding,), problem, (args[0],), constants)


def norm(_matcher: Matcher, binding: relax.VarBinding) -> Group:
    """A norm with its constants, one for each channel.

    Raises:
        ScheduleError: an operand is no constant, or not one value for each channel.
    """
    channels = graph.shape_of(binding.var)[-1]
    return _rows(binding, {"multiplier": channels, "offset": channels, "epsilon": 1})


def plain(_matcher: Matcher, binding: relax.VarBinding) -> Group:
    """An op whose operands are all activations."""
    args = tuple(binding.value.args)
    return Group((binding,), _problem(binding, len(args)), args)


def rescale(_matcher: Matcher, binding: relax.VarBinding) -> Group:
    """Sums of rows that were quantized at run time, as floats.

    Raises:
        ScheduleError: scale or bias is no constant, or not one value for each channel.
    """
    scale, bias = _row_scales(binding)
    constants = {"scale": scale, "bias": bias}
    return Group((binding,), _problem(binding, 2), tuple(binding.value.args[:2]), constants)


def with_row_scales(matcher: Matcher, group: Group) -> Group | None:
    """A linear layer with the rescaling of its rows as its epilogue; None where none follows.

    Raises:
        ScheduleError: as of `rescale`.
    """
    reader = matcher.follower(group.bindings[-1], "nybble.rescale_rows")
    if reader is None:
        return None
    top, found = reader.value.args[1], _row_scales(reader)
    constants = dict(zip(row_scales.NAMES, found, strict=True))
    return fused(group, reader, Epilogue(row_scales.KIND, other=spec_of(top)), constants, top)


def _row_scales(binding: relax.VarBinding) -> list[NDArray[Any]]:
    """Scale and bias of each channel."""
    channels, name = graph.shape_of(binding.var)[-1], str(binding.var.name)
    return [
        vector(constant_of(arg, name, operand), channels, name, operand)
        for operand, arg in zip(("scale", "bias"), binding.value.args[2:], strict=True)
    ]


def _rows(binding: relax.VarBinding, lengths: dict[str, int | str]) -> Group:
    name, args = str(binding.var.name), binding.value.args
    constants = {
        operand: vector(constant_of(arg, name, operand), length, name, operand)
        for (operand, length), arg in zip(lengths.items(), args[1:], strict=True)
    }
    return Group((binding,), _problem(binding, 1), (args[0],), constants)
