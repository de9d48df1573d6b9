"""TensorIR statements as steps.

A step is a function, or a generator where it may have to wait for another strand; then whatever
holds it is a generator, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from nybble.simt.codes import Buffer, Code, Kind, Scope, np_dtype, once, within
from nybble.simt.errors import SimtError
from nybble.simt.expressions import element, local_place
from nybble.simt.memory import Global, Pointer
from nybble.simt.registers import Local
from nybble.simt.shared import Room
from nybble.simt.strand import Strand
from nybble.simt.values import Mask, Value


@dataclass(frozen=True)
class Step:
    """A statement: ``run`` executes it in the active lanes."""

    run: Callable[[Strand, Mask], Any]
    waits: bool = False

    def go(self, s: Strand, m: Mask) -> Iterator[None]:
        """Executes the statement, whether it waits or not."""
        if self.waits:
            yield from self.run(s, m)
        else:
            self.run(s, m)


def statement(scope: Scope, node: Any) -> Step:
    """The step for a statement of any kind."""
    translate = _NODES.get(type(node).__name__)
    if translate is None:
        raise scope.refuse(f"the statement {type(node).__name__}")
    return translate(scope, node)


def _sequence(scope: Scope, node: Any) -> Step:
    steps = [statement(scope, one) for one in node.seq]

    def run(s: Strand, m: Mask) -> None:
        for step in steps:
            step.run(s, m)

    def wait(s: Strand, m: Mask) -> Iterator[None]:
        for step in steps:
            yield from step.go(s, m)

    waits = any(step.waits for step in steps)
    return Step(wait if waits else run, waits)


def _bind(scope: Scope, node: Any) -> Step:
    value = scope.expression(node.value)
    if value.kind == Kind.LAUNCH:
        value = once(scope, value)
    slot = scope.define(node.var, value.kind)

    def run(s: Strand, m: Mask) -> None:
        if slot in scope.read:  # as in a compiler: what nobody reads is not computed
            s.env[slot] = value.run(s, m)

    return Step(run)


def _declare(scope: Scope, node: Any) -> Step:
    data = scope.expression(node.data)
    slot = scope.define(node.buffer, Kind.VARYING)

    def run(s: Strand, m: Mask) -> None:
        s.env[slot] = data.run(s, m)

    return Step(run)


def _allocate(scope: Scope, node: Any) -> Step:
    buffer = scope.buffer(node.buffer)
    shape = [scope.expression(extent) for extent in node.buffer.ty.shape]
    if buffer.scope == "global" and scope.launcher is not None:
        return _allocate_workspace(scope, buffer, shape)
    if any(extent.kind != Kind.CONSTANT for extent in shape):
        raise scope.refuse(f"buffer {buffer.name} of unknown size")
    count = int(np.prod([int(extent.value) for extent in shape]))
    if buffer.scope == "local":

        def run(s: Strand, m: Mask) -> None:
            s.env[buffer.slot] = Pointer(Local(buffer.name, s, buffer.dtype, count))

        return Step(run)
    if not buffer.scope.startswith("shared"):
        raise scope.refuse(f"memory of scope {buffer.scope} ({buffer.name})")
    return _allocate_shared(scope, buffer.slot, buffer.scope, count * buffer.dtype.itemsize)


def _allocate_workspace(scope: Scope, buffer: Buffer, shape: list[Code]) -> Step:
    """Memory by which one kernel of the host's function hands results to the next."""
    name = buffer.name or "workspace"

    def run(s: Strand, m: Mask) -> None:
        count = int(np.prod([int(extent.run(s, m)) for extent in shape]))
        memory = Global(name, np.zeros(count, buffer.dtype), output=True)
        scope.workspaces.append(memory)
        s.env[buffer.slot] = Pointer(memory, np.int64(0), name)

    return Step(run)


