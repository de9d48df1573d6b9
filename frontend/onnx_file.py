"""Reading ONNX: the protobuf, its tensors (external data too) and its inputs, with clear errors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tvm
from google.protobuf.message import DecodeError, Message
from numpy.typing import NDArray
from onnx import numpy_helper
from tvm import relax

from nybble.errors import ImportModelError, UnsupportedNode, UnsupportedOpError
from nybble.frontend import open_sizes
from nybble.frontend.build import is_sound, not_finite
from nybble.frontend.onnx_external import MAPPED, mapped

OLDEST_OPSET = 7
DEFAULT_DOMAINS = ("", "ai.onnx")
NO_VERSION = 1 << 31  # ONNX's checker takes numbers below
INPUTS = {
    onnx.TensorProto.FLOAT: "float32",
    **{onnx.TensorProto.DataType.Value(f"{kind}{bits}"): f"{kind.lower()}{max(bits, 8)}"
       for kind in ("INT", "UINT") for bits in (2, 4, 8, 16)},
    **{onnx.TensorProto.DataType.Value(name.upper()): name
       for name in ("bool", "int32", "int64", "uint32", "uint64", "float16")},
    onnx.TensorProto.DOUBLE: "float64",
}  # fmt: skip
"""Types of inputs, and the dtypes in which callers hand them over: below 8 bits one in a byte."""
_EQUATION = re.compile(rb"([A-Za-z, ]|->|[.]{3})*")


@dataclass
class Source:
    """A parsed model and the folder that its external data lies in."""

    model: onnx.ModelProto
    folder: Path | None
    tensors: dict[str, onnx.TensorProto] = field(init=False)

    def __post_init__(self) -> None:
        self.tensors = {tensor.name: tensor for tensor in self.model.graph.initializer}

    @property
    def opset(self) -> int:
        """The version of the default operator set."""
        versions = [o.version for o in self.model.opset_import if o.domain in DEFAULT_DOMAINS]
        return max(versions, default=0)

    def property(self, key: str) -> str:
        """An entry of the model's metadata, "" without it."""
        found = (p.value for p in self.model.metadata_props if p.key == key)
        return next(found, "")


def read(source: str | Path | bytes | onnx.ModelProto) -> Source:
    """Parses a model and checks that it is one.

    Raises:
        ImportModelError: nothing that can be read so, no such file, not ONNX, truncated, no graph,
            an opset before 7 or none.
    """
    if isinstance(source, onnx.ModelProto):
        parsed = Source(source, None)
    elif isinstance(source, bytes):
        parsed = Source(_parse(source, "the given bytes"), None)
    elif isinstance(source, str | Path):
        parsed = Source(_parse(_file(Path(source)), f"'{source}'"), Path(source).parent)
    else:
        raise ImportModelError(
            "load_onnx takes a path, the bytes of a file or an onnx.ModelProto, not "
            f"{type(source).__name__}."
        )
    model = parsed.model
    if not model.HasField("graph") or not (model.graph.node or model.graph.output):
        raise ImportModelError(
            "Model: it holds no graph, so it is no ONNX model (or an empty one)."
        )
    _check_texts(model)
    versions = [model.ir_version, *(o.version for o in model.opset_import)]
    if not all(0 <= version < NO_VERSION for version in versions):
        raise ImportModelError(f"Model: no version of ONNX is among {versions}; it is damaged.")
    if not any(o.domain in DEFAULT_DOMAINS for o in model.opset_import):
        used = ", ".join(sorted(o.domain for o in model.opset_import)) or "none at all"
        raise ImportModelError(
            f"Model: of operator sets it uses {used}, not ONNX's own; training graphs and "
            "functions by themselves are no networks. Export the network for inference."
        )
    if parsed.opset < OLDEST_OPSET:
        raise ImportModelError(
            f"Model: it uses opset {parsed.opset}; the oldest supported one is {OLDEST_OPSET}. "
            "Convert it with onnx.version_converter, or export it again."
        )
    return parsed


def _check_texts(message: Any) -> None:
    """Refuses names that are no UTF-8: protobuf hands them out as bytes."""
    texts: list[Any] = []
    if isinstance(message, onnx.TensorProto):  # listing its fields would copy its values
        texts = [message.name]
    else:
        for field_, value in message.ListFields():
            entries = [value] if isinstance(value, str | bytes | Message) else value
            if field_.type == field_.TYPE_STRING:
                texts += entries
            elif field_.type == field_.TYPE_MESSAGE:
                for entry in entries:
                    _check_texts(entry)
    bad = [text for text in texts if not isinstance(text, str)]
    if bad:
        raise ImportModelError(f"Model: damaged: a name in it is no text, but {bad[0]!r}.")


def _file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImportModelError(f"Model '{path}': cannot be read ({error.strerror}).") from error


def _parse(data: bytes, where: str) -> onnx.ModelProto:
    try:
        return onnx.load_model_from_string(data)
    except DecodeError as error:
        raise ImportModelError(
            f"Model: {where} ({len(data)} bytes) is no ONNX file, or a truncated one. "
            "Check that it was copied completely (and is no Git LFS pointer)."
        ) from error


