"""Valid ONNX models, changed at random: bytes, shapes, attributes, initializers, opsets, wires."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto

NUMBERS = (0, 1, -1, 2, 3, 7, 8, 31, 255, -128, 65536, 2**31 - 1, -(2**31), 2**62, -(2**63))
FLOATS = (0.0, 1.0, -1.0, 1e-30, 1e30, 3.4e38, float("inf"), float("-inf"), float("nan"))
TEXTS = ("", "x", "SAME_UPPER", "VALID", "reverse", "tanh", "linear", "nij,njk->nik", "ñ", "\0")
OPSETS = (0, *range(6, 26), 28, 99, -1, 2**40)
DTYPES = tuple(TensorProto.DataType.values())

Graph = Any
Mutation = Callable[[onnx.ModelProto, Random], None]


def mutant(seeds: Sequence[bytes], rng: Random) -> bytes:
    """One of the seeds with one to three changes of one kind or of several."""
    data = rng.choice(seeds)
    parsed = onnx.load_model_from_string(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        rng.choice(MUTATIONS)(parsed, rng)
    if rng.random() < 0.9:
        return bytes(parsed.SerializeToString(deterministic=True))
    return rng.choice((damaged, cut))(data, rng)


def damaged(data: bytes, rng: Random) -> bytes:
    """Some bytes overwritten, removed or put in."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        place = rng.randrange(len(changed))
        kind = rng.randrange(4)
        if kind == 0:
            changed[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[place] = rng.randrange(256)
        elif kind == 2 and len(changed) > 64:
            del changed[place : place + rng.choice((1, 2, 16))]
        else:
            changed[place:place] = rng.randbytes(rng.choice((1, 2, 16)))
    return bytes(changed)


def cut(data: bytes, rng: Random) -> bytes:
    """The beginning."""
    return data[: rng.randrange(len(data))]


# ---------------------------------------------------------------- parts of a model


def _number(rng: Random) -> int:
    return rng.choice(NUMBERS) if rng.random() < 0.6 else rng.randrange(-4, 12)


def _graphs(model: onnx.ModelProto) -> list[Graph]:
    """The graph and those inside of its nodes."""
    found, todo = list[Graph](), [model.graph]
    while todo:
        graph = todo.pop()
        found.append(graph)
        todo += [a.g for n in graph.node for a in n.attribute if a.HasField("g")]
    return found


def _node(model: onnx.ModelProto, rng: Random) -> Any:
    nodes = [n for graph in _graphs(model) for n in graph.node]
    nodes += [n for function in model.functions for n in function.node]
    return rng.choice(nodes) if nodes else onnx.NodeProto()


def _tensor(model: onnx.ModelProto, rng: Random) -> Any:
    tensors = [t for graph in _graphs(model) for t in graph.initializer]
    tensors += [
        a.t for graph in _graphs(model) for n in graph.node for a in n.attribute if a.HasField("t")
    ]
    return rng.choice(tensors) if tensors else TensorProto()


def _names(model: onnx.ModelProto) -> list[str]:
    graph = model.graph
    return ["", "none", *(t.name for t in (*graph.initializer, *graph.input)),
            *(name for n in graph.node for name in n.output)]  # fmt: skip


# ---------------------------------------------------------------- mutations


def shapes(model: onnx.ModelProto, rng: Random) -> None:
    """An extent, the rank or the type of an input, an output or an inner tensor."""
    graph = model.graph
    infos = [*graph.input, *graph.output, *graph.value_info]
    kind = rng.choice(infos).type.tensor_type if infos else onnx.TypeProto().tensor_type
    choice, sizes = rng.randrange(8), kind.shape.dim
    if choice == 0:
        kind.elem_type = rng.choice(DTYPES)
    elif choice == 1:
        kind.ClearField("shape")
    elif choice == 2:
        sizes.add().dim_value = _number(rng)
    elif choice == 3 and sizes:
        del sizes[rng.randrange(len(sizes))]
    elif choice == 4 and sizes:
        rng.choice(sizes).dim_param = rng.choice(TEXTS)
    elif sizes:
        rng.choice(sizes).dim_value = _number(rng)


def attributes(model: onnx.ModelProto, rng: Random) -> None:
    """A value, the type or the presence of an attribute."""
    attrs = _node(model, rng).attribute
    if not attrs or rng.random() < 0.1:
        added = attrs.add()
        added.name, added.type = rng.choice(("axis", "axes", "alpha", "to", "mode", "group")), 2
        added.i = _number(rng)
        return
    attr, choice = rng.choice(attrs), rng.randrange(8)
    if choice == 0:
        attrs.remove(attr)
    elif choice == 1:
        attr.type = rng.choice(onnx.AttributeProto.AttributeType.values())
    elif choice == 2 and attr.ints:
        del attr.ints[rng.randrange(len(attr.ints))]
    elif choice == 3:
        attr.ints.append(_number(rng))
    else:
        _change_value(attr, rng)


def _change_value(attr: Any, rng: Random) -> None:
    if attr.ints:
        attr.ints[rng.randrange(len(attr.ints))] = _number(rng)
    elif attr.floats:
        attr.floats[rng.randrange(len(attr.floats))] = rng.choice(FLOATS)
    elif attr.HasField("f"):
        attr.f = rng.choice(FLOATS)
    elif attr.HasField("s"):
        attr.s = rng.choice((*(t.encode() for t in TEXTS), b"\xff\xfe"))
    else:
        attr.i = _number(rng)


def initializers(model: onnx.ModelProto, rng: Random) -> None:
    """The type, an extent, the values or the place of a constant."""
    tensor, choice = _tensor(model, rng), rng.randrange(12)
    if choice == 0:
        tensor.data_type = rng.choice(DTYPES)
    elif choice == 1 and tensor.dims:
        tensor.dims[rng.randrange(len(tensor.dims))] = _number(rng)
    elif choice == 2 and tensor.dims:
        del tensor.dims[rng.randrange(len(tensor.dims))]
    elif choice == 3:
        tensor.raw_data = cut(tensor.raw_data or b"12345678", rng)
    elif choice == 4:
        tensor.data_location = TensorProto.EXTERNAL
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", rng.choice(("gone", "../gone", "/etc/passwd", "", "."))
    elif choice == 5:
        tensor.ClearField("raw_data")
        tensor.float_data.extend(rng.choice(FLOATS) for _ in range(rng.randrange(9)))
    elif tensor.raw_data:
        tensor.raw_data = _same_length(tensor.raw_data, rng)


def _same_length(data: bytes, rng: Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 4, 64))):
        changed[rng.randrange(len(changed))] = rng.choice((0, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    return bytes(changed)


def opsets(model: onnx.ModelProto, rng: Random) -> None:
    """The version of an operator set, or the format's."""
    choice = rng.randrange(4)
    if choice == 0:
        model.ir_version = _number(rng)
    elif choice == 1 or not model.opset_import:
        added = model.opset_import.add()
        added.domain = rng.choice(("", "ai.onnx", "ai.onnx.ml", "com.microsoft", "none"))
        added.version = rng.choice(OPSETS)
    elif choice == 2:
        del model.opset_import[rng.randrange(len(model.opset_import))]
    else:
        rng.choice(model.opset_import).version = rng.choice(OPSETS)


def wires(model: onnx.ModelProto, rng: Random) -> None:
    """What a node reads or writes, or what the graph gives: names that exist, or none."""
    node, name, choice = _node(model, rng), rng.choice(_names(model)), rng.randrange(7)
    if choice == 0 and node.input:
        del node.input[rng.randrange(len(node.input))]
    elif choice == 1:
        node.input.append(name)
    elif choice == 2 and node.output:
        node.output[rng.randrange(len(node.output))] = name
    elif choice == 3 and model.graph.output:
        rng.choice(model.graph.output).name = name
    elif choice == 4 and model.graph.initializer:
        rng.choice(model.graph.initializer).name = name
    elif node.input:
        node.input[rng.randrange(len(node.input))] = name


def nodes(model: onnx.ModelProto, rng: Random) -> None:
    """A node twice, gone, elsewhere, of another operator, or called otherwise."""
    own, choice = model.graph.node, rng.randrange(6)
    if not own:
        return
    place = rng.randrange(len(own))
    if choice == 0:
        del own[place]
    elif choice == 1:
        own.add().CopyFrom(own[place])
    elif choice == 2:
        shuffled = [*own]
        rng.shuffle(shuffled)
        del own[:]
        own.extend(shuffled)
    elif choice == 3:
        own[place].name = rng.choice((*TEXTS, own[0].name))
    elif choice == 4:
        own[place].domain = rng.choice(("", "com.microsoft", "ai.onnx.ml", "none"))
    else:
        own[place].op_type = rng.choice(OPERATORS)


def inside(model: onnx.ModelProto, rng: Random) -> None:
    """Bytes of the file, where what is left can still be parsed."""
    data = damaged(model.SerializeToString(deterministic=True), rng)
    try:
        model.ParseFromString(data)
    except DecodeError:
        model.producer_name = "damaged beyond parsing"


OPERATORS = tuple(sorted({s.name for s in onnx.defs.get_all_schemas() if not s.domain}))
MUTATIONS: tuple[Mutation, ...] = (
    shapes, attributes, attributes, attributes, initializers, initializers, initializers, opsets,
    wires, wires, nodes, nodes, inside,
)  # fmt: skip
