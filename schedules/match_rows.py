"""The rules for ops on whole rows: products of two tensors, softmax and norms.

matmul -> requantize
permute_dims -> matmul -> requantize -> permute_dims        for GPUs, all but the product optional
linear -> rescale_rows
row_tops, quantize_rows, rescale_rows
softmax | masked_softmax | layer_norm | rms_norm
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from numpy.typing import NDArray
from tvm import relax

from nybble.ir import graph, ops
from nybble.schedules.cuda import row_scales
from nybble.schedules.cuda.matmul import MATMUL
from nybble.schedules.cuda.matmul_lying import ATTRS, A, B, Y
from nybble.schedules.group import (
    Group,
    Matcher,
    constant_of,
    fused,
    permutation,
    spec_of,
    vector,
)
from nybble.schedules.kernel import Epilogue, Problem, TensorSpec
from nybble.schedules.target import CpuTarget


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


def as_they_lie(matcher: Matcher, group: Group) -> Group:
    """A product without permutations before and behind it, as far as GPUs' tensor cores go.

    The order of a tensor's axes becomes an attribute of the problem. Where lines of the second
    operand are columns, it is one with the depth last.
    """
    a, b = group.activations[:2]
    if isinstance(matcher.target, CpuTarget) or a.same_as(b):
        return group
    for found in (partial(_unmoved, which=A), partial(_unmoved, which=B), _moved):
        joined = found(matcher, group)
        if joined is None or joined.problem is None:
            continue
        if MATMUL.refuses(joined.problem, matcher.target) is None:
            group = joined
    return group


def _moved(matcher: Matcher, group: Group) -> Group | None:
    """The product with the permutation behind it; None if there is none, or it cuts lines."""
    assert group.problem is not None
    reader = matcher.follower(group.bindings[-1], "relax.permute_dims")
    if reader is None:
        return None
    axes = permutation(reader.value)
    axes = tuple(axes.index(axis) for axis in range(len(axes)))
    output = spec_of(reader.var)
    if not _keeps_lines(output, axes):
        return None
    attrs = {**dict(group.problem.attrs), ATTRS[Y]: axes}
    problem = replace(group.problem, output=output, attrs=tuple(sorted(attrs.items())))
    return replace(group, bindings=(*group.bindings, reader), problem=problem)


def _keeps_lines(stored: TensorSpec, axes: tuple[int, ...]) -> bool:
    """Whether only axes before the last change places, of extents that are known."""
    inner = axes[1:] if axes[0] == 0 else axes
    is_open = any(isinstance(stored.shape[axis], str) for axis in inner)
    return axes[-1] == len(axes) - 1 and not is_open


def _unmoved(matcher: Matcher, group: Group, which: int) -> Group | None:
    """The product without the permutation before an operand; None if it cuts lines, or stays."""
    assert group.problem is not None
    source = matcher.bindings.get(group.activations[which])
    if source is None or graph.op_name(source.value) != "relax.permute_dims":
        return None
    given, attrs = spec_of(source.value.args[0]), dict(group.problem.attrs)
    axes = permutation(source.value)
    last = len(axes) - 1
    if which == B and axes[-2] == last:
        axes, attrs["transpose_b"] = (*axes[:-2], axes[-1], last), not attrs["transpose_b"]
    if not _keeps_lines(given, axes) or matcher.follower(source, "nybble.matmul") is None:
        return None
    if axes != tuple(range(len(axes))):
        attrs[ATTRS[which]] = axes
    inputs, operands = list(group.problem.inputs), list(group.activations)
    inputs[which], operands[which] = given, source.value.args[0]
    problem = replace(group.problem, inputs=tuple(inputs), attrs=tuple(sorted(attrs.items())))
    bindings = (source, *group.bindings)
    return replace(group, bindings=bindings, problem=problem, activations=tuple(operands))


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
