"""Replaces the simulation by what it simulates: integer kernels and dyadic requantization."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import tvm

from nybble.ir import graph, specs
from nybble.ir.graph import Emitter
from nybble.passes.base import module_pass
from nybble.passes.drop_identities import drop_unread
from nybble.passes.fold_stored import fold_stored
from nybble.passes.headroom import with_room
from nybble.passes.integer_emitters import overflow
from nybble.passes.regions import Accumulators, Matcher, Operand, Region, WeightOnly
from nybble.passes.row_emitters import RowLowering
from nybble.passes.row_regions import RowMatcher
from nybble.passes.view import View, with_attribute
from nybble.recipe import Recipe


@module_pass
def lower_to_integers(mod: tvm.IRModule, recipe: Recipe | None) -> tvm.IRModule:
    """Computes in integers between the borders; what cannot be is listed in ``kept_float``.

    before: quantize(relu(add(conv2d(dequantize(x), dequantize(w)), b)))
    --->
    after: nybble.requantize(nybble.conv2d(x, w, b in steps), multiplier, shift, lo=0)
    """
    visitor = Visitor(mod, recipe)
    lowered = drop_unread(fold_stored(graph.rewrite(mod, visitor.visit, "integer")))
    kept = [str(line) for line in mod["main"].attrs.get(specs.KEPT_FLOAT, [])]
    known = {line.split(":", 1)[0] for line in kept}
    inside = dict(specs.between_borders(lowered))
    kept += [
        f"{name}: {op}: {visitor.why(name)}" for name, op in inside.items() if name not in known
    ]
    if visitor.is_imported:  # nothing has listed its float ops
        kept += [
            f"{b.var.name}: {graph.op_name(b.value)}: is float in the source model"
            for b in graph.bindings(lowered)
            if specs.is_float_op(b) and not _is_silent(b.value) and str(b.var.name) not in inside
        ]
    return with_attribute(lowered, specs.KEPT_FLOAT, kept)


def _is_silent(call: Any) -> bool:
    op = graph.op_name(call)
    return op in specs.STRUCTURAL or op == "nybble.weight_only"


class Visitor:
    """What becomes of each binding.

    Attributes:
        is_imported: whether the module came quantized, so that no plan has listed what is float.
        reasons: why a layer that could be integers stays float.
        regions: quantize binding -> what it ends.
        leaving: float binding -> the accumulators that it equals, which leave as float.
        weight_only: binding -> the matmul of floats with stored integers that it equals.
        absorbed: bindings that only regions read; they vanish.
        equals: quantize binding -> the binding of the new module with its integers.
        floats: matmul of the old module -> its float operand in the new one.
        integers: binding of the old module -> integer variable of the new one.
    """

    def __init__(self, mod: tvm.IRModule, recipe: Recipe | None):
        self.is_imported = specs.KEPT_FLOAT not in mod["main"].attrs
        self.reasons: dict[str, str] = {}
        self.weight_only: dict[str, WeightOnly] = {}
        self.equals: dict[str, str] = {}
        self.floats: dict[str, Any] = {}
        self.integers: dict[str, Any] = {}
        self.regions: dict[str, Region] = {}
        self.leaving: dict[str, Accumulators] = {}
        self.absorbed: set[str] = set()
        self.lowering = RowLowering(recipe.rounding if recipe else "half_up", self.integers)
        view = View(mod)
        self._plan(view, RowMatcher(view))

    def _plan(self, view: View, matcher: Matcher) -> None:
        satisfied: set[str] = set()  # bindings that do not need their float operands
        for name in reversed(list(view.calls)):
            readers = view.readers[name]
            if view.op(name) == "nybble.quantize":
                region = matcher.region(name)
                region = self._with_room(region) if region else None
                if region is not None:
                    self.regions[name] = region
                    satisfied.add(name)
            elif self._is_inner(view, name) and satisfied.issuperset(readers):
                self.absorbed.add(name)
                satisfied.add(name)
            elif (found := matcher.accumulators(name)) is not None and self._fits(found):
                self.leaving[name] = found
                satisfied.add(name)
            elif (layer := matcher.weight_only(name)) is not None:
                self.weight_only[name] = layer

    def _is_inner(self, view: View, name: str) -> bool:
        """Whether a binding holds floats that something reads and nobody outside sees.

        Integers that are not computed here, such as an input of them, are what its ``dequantize``
        leaves to the integer kernels.
        """
        is_float = graph.dtype_of(view.variables[name]) == "float32"
        return is_float and bool(view.readers[name]) and name not in view.outputs

    def _with_room(self, region: Region) -> Region | None:
        """The region with accumulators that keep within 32 bits; None where there is no such form.

        Of imported layers; others were chosen so, and lowering says where they are not.
        """
        if not self.is_imported:
            return region
        operands = list[Operand]()
        for operand in region.operands:
            if not isinstance(operand, Accumulators):
                operands.append(operand)
            elif (found := with_room(operand, region.out.scale)) is not None:
                operands.append(found)
            else:
                self._fits(operand)  # says why not
                return None
        return replace(region, operands=tuple(operands))

    def _fits(self, acc: Accumulators) -> bool:
        """Whether the accumulators of an imported layer keep within 32 bits; notes why not."""
        why = overflow(acc) if self.is_imported else None
        if why is not None:
            self.reasons[acc.name] = why
        return why is None

    def why(self, name: str) -> str:
        """Why a binding is float."""
        return self.reasons.get(name.removesuffix(".bias"), "matches no integer kernel")

    def visit(self, emitter: Emitter, name: str, call: Any) -> Any:
        """The expression in a binding's place; None where it stays as it is."""
        if graph.op_name(call) == "nybble.dequantize" and not graph.is_constant(call.args[0]):
            self.integers[name] = call.args[0]
        if name in self.regions:
            found = self.lowering.region(emitter, self.regions[name])
            self.equals[name] = str(found.name)
            return found
        if name in self.leaving:
            return self.lowering.leave(emitter, self.leaving[name])
        if name in self.weight_only:
            layer = self.weight_only[name]
            x = self.floats.setdefault(layer.name, call.args[0])  # the matmul comes before its bias
            return self.lowering.weight_only(layer, x)
        if name in self.absorbed:
            return emitter.params[0]  # stands for a variable that nobody reads any more
        return None
