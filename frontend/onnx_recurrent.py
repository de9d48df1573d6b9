"""LSTM, GRU and RNN, unrolled: the products with the input at once, then step after step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax

from nybble.frontend import extents, general
from nybble.frontend.build import Builder, Value
from nybble.frontend.extents import Refused, Symbolic
from nybble.frontend.onnx_node import Node

Convert = Callable[[Node, Builder], Value]
State = tuple[Value, ...]
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
KNOWN = {"Sigmoid", "Tanh", "Relu", "HardSigmoid", "LeakyRelu", "Softsign", "Softplus", "Elu"}


@dataclass(frozen=True)
class Cell:
    """One direction of a layer.

    Attributes:
        node: the layer.
        build: emits.
        name: of the layer and the direction.
        hidden: size of the state.
        r: (hidden, gates·hidden), the recurrent weights.
        rb: (gates·hidden,), the recurrent bias.
        peepholes: (3·hidden,) of an LSTM, or None.
        functions: the activations.
    """

    node: Node
    build: Builder
    name: str
    hidden: int
    r: Any
    rb: Any
    peepholes: Any
    functions: tuple[str, ...]

    def gate(self, x: Value, index: int, count: int = 1) -> Value:
        """Columns of the index-th gate and its followers."""
        begin, end = index * self.hidden, (index + count) * self.hidden
        return general.cut(self.build, x, {1: (begin, end)}, f"{self.name}.gate{index}")

    def apply(self, index: int, x: Value) -> Value:
        """The activation of a gate, clipped as the node asks."""
        clip = self.node.attr("clip")
        if clip:
            x = self.build.clip(x, -clip, clip, f"{self.name}.clip")
        return self.node.op(self.functions[index], x)

    def recur(self, h: Value) -> Value:
        """H times the recurrent weights, all gates."""
        return self.build.linear(h, self.r, self.rb, f"{self.name}.recurrent")

    def peep(self, c: Value, index: int, x: Value) -> Value:
        """A gate that also sees the cell."""
        if self.peepholes is None:
            return x
        part = self.peepholes[index * self.hidden : (index + 1) * self.hidden]
        return self.node.op("Add.peephole", x, self.node.op("Mul.peephole", c, part))


# ---------------------------------------------------------------- cells


def _lstm(cell: Cell, x: Value, state: State) -> State:
    """Gates in the order input, output, forget, cell."""
    h, c = state
    node = cell.node
    total = node.op("Add.gates", x, cell.recur(h))
    if cell.peepholes is None:
        three = cell.apply(0, cell.gate(total, 0, 3))
        i, o, f = (cell.gate(three, index) for index in range(3))
    else:
        i = cell.apply(0, cell.peep(c, 0, cell.gate(total, 0)))
        f = cell.apply(0, cell.peep(c, 2, cell.gate(total, 2)))
        o = None
    new = cell.apply(1, cell.gate(total, 3))
    c = node.op("Add.cell", node.op("Mul.kept", f, c), node.op("Mul.new", i, new))
    if o is None:
        o = cell.apply(0, cell.peep(c, 1, cell.gate(total, 1)))
    return node.op("Mul.hidden", o, node.op(cell.functions[2], c)), c


def _gru(cell: Cell, x: Value, state: State) -> State:
    """Gates in the order update, reset, hidden."""
    (h,) = state
    node, split = cell.node, 2 * cell.hidden
    if node.attr("linear_before_reset", 0):
        past = cell.recur(h)
        gates = cell.gate(past, 0, 2)
    else:
        past = None
        gates = cell.build.linear(h, cell.r[:, :split], cell.rb[:split], f"{cell.name}.recurrent")
    both = cell.apply(0, node.op("Add.gates", cell.gate(x, 0, 2), gates))
    update, reset = cell.gate(both, 0), cell.gate(both, 1)
    if past is None:
        seen = node.op("Mul.reset", reset, h)
        inner = cell.build.linear(seen, cell.r[:, split:], cell.rb[split:], f"{cell.name}.reset")
    else:
        inner = node.op("Mul.reset", reset, cell.gate(past, 2))
    new = cell.apply(1, node.op("Add.new", cell.gate(x, 2), inner))
    fresh = node.op("Mul.fresh", node.op("Sub.rest", 1.0, update), new)
    return (node.op("Add.hidden", fresh, node.op("Mul.kept", update, h)),)


def _rnn(cell: Cell, x: Value, state: State) -> State:
    return (cell.apply(0, cell.node.op("Add.gates", x, cell.recur(state[0]))),)


CELLS: dict[str, Callable[[Cell, Value, State], State]] = {"LSTM": _lstm, "GRU": _gru, "RNN": _rnn}


# ---------------------------------------------------------------- layers


def _recurrent(node: Node, build: Builder) -> Value:
    """Y (time, directions, batch, hidden), the last hidden state, and an LSTM's last cell."""
    x = node.input(0)
    if node.attr("layout", 0):
        x = build.transpose(x, (1, 0, 2), f"{node.name}.time")
    if isinstance(extents.shape(x)[0], Symbolic):
        raise Refused("runs over an open length; give its input a fixed one with shapes={…}")
    count = extents.shape(node.constant(1))[0]
    found = [_direction(node, build, x, index) for index in range(int(count))]  # type: ignore[arg-type]
    outputs = [np.stack([steps for steps, _ in found], axis=1)]  # (time, directions) of variables
    results: list[Value] = []
    for place, read in enumerate(node.read):
        if not read:
            results.append(None)
        elif place == 0:
            results.append(_all_steps(node, build, outputs[0]))
        else:
            last = [state[place - 1] for _, state in found]
            results.append(_stacked(node, build, last, 0 if not node.attr("layout", 0) else 1))
    return tuple(results)


