"""Open sizes of torch networks: what is asked of torch.export, and what it made of it."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import torch
from torch.export import Dim, ExportedProgram
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import is_concrete_int

from nybble.errors import ImportModelError
from nybble.frontend import open_sizes
from nybble.frontend.extents import Refused
from nybble.frontend.open_sizes import BATCH, Shapes

Axes = dict[int, str]
"""Axes that stay open, each with its name; the same name is the same size."""


@dataclass(frozen=True)
class Asked:
    """What is asked of torch.export.

    Attributes:
        examples: the inputs to trace with.
        open_axes: of each input.
        single: how many inputs have an argument of their own; those behind are ``*args``.
    """

    examples: tuple[torch.Tensor, ...]
    open_axes: tuple[Axes, ...]
    single: int

    def dynamic_shapes(self) -> tuple[Any, ...] | None:
        """As torch.export takes it."""
        if not any(self.open_axes):
            return None
        every = [dict.fromkeys(axes, Dim.AUTO) for axes in self.open_axes]
        rest = [tuple(every[self.single :])] if every[self.single :] else []
        return (*every[: self.single], *rest)


def asked(
    net: torch.nn.Module, examples: Sequence[torch.Tensor], dynamic_batch: bool, shapes: Shapes
) -> Asked:
    """The examples and the axes that stay open.

    Args:
        net: whose ``forward`` takes the examples.
        examples: one for each input.
        dynamic_batch: whether axis 0 stays open where ``shapes`` does not say.
        shapes: by the argument's name (`nybble.frontend.open_sizes`); those of ``*past`` are called
            ``past_0``, ``past_1`` …

    Raises:
        ImportModelError: the shapes do not fit the network or the examples.
    """
    names = _names(net, len(examples))
    given = open_sizes.by_input(shapes, names, "forward takes")
    open_sizes.check_sums(given)
    axes = [
        _axes(name, example, given[name]) if name in given
        else ({0: BATCH} if dynamic_batch and example.ndim else {})
        for name, example in zip(names, examples, strict=True)
    ]  # fmt: skip
    _check_totals(names, examples, axes)
    grown = [_two(e) if a.get(0) == BATCH else e for e, a in zip(examples, axes, strict=True)]
    return Asked(tuple(grown), tuple(axes), _single(net))


def _names(net: torch.nn.Module, count: int) -> list[str]:
    """What the inputs are called."""
    names: list[str] = []
    for name, kind in inspect.signature(net.forward).parameters.items():
        if kind.kind == inspect.Parameter.VAR_POSITIONAL:
            names += [f"{name}_{i}" for i in range(count - len(names))]
        names.append(name)
    names += [f"input_{i}" for i in range(len(names), count)]  # too many; torch says so
    return names[:count]


def _single(net: torch.nn.Module) -> int:
    """How many arguments stand in front of ``*args``."""
    kinds = [p.kind for p in inspect.signature(net.forward).parameters.values()]
    rest = inspect.Parameter.VAR_POSITIONAL
    return kinds.index(rest) if rest in kinds else len(kinds)


def _check_totals(
    names: Sequence[str], examples: Sequence[torch.Tensor], axes: Sequence[Axes]
) -> None:
    """Refuses examples that break the sums that were asked for, or whose names differ in size."""
    sizes: dict[str, int] = {}
    every = [
        (name, extent, open_sizes.addends(asked_))
        for name, example, open_ in zip(names, examples, axes, strict=True)
        for extent, asked_ in ((example.shape[axis], asked_) for axis, asked_ in open_.items())
    ]
    for _, extent, parts in every:
        if len(parts) == 1:
            sizes.setdefault(parts[0], extent)
    for name, extent, parts in every:
        if len(parts) > 1 and sum(sizes[part] for part in parts) != extent:
            raise ImportModelError(
                f"Input '{name}': its example has an extent of {extent} where {' + '.join(parts)} "
                f"is asked for, and the examples have {sizes}."
            )


def _axes(name: str, example: torch.Tensor, shape: Sequence[int | str | None]) -> Axes:
    fits = len(shape) == example.ndim and all(
        not isinstance(size, int) or size == extent
        for size, extent in zip(shape, example.shape, strict=True)
    )
    if not fits:
        raise ImportModelError(
            f"Input '{name}': shapes asks for {tuple(shape)}, its example has the shape "
            f"{tuple(example.shape)}."
        )
    found = {axis: size or BATCH for axis, size in enumerate(shape) if not isinstance(size, int)}
    flat = [axis for axis in found if axis and example.shape[axis] < 2]  # torch takes it for fixed
    if flat:
        raise ImportModelError(
            f"Input '{name}': axes {flat} shall stay open. Pass an example with at least 2 there."
        )
    return found


def _two(example: torch.Tensor) -> torch.Tensor:
    """Torch takes a batch of 1 for a constant."""
    return torch.cat([example, example]) if len(example) == 1 else example


class Sizes:
    """The open sizes of an exported program as TIR variables, by torch's symbols."""

    def __init__(self) -> None:
        self.named: dict[str, Any] = {}  # by name
        self.symbols: dict[Any, Any] = {}  # by torch's symbol

    def open(self, size: torch.SymInt, name: str) -> None:
        """Gives a size its name; one that has a name already keeps it."""
        variable = open_sizes.total(self.named, name)
        self.symbols.setdefault(size.node.expr, variable)

    def extents(self, fake: torch.Tensor) -> list[Any]:
        """The shape of a tensor as Relax takes it.

        Raises:
            Refused: an extent that is computed from open sizes.
        """
        return [self._extent(size) for size in fake.shape]

    def _extent(self, size: Any) -> Any:
        if is_concrete_int(size):
            return int(size)
        addends = size.node.expr.args if _is_sum(size.node.expr) else [size.node.expr]
        if not all(addend in self.symbols for addend in addends):
            raise Refused(f"an extent is {size}")
        return reduce(add, [self.symbols[addend] for addend in addends])


