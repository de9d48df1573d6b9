"""Layers whose activations a file quantizes at run time, as the float layers they stand for.

    DynamicQuantizeLinear -> MatMulInteger -> Cast -> Mul(scale of x · scale of w)
    --->
    MatMul(x, DequantizeLinear(w))

Nybble quantizes such activations at run time as well, each row by itself
(`nybble.passes.dynamic`), which is at least as fine as one scale for all rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import onnx
from onnx import TensorProto, helper

from nybble.frontend.onnx_file import Source

FUSED = "MatMulIntegerToFloat"  # of com.microsoft
AT_RUN_TIME = ("DynamicQuantizeLinear", "DynamicQuantizeMatMul")
LAYERS = {"MatMulInteger": ("MatMul", 1), "ConvInteger": ("Conv", 0)}
"""Operator -> the float one, and the axis of the weights that scales run along."""


def is_dynamic(source: Source) -> bool:
    """Whether a model quantizes activations at run time."""
    return any(node.op_type in AT_RUN_TIME for node in source.model.graph.node)


def as_float(source: Source) -> Source:
    """The model with float layers where activations are quantized at run time, if any are."""
    graph = source.model.graph
    if not any(node.op_type == "DynamicQuantizeLinear" for node in graph.node):
        return source
    model = onnx.ModelProto()
    model.CopyFrom(source.model)
    links = _Links(model.graph)
    nodes = [made for node in model.graph.node for made in links.rewritten(node)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return replace(source, model=model)


@dataclass(frozen=True)
class _Product:
    """What a node computes: float layer(x, weights · scale)."""

    layer: onnx.NodeProto
    op: str
    axis: int
    x: str
    scale: str


class _Links:
    """Who makes and who reads a tensor."""

    def __init__(self, graph: onnx.GraphProto):
        self.makers: Mapping[str, onnx.NodeProto] = {
            output: node for node in graph.node for output in node.output
        }
        self.constants = {tensor.name for tensor in graph.initializer}
        self.constants |= {
            output for node in graph.node if node.op_type == "Constant" for output in node.output
        }

    def rewritten(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        """The node, or what replaces it; nodes that nobody reads any more may stay."""
        product = self._fused(node) if node.op_type == FUSED else self._product(node)
        if product is None:
            yield node
            return
        layer, fused = product.layer, node.op_type == FUSED
        zero = list(layer.input[5:6] if fused else layer.input[3:4])
        weights, output = f"{layer.name or layer.output[0]}.weight", node.output[0]
        bias = node.input[6] if fused and len(node.input) > 6 else ""
        name = layer.name or output
        yield helper.make_node(
            "DequantizeLinear", [layer.input[1], product.scale, *zero], [weights],
            name=weights, axis=product.axis,
        )  # fmt: skip
        made = f"{output}.product" if bias else output
        float_layer = helper.make_node(product.op, [product.x, weights], [made], name=name)
        float_layer.attribute.extend(layer.attribute)
        yield float_layer
        if bias:
            yield helper.make_node("Add", [made, bias], [output], name=f"{name}.bias")

    def _product(self, node: onnx.NodeProto) -> _Product | None:
        """What ``Mul(Cast(layer), Mul(x_scale, w_scale))`` computes."""
        if node.op_type != "Mul":
            return None
        for sums, scales in (tuple(node.input), tuple(node.input)[::-1]):
            cast, both = self.makers.get(sums), self.makers.get(scales)
            if cast is None or both is None or cast.op_type != "Cast" or both.op_type != "Mul":
                continue
            layer = self.makers.get(cast.input[0])
            to_float = any(a.name == "to" and a.i == TensorProto.FLOAT for a in cast.attribute)
            if layer is None or layer.op_type not in LAYERS or not to_float:
                continue
            weights = [name for name in both.input if name in self.constants]
            steps = [name for name in both.input if name not in self.constants]
            if len(weights) == len(steps) == 1 and len(layer.input) >= 3:
                x = self._dynamic(layer.input[0], steps[0], layer.input[2])
                if x and layer.input[1] in self.constants:
                    return _Product(layer, *LAYERS[layer.op_type], x, weights[0])
        return None

    def _fused(self, node: onnx.NodeProto) -> _Product | None:
        if len(node.input) < 5 or not {node.input[1], node.input[3]} <= self.constants:
            return None
        x = self._dynamic(node.input[0], node.input[2], node.input[4])
        return _Product(node, "MatMul", 1, x, node.input[3]) if x else None

    def _dynamic(self, q: str, scale: str, zero_point: str) -> str:
        """The float tensor that one DynamicQuantizeLinear turned into all three, or ""."""
        maker = self.makers.get(q)
        if maker is None or maker.op_type != "DynamicQuantizeLinear":
            return ""
        same = [q, scale, zero_point] == list(maker.output)
        return str(maker.input[0]) if same else ""
