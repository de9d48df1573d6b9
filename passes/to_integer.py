"""Replaces the simulation by what it simulates: integer kernels and dyadic requantization."""

from __future__ import annotations

from typing import Any

import tvm

from nybble.ir import graph, specs
from nybble.ir.graph import Emitter
from nybble.passes.base import module_pass
from nybble.passes.drop_identities import drop_unread
from nybble.passes.integer_emitters import Lowering
from nybble.passes.regions import Accumulators, Matcher, Region
from nybble.passes.view import View, with_attribute
from nybble.recipe import Recipe


@module_pass
def lower_to_integers(mod: tvm.IRModule, recipe: Recipe | None) -> tvm.IRModule:
    """Computes in integers between the borders; what cannot be is listed in ``kept_float``.

    before: quantize(relu(add(conv2d(dequantize(x), dequantize(w)), b)))
    --->
    after: nybble.requantize(nybble.conv2d(x, w, b in steps), multiplier, shift, lo=0)
    """
    lowered = graph.rewrite(mod, _Visitor(View(mod), recipe).visit, "integer")
    lowered = drop_unread(lowered)
    kept = [str(line) for line in mod["main"].attrs.get(specs.KEPT_FLOAT, [])]
    known = {line.split(":", 1)[0] for line in kept}
    inside = dict(specs.between_borders(lowered))
    kept += [f"{n}: {op}: matches no integer kernel" for n, op in inside.items() if n not in known]
    if specs.KEPT_FLOAT not in mod["main"].attrs:  # imported: nothing has listed its float ops
        kept += [
            f"{b.var.name}: {graph.op_name(b.value)}: is float in the source model"
            for b in graph.bindings(lowered)
            if specs.is_float_op(b) and not _is_silent(b.value) and str(b.var.name) not in inside
        ]
    return with_attribute(lowered, specs.KEPT_FLOAT, kept)


def _is_silent(call: Any) -> bool:
    op = graph.op_name(call)
    return op in specs.STRUCTURAL or op == "nybble.weight_only"


class _Visitor:
    """What becomes of each binding.

    Attributes:
        regions: quantize binding -> what it ends.
        leaving: float binding -> the accumulators that it equals, which leave as float.
        absorbed: bindings that only regions read; they vanish.
        integers: binding of the old module -> integer variable of the new one.
    """

    def __init__(self, view: View, recipe: Recipe | None):
        self.integers: dict[str, Any] = {}
        self.regions: dict[str, Region] = {}
        self.leaving: dict[str, Accumulators] = {}
        self.absorbed: set[str] = set()
        self.lowering = Lowering(recipe.rounding if recipe else "half_up", self.integers)
        self._plan(view, Matcher(view))

    def _plan(self, view: View, matcher: Matcher) -> None:
        satisfied: set[str] = set()  # bindings that do not need their float operands
        for name in reversed(list(view.calls)):
            readers = view.readers[name]
            if view.op(name) == "nybble.quantize":
                region = matcher.region(name)
                if region is not None:
                    self.regions[name] = region
                    satisfied.add(name)
            elif readers and name not in view.outputs and satisfied.issuperset(readers):
                self.absorbed.add(name)
                satisfied.add(name)
            elif (found := matcher.accumulators(name)) is not None:
                self.leaving[name] = found
                satisfied.add(name)

    def visit(self, emitter: Emitter, name: str, call: Any) -> Any:
        if graph.op_name(call) == "nybble.dequantize" and not graph.is_constant(call.args[0]):
            self.integers[name] = call.args[0]
        if name in self.regions:
            return self.lowering.region(emitter, self.regions[name])
        if name in self.leaving:
            return self.lowering.leave(emitter, self.leaving[name])
        if name in self.absorbed:
            return emitter.params[0]  # stands for a variable that nobody reads any more
        return None
