"""One PTX instruction of a kernel: its operands by name, its modifiers by slot.

TVM's table of PTX (``tvm.backend.cuda.ptx.table``) says for each instruction which arguments of a
call are which operand, and what the modifiers mean; nothing of that is repeated here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from tvm.backend.cuda.ptx import table

from nybble.simt.codes import Buffer, Code, Kind, Run, Scope
from nybble.simt.memory import Pointer
from nybble.simt.shared import Room
from nybble.simt.strand import Strand
from nybble.simt.values import Mask, Value

Array = npt.NDArray[Any]
_TO_SHARED = "tirx.cuda.cvta_generic_to_shared"


class Issue:
    """An instruction, decoded.

    Attributes:
        entry: its name in TVM's table: ``mma_int``.
        text: as in PTX: ``mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32``.
        mods: by slot's name, the modifier; "" where it is left out.
        scope: what is known of the kernel.
    """

    def __init__(self, scope: Scope, node: Any):
        """Takes a call apart whose op is ``tirx.ptx.…``."""
        self.scope = scope
        self.entry = str(node.op.name).removeprefix("tirx.ptx.")
        entry = table.TABLE[self.entry]
        split = len(node.args) - len(entry.slots) - 1
        tokens = [str(arg.value) for arg in node.args[split:-1]]
        flags = str(node.args[-1].value).split(",")
        if any(flag.startswith("s") for flag in flags):
            raise scope.refuse(f"an instruction with discarded results ({self.entry})")
        self.mods: dict[str, str] = table.mods(entry, tokens)
        self.text = ".".join([entry.ptx_name, *(token for token in tokens if token)])
        self.predicate = scope.expression(node.args[split - 1]) if "pred" in flags else None
        self._groups: dict[str, tuple[Buffer, int, int]] = {}
        self._reads: dict[str, Run] = {}
        self._writes: dict[str, tuple[Buffer, Code, int]] = {}
        for slot, first, count in table.operand_layout(entry, self.mods):
            nodes = list(node.args[first : first + count])
            if count and slot.kind == "reg" and slot.rw in ("w", "rw"):
                self._writes[slot.name] = _target(scope, nodes)
            if count > 1 and (row := _consecutive(nodes)) is not None:
                self._groups[slot.name] = (scope.buffer(row[0]), row[1], count)
            if count and slot.rw in ("r", "rw"):
                self._reads[slot.name] = _registers(scope, nodes)

    def has(self, name: str) -> bool:
        """Whether an optional operand is there."""
        return name in self._reads

    def active(self, s: Strand, m: Mask) -> Mask:
        """The lanes whose guard predicate holds; counts the instruction for them."""
        if self.predicate is not None:
            holds = s.full(self.predicate.run(s, m)) != 0
            m = holds if m is None else m & holds
        s.tally(self.text, m)
        return m

    def read(self, name: str, s: Strand, m: Mask) -> Array:
        """An operand: ``(lanes, registers)``."""
        found = self._reads[name](s, m)
        return found if np.ndim(found) == 2 else s.full(found)[:, None]

    def one(self, name: str, s: Strand, m: Mask) -> Array:
        """An operand of one register: ``(lanes,)``."""
        return s.full(self._reads[name](s, m))

    def number(self, name: str, s: Strand) -> int:
        """An immediate."""
        return int(self._reads[name](s, None))

    def write(self, name: str, s: Strand, m: Mask, value: Array) -> None:
        """Writes the registers of a destination from ``(lanes, registers)`` or ``(lanes,)``."""
        buffer, index, count = self._writes[name]
        rows = value if value.ndim == 2 else value[:, None]
        pointer: Pointer = s.env[buffer.slot]
        where = index.run(s, m)
        data = np.ascontiguousarray(rows)
        if data.dtype != buffer.dtype:
            data = (
                data.view(buffer.dtype)
                if data.itemsize == buffer.dtype.itemsize
                else data.astype(buffer.dtype)
            )
        pointer.memory.store(s, m, where, data if count > 1 else data[:, 0])

    def destination(self, name: str, s: Strand, m: Mask) -> tuple[Pointer, Value, int]:
        """Where a destination's registers are: the array, the first element(s), how many."""
        buffer, index, count = self._writes[name]
        return s.env[buffer.slot], index.run(s, m), count

    def source(self, name: str, s: Strand) -> tuple[Any, int, int]:
        """Where an operand's registers are, if side by side: the array, the first, how many."""
        if name not in self._groups:
            raise self.scope.refuse(f"{self.text} with registers that are not side by side")
        buffer, first, count = self._groups[name]
        return s.env[buffer.slot].memory, first, count

    def address(self, name: str, s: Strand, m: Mask) -> Pointer:
        """A memory operand; an integer is an address in the window of shared memory."""
        found = self._reads[name](s, m)
        if isinstance(found, Pointer):
            return found
        window = Room(s.launch.shared, 0, s.launch.shared.limit)
        return Pointer(window, np.asarray(found).astype(np.int64)[()], "shared memory")


