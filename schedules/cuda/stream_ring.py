"""Weights on their way from memory to a lane's registers, some records ahead.

A lane reads nothing but what it has asked for itself, so there is no barrier.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from tvm.tirx.script.builder import ir as T

WARP = 32


@dataclass(frozen=True)
class Source:
    """Packed weights: [records][vectors][32 lanes][vector].

    Attributes:
        packed: the flat buffer.
        words: of a lane in a record.
        vector: that it loads at once: 4, 2 or 1.
    """

    packed: Any
    words: int
    vector: int


class Words:
    """A buffer from a word on."""

    def __init__(self, buffer: Any, first: Any):
        self.buffer, self.first = buffer, first

    def load(self, at: Any, lanes: int) -> Any:
        """``lanes`` words."""
        return self.buffer.vload([at + self.first], f"uint32x{lanes}" if lanes > 1 else "uint32")

    def store(self, at: Any, value: Any, lanes: int) -> None:
        """Stores ``lanes`` words."""
        at = at + self.first
        T.buffer_store(self.buffer, value, [T.ramp(at, 1, lanes) if lanes > 1 else at])


class Ring(Protocol):
    """Where records come from."""

    registers: Any
    """The words of the record that was taken last."""

    def start(self) -> None:
        """Emits the first copies."""

    def take(self, step: Any) -> None:
        """Emits the move of a record to the registers, and the copy of a later one."""

    def finish(self) -> None:
        """Emits the wait for copies that nobody takes."""


def ring_of(
    source: Source, stages: int, at: tuple[Any, Any, Any], address: Callable[[Any], Any]
) -> Ring:
    """Records in flight: ``stages`` in shared memory, or one in registers.

    Args:
        source: the weights.
        stages: 1 for registers.
        at: shared memory, which begins with the rings of all warps; the warp; the lane.
        address: of a lane's first word of a step's record.
    """
    if stages > 1:
        return _Asynchronous(source, stages, at, address)
    return _Registers(source, address)


class _Registers:
    """Weights of the next record on their way to registers: without asynchronous copies."""

    def __init__(self, source: Source, address: Callable[[Any], Any]):
        self.source, self.address = source, address
        self.registers = T.alloc_buffer((source.words,), "uint32", scope="local")
        self._ahead = T.alloc_buffer((source.words,), "uint32", scope="local")

    def start(self) -> None:
        """Emits the load of the first record."""
        self._load(0)

    def take(self, step: Any) -> None:
        """Emits the move of a record to the registers, and the load of the next."""
        for word in range(self.source.words):
            T.buffer_store(self.registers, self._ahead[word], [word])
        self._load(step + 1)

    def finish(self) -> None:
        """Nothing is on its way to memory."""

    def _load(self, step: Any) -> None:
        first, vector = T.Bind(self.address(step)), self.source.vector
        for word in range(0, self.source.words, vector):
            _copy(self._ahead, word, self.source.packed, first + word * WARP, vector)


class _Asynchronous:
    """Copies to shared memory that only the lane that asked for them reads."""

    def __init__(
        self, source: Source, stages: int, at: tuple[Any, Any, Any], address: Callable[[Any], Any]
    ):
        self.source, self.stages, self.address = source, stages, address
        self.shared, warp, lane = at
        self.registers = T.alloc_buffer((source.words,), "uint32", scope="local")
        self._size = source.words * WARP
        self._mine = T.Bind(warp * (stages * self._size) + lane * source.vector)

    def start(self) -> None:
        """Emits the first copies."""
        for step in range(self.stages - 1):
            self._copy(step)

    def take(self, step: Any) -> None:
        """Emits the wait for a record, its load, and the copy into the slot that was read last."""
        stages, vector = self.stages, self.source.vector
        T.evaluate(T.ptx["cp.async.wait_group"](stages - 2))
        slot = T.Bind(self._mine + step % stages * self._size)
        for word in range(0, self.source.words, vector):
            _copy(self.registers, word, self.shared, slot + word * WARP, vector)
        self._copy(step + (stages - 1))

    def finish(self) -> None:
        """Emits the wait for all copies."""
        T.evaluate(T.ptx["cp.async.wait_group"](0))

    def _copy(self, step: Any) -> None:
        vector = self.source.vector
        first = T.Bind(self.address(step))
        slot = T.Bind(self._mine + step % self.stages * self._size)
        kind = "cg" if vector == 4 else "ca"
        copy = T.ptx[f"cp.async.{kind}.shared.global"]
        for word in range(0, self.source.words, vector):
            to = T.address_of(self.shared[slot + word * WARP])
            source = T.address_of(self.source.packed[first + word * WARP])
            T.evaluate(copy(to, source, 4 * vector))
        T.evaluate(T.ptx["cp.async.commit_group"]())


def _copy(to: Any, at: int, source: Any, index: Any, lanes: int) -> None:
    if lanes == 1:
        T.buffer_store(to, source[index], [at])
        return
    T.buffer_store(to, source.vload([index], f"uint32x{lanes}"), [T.ramp(at, 1, lanes)])
