"""Open sizes of torch networks: what is asked of torch.export, and what it made of it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import tvm
from torch.export import Dim, ExportedProgram
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import is_concrete_int

from nybble.errors import ImportModelError
from nybble.frontend.extents import Refused

BATCH = "batch"
Shapes = Mapping[str, Sequence[int | str | None]]
Axes = dict[int, str]
"""Axes that stay open, each with its name; the same name is the same size."""


@dataclass(frozen=True)
class Asked:
    """What is asked of torch.export.

    Attributes:
        examples: the inputs to trace with.
        open_axes: of each input.
    """

    examples: tuple[torch.Tensor, ...]
    open_axes: tuple[Axes, ...]

    def dynamic_shapes(self) -> tuple[dict[int, Any], ...] | None:
        """As torch.export takes it."""
        if not any(self.open_axes):
            return None
        return tuple(dict.fromkeys(axes, Dim.AUTO) for axes in self.open_axes)


def asked(
    net: torch.nn.Module, examples: Sequence[torch.Tensor], dynamic_batch: bool, shapes: Shapes
) -> Asked:
    """The examples and the axes that stay open.

    Args:
        net: whose ``forward`` takes the examples.
        examples: one for each input.
        dynamic_batch: whether axis 0 stays open where ``shapes`` does not say.
        shapes: by the argument's name: an extent, None for the batch, a name for what stays open.

    Raises:
        ImportModelError: the shapes do not fit the network or the examples.
    """
    names = [*inspect.signature(net.forward).parameters][: len(examples)]
    unknown = shapes.keys() - set(names)
    if unknown:
        raise ImportModelError(f"shapes: no inputs {sorted(unknown)}; forward takes {names}.")
    axes = [
        _axes(name, example, shapes[name]) if name in shapes
        else ({0: BATCH} if dynamic_batch and example.ndim else {})
        for name, example in zip(names, examples, strict=False)
    ]  # fmt: skip
    axes += [{0: BATCH} if dynamic_batch and e.ndim else {} for e in examples[len(names) :]]
    grown = [_two(e) if a.get(0) == BATCH else e for e, a in zip(examples, axes, strict=True)]
    return Asked(tuple(grown), tuple(axes))


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
        variable = self.named.setdefault(name, tvm.tirx.Var(name, "int64"))
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
        if size.node.expr not in self.symbols:
            raise Refused(f"an extent is {size}")
        return self.symbols[size.node.expr]


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
    elif size.node.expr in program.range_constraints:
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