def _consecutive(nodes: list[Any]) -> tuple[Any, int] | None:
    """Buffer and first index, where registers are elements of one local buffer in a row."""
    if any(type(node).__name__ != "TensorLoad" for node in nodes):
        return None
    source = nodes[0].source
    if str(source.ty.storage_scope) != "local":
        return None
    indices = [node.indices[0] for node in nodes]
    if any(type(index).__name__ != "IntImm" for index in indices):
        return None
    first = int(indices[0])
    in_row = all(int(index) == first + i for i, index in enumerate(indices))
    same = all(node.source.same_as(source) for node in nodes)
    return (source, first) if in_row and same else None


def _registers(scope: Scope, nodes: list[Any]) -> Run:
    run = _consecutive(nodes) if len(nodes) > 1 else None
    if run is not None:
        buffer = scope.buffer(run[0])
        index = np.arange(run[1], run[1] + len(nodes))[None, :]

        def together(s: Strand, m: Mask) -> Value:
            pointer: Pointer = s.env[buffer.slot]
            if np.ndim(pointer.offset) or pointer.offset:
                raise scope.refuse("registers in a view with an offset")
            return pointer.memory.load(s, m, index, buffer.dtype)

        return together
    parts = [_operand(scope, node) for node in nodes]
    if len(parts) == 1:
        return parts[0]
    return lambda s, m: np.stack([s.full(part(s, m)) for part in parts], axis=1)


def _operand(scope: Scope, node: Any) -> Run:
    if type(node).__name__ == "Call" and str(node.op.name) == "tirx.ptx.addr":
        base, offset = scope.expression(node.args[0]).run, int(node.args[1])

        def run(s: Strand, m: Mask) -> Value:
            found = base(s, m)
            return found.plus(offset) if isinstance(found, Pointer) else found + np.uint32(offset)

        return run
    if type(node).__name__ == "Call" and str(node.op.name) == _TO_SHARED:
        node = node.args[0]  # the pointer still knows its buffer
    return scope.expression(node).run


def _target(scope: Scope, nodes: list[Any]) -> tuple[Buffer, Code, int]:
    buffer = scope.buffer(nodes[0].source)
    if buffer.scope != "local":
        raise scope.refuse(f"a destination in {buffer.scope} memory ({buffer.name})")
    if any(not node.source.same_as(nodes[0].source) for node in nodes):
        raise scope.refuse("a destination of registers from several buffers")
    if len(nodes) == 1:
        return buffer, scope.expression(nodes[0].indices[0]), 1
    indices = [scope.expression(node.indices[0]) for node in nodes]
    if all(index.kind == Kind.CONSTANT for index in indices):
        row = np.array([[int(index.value) for index in indices]])
        return buffer, Code(lambda s, m: row, Kind.CONSTANT, row), len(nodes)

    def run(s: Strand, m: Mask) -> Value:
        found = [np.reshape(index.run(s, m), (-1, 1)) for index in indices]
        rows = max(len(one) for one in found)
        return np.concatenate([np.broadcast_to(one, (rows, 1)) for one in found], axis=1)

    return buffer, Code(run, Kind.VARYING), len(nodes)