def _all_steps(node: Node, build: Builder, steps: Any) -> Value:
    """(time, directions) variables of (batch, hidden) as one tensor."""
    rows = [_stacked(node, build, list(row), 0) for row in steps]
    grown = [build.unsqueeze(row, [0], f"{node.name}.step") for row in rows]
    whole = grown[0] if len(grown) == 1 else build.concat(grown, 0, f"{node.name}.steps")
    return build.transpose(whole, (2, 0, 1, 3), node.name) if node.attr("layout", 0) else whole


def _stacked(node: Node, build: Builder, values: list[Value], axis: int) -> Value:
    grown = [build.unsqueeze(v, [axis], f"{node.name}.direction") for v in values]
    return grown[0] if len(grown) == 1 else build.concat(grown, axis, f"{node.name}.directions")


def _direction(node: Node, build: Builder, x: Value, index: int) -> tuple[Any, State]:
    """The hidden states in order of time (an object array), and the last state."""
    kind, direction = node.proto.op_type, node.attr("direction", "forward")
    steps, batch, _ = extents.shape(x)
    backward = direction == "reverse" or index == 1
    cell, projected = _cell(node, build, x, index)
    state = _start(node, build, index, (batch, cell.hidden), 2 if kind == "LSTM" else 1)
    lengths = _lengths(node, steps, batch)
    hidden: list[Any] = [None] * int(steps)  # type: ignore[arg-type]
    for t in range(int(steps))[:: -1 if backward else 1]:  # type: ignore[arg-type]
        row = general.cut(build, projected, {0: (t, t + 1)}, f"{cell.name}.{t}")
        new = CELLS[kind](cell, build.squeeze(row, [0], f"{cell.name}.{t}.row"), state)
        hidden[t] = new[0]
        if lengths is not None and (lengths <= t).any():
            running = (lengths > t).reshape(-1, 1)
            new = tuple(build.where(running, n, s, f"{cell.name}.{t}.running")
                        for n, s in zip(new, state, strict=True))  # fmt: skip
            hidden[t] = build.where(running, new[0], np.float32(0), f"{cell.name}.{t}.shown")
        state = new
    found = np.empty(len(hidden), object)
    found[:] = hidden
    return found, state


def _lengths(node: Node, steps: Any, batch: Any) -> Any:
    """Lengths of the batch's sequences where they differ from the longest, else None."""
    given = node.input(4)
    if given is None:
        return None
    if isinstance(given, relax.Var):
        raise Refused("its sequence_lens are computed by the network; they must be constant")
    lengths = np.asarray(given)
    if (lengths >= steps).all():
        return None
    if isinstance(batch, Symbolic):
        raise Refused("has sequence_lens for an open batch")
    return lengths


def _cell(node: Node, build: Builder, x: Value, index: int) -> tuple[Cell, Value]:
    """The cell, and the input's products with its weights: (time, batch, gates·hidden)."""
    kind, name = node.proto.op_type, f"{node.name}.{index}" if index else node.name
    w, r, b = (node.constant(i) for i in (1, 2, 3))
    if w is None or r is None or node.attr("input_forget", 0):
        raise Refused("needs constant weights, and input_forget=0")
    hidden, gates = int(r.shape[-1]), GATES[kind]
    bias = np.zeros(2 * gates * hidden, np.float32) if b is None else b[index]
    peepholes = node.constant(7)
    asked = node.attr("activations")
    functions = DEFAULTS[kind]
    if asked:
        count = len(functions)
        chosen = asked[index * count : (index + 1) * count]
        functions = tuple(f.decode() if isinstance(f, bytes) else str(f) for f in chosen)
    named = functions
    if set(named) - KNOWN or node.attr("activation_alpha") or node.attr("activation_beta"):
        raise Refused(f"has the activations {named}, or parameters of them")
    projected = build.linear(x, w[index].T, bias[: gates * hidden], f"{name}.input")
    peep = None if peepholes is None else peepholes[index]
    recurrent = np.ascontiguousarray(r[index].T)
    return (
        Cell(node, build, name, hidden, recurrent, bias[gates * hidden :], peep, named), projected
    )  # fmt: skip


def _start(node: Node, build: Builder, index: int, shape: tuple[Any, int], count: int) -> State:
    """The first state: given ones, or zeros."""
    states = []
    for place in range(5, 5 + count):
        given = node.input(place)
        if given is None:
            states.append(general.filled(build, shape, np.float32(0), f"{node.name}.start"))
            continue
        axis = 1 if node.attr("layout", 0) else 0
        states.append(node.op("Gather.start", given, np.array(index), axis=axis))
    return tuple(states)


RECURRENT: dict[str, Convert] = dict.fromkeys(("GRU", "LSTM", "RNN"), _recurrent)
"""Operators by name."""