def array(tensor: onnx.TensorProto, source: Source, name: str) -> NDArray[Any]:
    """The values of a tensor of the model.

    Raises:
        ImportModelError: missing or short external data, an unreadable tensor, NaN or infinity.
    """
    external = tensor.data_location == onnx.TensorProto.EXTERNAL
    if external and source.folder is None:
        raise ImportModelError(
            f"Weight '{name}': its data lies in another file, which bytes or a ModelProto do not "
            "locate. Pass the path of the model instead, or load the external data first."
        )
    try:
        if external and tensor.data_type in MAPPED:
            values = mapped(tensor, Path(source.folder or ""))
        else:
            values = np.asarray(numpy_helper.to_array(tensor, base_dir=str(source.folder or "")))
    except (OSError, ValueError, TypeError, onnx.checker.ValidationError) as error:
        advice = " Keep the data file next to the model." if external else ""
        raise ImportModelError(f"Weight '{name}': cannot be read: {error}.{advice}") from error
    if values.ndim and not is_sound(values):
        raise ImportModelError(not_finite(values, f"weight '{name}'"))
    return values


def inputs(source: Source, shapes: open_sizes.Shapes | None) -> list[relax.Var]:
    """The model's inputs as Relax variables; a dynamic axis 0 is the shared symbolic batch.

    Args:
        source: the model.
        shapes: extents by input name (`nybble.frontend.open_sizes`) where the model leaves them
            open; the same name is the same size wherever it stands.

    Raises:
        ImportModelError: no inputs, not float32, another dynamic axis, or contradicting shapes.
    """
    infos = [info for info in source.model.graph.input if info.name not in source.tensors]
    if not infos:
        raise ImportModelError("Model: it has no inputs, so there is nothing to run or quantize.")
    given = open_sizes.by_input(shapes, [info.name for info in infos], "the model has")
    chosen = {info.name: _sizes(info, given.get(info.name)) for info in infos}
    open_sizes.check_sums(chosen)
    symbols: dict[str, Any] = {}
    return [
        relax.Var(info.name, relax.TensorType(
            open_sizes.expressions(symbols, chosen[info.name]),
            INPUTS[info.type.tensor_type.elem_type],
        ))
        for info in infos
    ]  # fmt: skip


def _sizes(info: onnx.ValueInfoProto, given: open_sizes.Shape | None) -> open_sizes.Shape:
    """The extents of an input, open ones by name; None is the batch."""
    kind = info.type.tensor_type
    if kind.elem_type not in INPUTS:
        known = type_name(kind.elem_type)
        if known.startswith(("FLOAT8", "FLOAT4")):
            raise UnsupportedOpError(
                [UnsupportedNode("Input", info.name, f"its dtype {known} has no integer form")]
            )
        raise ImportModelError(
            f"Input '{info.name}': its dtype is {known}; floats of 16 to 64 bits, integers and "
            "bool are supported. Export the model in float32."
        )
    declared = _declared(info)
    if declared is None and given is None:
        raise ImportModelError(
            f"Input '{info.name}': the model gives no shape. Pass shapes={{'{info.name}': (…)}}."
        )
    sizes = _merged(info.name, declared, given)
    open_axes = [axis for axis, size in enumerate(sizes) if size is None and axis > 0]
    if open_axes:
        raise ImportModelError(
            f"Input '{info.name}': axes {open_axes} are dynamic. Pass shapes={{'{info.name}': (…)}}"
            " with a number for each of them, or a name such as 'height' where it shall stay open."
        )
    if any(isinstance(size, int) and size <= 0 for size in sizes):
        raise ImportModelError(f"Input '{info.name}': an extent of {sizes} is not positive.")
    return sizes


def type_name(code: int) -> str:
    """ONNX's name of an element type, or its number where it has none."""
    known = onnx.TensorProto.DataType
    return str(known.Name(code)) if code in known.values() else f"type {code}"


def _declared(info: onnx.ValueInfoProto) -> list[int | None] | None:
    kind = info.type.tensor_type
    if not kind.HasField("shape"):
        return None
    return [d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim]


def _merged(
    name: str, declared: list[int | None] | None, given: Sequence[int | str | None] | None
) -> list[int | str | None]:
    """The declared shape with open extents filled in from the given one."""
    if given is None or declared is None:
        return list(given if declared is None else declared)  # type: ignore[arg-type]
    fits = len(given) == len(declared) and all(
        d is None or d == g for d, g in zip(declared, given, strict=True)
    )
    if not fits:
        raise ImportModelError(
            f"Input '{name}': shapes asks for {tuple(given)}, but the model declares "
            f"{tuple(declared)} (None is dynamic); only dynamic extents can be chosen."
        )
    return list(given)


def inferred_types(model: onnx.ModelProto, params: Sequence[relax.Var]) -> dict[str, Any]:
    """Types of float tensors as ONNX infers them; only to look behind an unsupported node."""
    leading = [size for p in params for size in list(p.ty.shape.values)[:1]]
    batches = [size for size in leading if not isinstance(size, tvm.tirx.IntImm)]
    if not _terminates(model.graph):
        return {}
    try:
        graph = onnx.shape_inference.infer_shapes(model).graph
    except (onnx.shape_inference.InferenceError, ValueError):
        return {}  # the list of unsupported nodes may then be shorter, never wrong
    types = {}
    for info in [*graph.value_info, *graph.output]:
        sizes = _declared(info)
        if sizes and info.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            if sizes[0] is None and batches:
                sizes[0] = batches[0]
            if None not in sizes:
                types[info.name] = relax.TensorType(sizes, "float32")
    return types


def _terminates(graph: onnx.GraphProto) -> bool:
    """Whether ONNX's inference ends: it waits at what is no part of an Einsum's equation."""
    equations = [a.s for n in graph.node if n.op_type == "Einsum" for a in n.attribute]
    inner = [a.g for n in graph.node for a in n.attribute if a.HasField("g")]
    return all(map(_EQUATION.fullmatch, equations)) and all(map(_terminates, inner))
