"""Integer or float module in, scheduled module out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import tvm
import tvm_ffi
from tvm import relax

from nybble.errors import ScheduleError
from nybble.ir import graph
from nybble.schedules import forms, match, replay
from nybble.schedules.cpu import float_ops, loops
from nybble.schedules.cuda import float_ops as cuda_float_ops
from nybble.schedules.cuda.arch import CudaTarget
from nybble.schedules.forms import Step
from nybble.schedules.group import Group, is_reshape
from nybble.schedules.kernel import Form, Kernel, Problem, usual
from nybble.schedules.select import Choice, Planner, Timed, choose
from nybble.schedules.target import Target

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Layer:
    """One kernel call of the scheduled module.

    Attributes:
        name: the anchor's binding in the lowered module.
        op: the anchor's op and what is fused behind it: ``conv2d+requantize``.
        output: the binding whose value the kernel writes.
        form: how it lies in memory (`nybble.schedules.kernel.Form`).
        dtype: its type, which is its width.
        symbol: the function's name, as the Relax VM's instrument sees it.
        kernel: the kernel family's name.
        weights: the weights' dtype, None without weights.
        stored: the dtype that the kernel stores them in, at least as wide.
        size: bytes of the packed constants.
        activations: the first input's dtype.
        macs: multiply-adds for one image.
        refusals: why preferred kernels were passed over.
        timed: the candidates' times, where they were measured.
        match: where the decisions of the kernel's knobs are from.
    """

    name: str
    op: str
    output: str
    form: Form
    dtype: str
    symbol: str
    kernel: str
    weights: str | None
    stored: str | None
    size: int
    activations: str
    macs: int
    refusals: tuple[str, ...] = ()
    timed: tuple[Timed, ...] = ()
    match: replay.Match = replay.DEFAULT


@dataclass(frozen=True)
class Scheduled:
    """A module of stage ``scheduled`` and its layers in call order."""

    module: tvm.IRModule
    layers: tuple[Layer, ...]


def lower(
    mod: tvm.IRModule,
    target: Target,
    plan: Planner | None = None,
    progress: Progress | None = None,
) -> Scheduled:
    """Chooses and builds a kernel for every layer.

    Args:
        mod: stage ``integer``, or a canonical float module.
        target: the CPU.
        plan: how to choose; by the table's order when omitted.
        progress: called with (layers done, layers in all).

    Raises:
        ScheduleError: no kernel compiles a layer, or the plan's pattern excludes them all.
    """
    plan = plan or Planner()
    lowering = _Lowering(mod, target, plan.replay)
    for step, choice in plan_steps(mod, target, plan, progress):
        lowering.add(step, choice)
    return lowering.finish()


def plan_steps(
    mod: tvm.IRModule, target: Target, plan: Planner, progress: Progress | None = None
) -> list[tuple[Step, Choice | None]]:
    """Every layer with its kernel and the forms of its tensors, and why it was chosen.

    Arguments and errors as of `lower`.
    """
    found = match.groups(mod, target)
    steps, choices = list[Step](), list[Choice | None]()
    for done, group in enumerate(found, 1):
        problem = group.problem
        choice = choose(problem, group.constants, target, plan) if problem else None
        taken = choice.candidate if choice else None
        steps.append(Step(group, taken.kernel, taken.problem) if taken else Step(group))
        choices.append(choice)
        if progress is not None:
            progress(done, len(found))
    forms.agree(steps, set(graph.outputs(mod)), target)
    return list(zip(steps, choices, strict=True))


class _Lowering:
    """The module under construction."""

    def __init__(self, mod: tvm.IRModule, target: Target, known: replay.Replay | None):
        self.mod, self.target, self.known = mod, target, known
        self.stock = cuda_float_ops if isinstance(target, CudaTarget) else float_ops
        self.emitter = graph.Emitter(graph.inputs(mod))
        self.replace: dict[Any, Any] = {}
        self.layers: list[Layer] = []
        self.functions: dict[Any, Any] = {}
        self.built: dict[Any, Any] = {}

    def add(self, step: Step, choice: Choice | None) -> None:
        """Emits one layer (or nothing, or a free reshape)."""
        group = step.group
        value, name = group.bindings[0].value, str(group.output.name)
        if choice is not None:
            self._add_kernel(step, choice)
        elif isinstance(value, relax.Var):
            self.replace[group.output] = self.replace.get(value, value)
        elif is_reshape(value):
            source = graph.substitute(value.args[0], self.replace)
            reshaped = relax.op.reshape(source, group.output.ty.shape)
            self.replace[group.output] = self.emitter.emit(reshaped, name)
        else:
            self._add_stock(group)

    def _add_kernel(self, step: Step, choice: Choice) -> None:
        group, taken, problem = step.group, choice.candidate, step.problem
        assert problem is not None
        assert group.problem is not None
        asked = replay.asked(problem, group.problem)
        key = (taken.kernel.name, problem, asked.weights)
        if key not in self.built:
            self.built[key] = self._built(taken.kernel, problem, asked)
        symbol, found = self.built[key]
        same = problem == taken.problem  # else the storage of an activation has changed
        packed = taken.packed if same else taken.kernel.constants(problem, group.constants)
        args = [graph.substitute(a, self.replace) for a in group.activations]
        self._call(group, symbol, [*args, *map(graph.constant, packed)], problem)
        layer = self._layer(group, symbol, taken.kernel.name, choice, problem)
        self.layers.append(replace(layer, match=found))

    def _built(self, kernel: Kernel, problem: Problem, asked: Problem) -> tuple[Any, replay.Match]:
        """The function with the best decisions that can be built, and where they are from."""
        if self.known is not None:
            for found in self.known.matches(kernel, problem, asked):
                if found.kind == "default":
                    break
                try:
                    made = kernel.build(problem, self.target, found.knobs(self.known.threads))
                except ScheduleError:
                    if found.record is not None and found.kind == "exact":
                        self.known.refuse(found.record)
                else:
                    return self._define(made, problem.op), found
        threads = self.known.threads if self.known is not None else None
        made = kernel.build(problem, self.target, usual(threads))
        return self._define(made, problem.op), replay.DEFAULT

    def _add_stock(self, group: Group) -> None:
        call = graph.substitute(group.bindings[0].value, self.replace)
        func, args = self.stock.legalized(call, str(group.output.name))
        key = _structure(func)
        if key not in self.built:
            self.built[key] = self._define(func, graph.op_name(call))
        self._call(group, self.built[key], args)
        self.layers.append(self._layer(group, self.built[key], self.stock.NAME))

    def _define(self, func: Any, op: str) -> Any:
        symbol = f"{op.rpartition('.')[2]}_{len(self.functions)}"
        named = func.with_attr("global_symbol", symbol)
        variable = relax.BlockBuilder().add_func(named, symbol)  # gives the variable its type
        self.functions[variable] = named
        return variable

    def _call(
        self, group: Group, symbol: Any, args: list[Any], problem: Problem | None = None
    ) -> None:
        kind = relax.TensorType(group.output.ty.shape, loops.stored(graph.dtype_of(group.output)))
        if problem is not None and problem.output.form != "values":
            stored = problem.output.stored
            extents = [*group.output.ty.shape.values[:-1], int(stored.shape[-1])]
            kind = relax.TensorType(extents, stored.dtype)
        call = relax.call_tir(symbol, args, out_ty=kind)
        self.replace[group.output] = self.emitter.emit(call, str(group.output.name))

    def _layer(
        self,
        group: Group,
        symbol: Any,
        kernel: str,
        choice: Choice | None = None,
        problem: Problem | None = None,
    ) -> Layer:
        asked, call = group.problem, group.bindings[0].value
        first = next(iter(graph.operands(call)), group.output)  # a range reads no tensor
        names = [graph.op_name(b.value).rpartition(".")[2] for b in group.bindings]
        return Layer(
            name=str(group.bindings[0].var.name),
            op="+".join(names),
            output=str(group.output.name),
            form=problem.output.form if problem else "values",
            dtype=graph.dtype_of(group.output),
            symbol=str(symbol.name_hint),
            kernel=kernel,
            weights=asked.weights.dtype if asked and asked.weights else None,
            stored=choice.candidate.weights if choice else None,
            size=choice.candidate.size if choice else 0,
            activations=graph.dtype_of(first),
            macs=asked.macs if asked else 0,
            refusals=choice.refusals if choice else (),
            timed=choice.timed if choice else (),
        )

    def finish(self) -> Scheduled:
        """The module with its functions."""
        results = [self.replace.get(v, v) for v in graph.outputs(self.mod)]
        attrs: Mapping[str, Any] = dict(self.mod["main"].attrs)
        keep = {k: v for k, v in attrs.items() if k not in (graph.OUTPUT_NAMES, graph.STAGE)}
        names = graph.output_names(self.mod)
        module = self.emitter.finish(results, names, "scheduled", keep)
        for variable, func in self.functions.items():
            module[variable] = func
        return Scheduled(module, tuple(self.layers))


def _structure(func: Any) -> Any:
    """A dictionary key that is equal for functions of the same structure."""
    make: Any = tvm_ffi.StructuralKey  # its stub asks for a hash that it computes itself
    return make(func)