def _is_sum(expr: Any) -> bool:
    """Whether a size is the sum of other open sizes, as a mask's is that of past and new tokens."""
    return bool(expr.is_Add and all(part.is_Symbol for part in expr.args))


def named(program: ExportedProgram, open_axes: Sequence[Axes] | None) -> Sizes:
    """The open sizes of a program's inputs.

    Args:
        program: the exported program.
        open_axes: of each input as asked for, which the program is checked against; None for a
            program that somebody else exported: axis 0 is the batch, others are called ``x_2``.

    Raises:
        ImportModelError: the network fixes or restricts a size that shall stay open.
    """
    sizes, users = Sizes(), set(program.graph_signature.user_inputs)
    inputs = [n for n in program.graph.find_nodes(op="placeholder") if n.name in users]
    inputs = [n for n in inputs if isinstance(n.meta.get("val"), torch.Tensor)]
    for place, node in enumerate(inputs):
        shape = node.meta["val"].shape
        if open_axes is None:
            is_open = {axis for axis, size in enumerate(shape) if not is_concrete_int(size)}
            axes = {axis: f"{node.name}_{axis}" if axis else BATCH for axis in is_open}
        else:
            axes = open_axes[place]
            for axis, name in axes.items():
                _check(program, node, axis, name)
        for axis, name in sorted(axes.items()):
            if _is_sum(shape[axis].node.expr):
                continue
            if not shape[axis].node.expr.is_Symbol:
                raise ImportModelError(
                    f"Input '{node.name}': the network works for multiples only: axis {axis} is "
                    f"{shape[axis]}. Give it a fixed size."
                )
            sizes.open(shape[axis], name)
    return sizes


def _check(program: ExportedProgram, node: Node, axis: int, name: str) -> None:
    """Torch silently fixes a size that the network itself fixes."""
    size, allowed = node.meta["val"].shape[axis], ""
    what = ("a batch of", "batches") if name == BATCH else (f"a {name} of", f"a {name}")
    if is_concrete_int(size):
        allowed = f"{what[0]} {size}"
    elif len(open_sizes.addends(name)) == 1 and size.node.expr in program.range_constraints:
        bounds = program.range_constraints[size.node.expr]
        # 2 is where torch's ranges begin anyway; the network itself asks for less or more
        if bounds.upper.is_Integer or bounds.lower > 2:
            allowed = f"{what[1]} from {bounds.lower} to {bounds.upper}"
    if allowed:
        advice = (
            "without fixed batch sizes, or pass dynamic_batch=False and an example of the batch "
            "size that you want." if name == BATCH
            else "for any size, or give that axis a number in shapes."
        )  # fmt: skip
        raise ImportModelError(
            f"Input '{node.name}': the network works for {allowed} only. Write it {advice}"
        )
