"""Quantized Relax -> QDQ ONNX: float ops between QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

import tvm
from tvm import relax

from nybble.export.rules import RULES
from nybble.export.walk import Step, Walk
from nybble.ir import graph


def to_onnx(mod: tvm.IRModule, recipe: str) -> bytes:
    """Writes a network as ONNX of opset 21.

    Activations are quantized per tensor, weights per output channel (or block of it) from integer
    initializers of 4 or 8 bits, biases from int32; fewer bits are integers of a smaller range.
    Nodes have the names of the module's bindings, inputs and outputs those of the source model.

    Args:
        mod: of stage ``quantized``; or ``integer``, where its only integers are the weights of
            ``nybble.weight_only``.
        recipe: how it was quantized, kept in the model's properties; "" for nothing to keep.

    Returns:
        The model's bytes.

    Raises:
        NybbleError: a layer has no ONNX form, or the model is larger than 2 GB.
    """
    walk = Walk(mod)
    layers = {bias: layer for layer, bias in walk.biases.items()}
    for name, call in walk.view.calls.items():
        variable, step = walk.view.variables[name], Step(name, call)
        if isinstance(call, relax.Var):
            walk.forms[variable] = walk.forms[call]
        elif name in layers:  # its layer has added it
            walk.forms[variable] = walk.forms[walk.view.variables[layers[name]]]
        elif variable not in walk.weights:
            rule = RULES.get(graph.op_name(call))
            if rule is None:
                step.refuse("has no ONNX form")
            order, tensor = rule(walk, step)
            walk.forms[variable] = {order: tensor}
    outputs = {
        name: (walk.get(v, "own", name), graph.shape_of(v))
        for name, v in zip(graph.output_names(mod), graph.outputs(mod), strict=True)
    }
    inputs = {name: graph.shape_of(walk.view.variables[name]) for name in walk.view.inputs}
    return walk.graph.finish(inputs, outputs, {"nybble.recipe": recipe} if recipe else {})