def _allocate_shared(scope: Scope, slot: int, space: str, size: int) -> Step:
    dynamic = space == "shared.dyn"  # all dynamic allocations of a kernel begin at one place
    start = scope.shared_bytes
    if not dynamic:
        scope.shared_bytes += -(-size // 128) * 128

    def run(s: Strand, m: Mask) -> None:
        shared = s.launch.shared
        if dynamic:
            room = Room(shared, shared.dynamic, shared.limit - shared.dynamic)
        else:
            room = Room(shared, start, size)
        s.env[slot] = Pointer(room)

    return Step(run)


def _store(scope: Scope, node: Any) -> Step:
    buffer = scope.buffer(node.buffer)
    value = scope.expression(node.value).run
    index, count = element(scope, buffer, node.indices)
    dtype, width = buffer.dtype, buffer.dtype.itemsize * count
    if buffer.scope == "local":

        def store(s: Strand, m: Mask) -> None:
            local, where = local_place(s.env[buffer.slot], index(s, m), dtype)
            local.store(s, m, where, value(s, m))

        return Step(store)
    if buffer.scope.startswith("shared"):
        scope.access(width)
    kind = f"st.{buffer.scope.split('.')[0]}.b{8 * width}"

    def run(s: Strand, m: Mask) -> None:
        pointer, where, data = s.env[buffer.slot], index(s, m), s.full(value(s, m))
        s.tally(kind, m)
        offset = pointer.offset + where.astype(np.int64) * dtype.itemsize
        if np.ndim(where) == 2:
            for i in range(where.shape[1]):
                at = offset[:, i] if len(offset) > 1 else offset[0, i]
                _put(s, m, pointer.memory, (buffer.name, at, data[:, i : i + 1]))
        else:
            _put(s, m, pointer.memory, (buffer.name, offset, data.reshape(s.lanes, count)))

    return Step(run)


def _put(s: Strand, m: Mask, memory: Any, place: tuple[str, Value, Value]) -> None:
    name, offset, data = place
    memory.write(s, m, offset, (name, np.ascontiguousarray(data).view(np.uint8)))


def _for(scope: Scope, node: Any) -> Step:
    first, extent = scope.expression(node.min), scope.expression(node.extent)
    step = 1 if node.step is None else int(node.step)
    slot = scope.define(node.loop_var, Kind.VARYING)
    dtype = np_dtype(str(node.loop_var.ty.dtype)).type
    body = statement(scope, node.body)

    def turns(s: Strand, m: Mask) -> Iterator[Mask]:
        start, count = first.run(s, m), extent.run(s, m)
        if np.ndim(start):
            raise scope.refuse("a loop whose first value differs between threads")
        stop = int(start) + int(np.max(s.full(count)[s.chosen(m)], initial=0))
        for i in range(int(start), stop, step):
            inner, some = within(m, count > i - int(start))
            if some:
                s.env[slot] = dtype(i)
                yield inner

    return _repeated(turns, body)


def _repeated(turns: Callable[[Strand, Mask], Iterator[Mask]], body: Step) -> Step:
    """A body for each of its turns, whose masks come one by one."""

    def run(s: Strand, m: Mask) -> None:
        for inner in turns(s, m):
            body.run(s, inner)

    def wait(s: Strand, m: Mask) -> Iterator[None]:
        for inner in turns(s, m):
            yield from body.run(s, inner)

    return Step(wait if body.waits else run, body.waits)


def _while(scope: Scope, node: Any) -> Step:
    condition, body = scope.expression(node.condition), statement(scope, node.body)

    def turns(s: Strand, m: Mask) -> Iterator[Mask]:
        inner, some = within(m, condition.run(s, m))
        while some:
            yield inner
            inner, some = within(inner, condition.run(s, inner))

    return _repeated(turns, body)


def _if(scope: Scope, node: Any) -> Step:
    condition = scope.expression(node.condition)
    yes = statement(scope, node.then_case)
    no = None if node.else_case is None else statement(scope, node.else_case)

    def sides(s: Strand, m: Mask) -> Iterator[tuple[Step, Mask]]:
        test = condition.run(s, m)
        inner, some = within(m, test)
        if some:
            yield yes, inner
        if no is not None:
            inner, some = within(m, np.logical_not(test))
            if some:
                yield no, inner

    def run(s: Strand, m: Mask) -> None:
        for step, inner in sides(s, m):
            step.run(s, inner)

    def wait(s: Strand, m: Mask) -> Iterator[None]:
        for step, inner in sides(s, m):
            yield from step.go(s, inner)

    waits = yes.waits or (no is not None and no.waits)
    return Step(wait if waits else run, waits)


def _evaluate(scope: Scope, node: Any) -> Step:
    code = scope.expression(node.value)
    return Step(code.run, code.waits)


def _attribute(scope: Scope, node: Any) -> Step:
    if node.attr_key == "thread_extent":
        tag = str(node.node.thread_tag)
        slot = scope.define(node.node.var, Kind.LAUNCH)
        body = statement(scope, node.body)

        def enter(s: Strand) -> None:
            if tag not in s.coordinates:
                raise scope.refuse(f"threads bound to {tag}")
            s.env[slot] = s.coordinates[tag]

        def run(s: Strand, m: Mask) -> None:
            enter(s)
            body.run(s, m)

        def wait(s: Strand, m: Mask) -> Iterator[None]:
            enter(s)
            yield from body.run(s, m)

        return Step(wait if body.waits else run, body.waits)
    return statement(scope, node.body)


def _assert(scope: Scope, node: Any) -> Step:
    condition: Code = scope.expression(node.condition)
    text = str(node.condition)

    def run(s: Strand, m: Mask) -> None:
        there, some = within(m, np.logical_not(condition.run(s, m)))
        if some:
            s.fail(SimtError, f"assert {text}", int(s.chosen(there)[0]))

    return Step(run)


_NODES: dict[str, Callable[[Scope, Any], Step]] = {
    "SeqStmt": _sequence,
    "Bind": _bind,
    "DeclBuffer": _declare,
    "AllocBuffer": _allocate,
    "BufferStore": _store,
    "For": _for,
    "While": _while,
    "IfThenElse": _if,
    "Evaluate": _evaluate,
    "AttrStmt": _attribute,
    "AssertStmt": _assert,
}
