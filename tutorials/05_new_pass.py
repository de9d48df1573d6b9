"""Lesson 5: a pass of one's own.

Run it from the repository: ``.venv/bin/python tutorials/05_new_pass.py``. It takes some seconds.

A pass takes a module and returns another one that computes the same. The one written here swaps two
layers: some networks pool before they clip, ``relu(max_pool(conv(x)))``. Both orders give the same
numbers, for the largest of clipped numbers is the largest number clipped. But behind a convolution
``relu`` costs nothing: it becomes the limits of the requantization that is there anyway.
"""

import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper
from tvm import relax

import nybble
from nybble.ir import graph, specs
from nybble.passes.base import module_pass
from nybble.passes.drop_identities import drop_unread


# 1. The pass: a function from module to module, named by what it does. A module is a list of
#    bindings `name = op(arguments)`; `graph.rewrite` shows them to `visit` one after another, with
#    arguments that are already rewritten, and binds what it returns under the same name.
@module_pass
def clip_before_pooling(mod):
    """Swaps relu with the max_pool2d before it.

    before: relu(max_pool2d(x))
    --->
    after: max_pool2d(relu(x))
    """
    made = {}  # variable -> the call behind it

    def visit(emitter, name, call):
        pool = made.get(call.args[0]) if graph.op_name(call) == "relax.nn.relu" else None
        if pool is not None and graph.op_name(pool) == "relax.nn.max_pool2d":
            clipped = emitter.emit(relax.op.nn.relu(pool.args[0]), f"{name}.before")
            call = relax.Call(pool.op, [clipped], pool.attrs, pool.ty_args)
        var = emitter.emit(call, name)
        made[var] = call
        return var

    return drop_unread(graph.rewrite(mod, visit))  # the old max_pool2d has no reader left


# 2. A network to try it on.
rng = np.random.default_rng(0)
w, v = (rng.standard_normal(s, dtype=np.float32) * 0.2 for s in ((16, 3, 3, 3), (16, 10)))
two = {"kernel_shape": [2, 2], "strides": [2, 2]}
nodes = [
    helper.make_node("Conv", ["image", "w"], ["conv"], name="conv", pads=[1] * 4),
    helper.make_node("MaxPool", ["conv"], ["pool"], name="pool", **two),
    helper.make_node("Relu", ["pool"], ["clip"], name="clip"),
    helper.make_node("GlobalAveragePool", ["clip"], ["mean"], name="mean"),
    helper.make_node("Flatten", ["mean"], ["flat"], name="flat"),
    helper.make_node("MatMul", ["flat", "v"], ["logits"], name="linear"),
]
ends = [("image", ["n", 3, 16, 16]), ("logits", ["n", 10])]
source, result = (helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s) for n, s in ends)
constants = [numpy_helper.from_array(w, "w"), numpy_helper.from_array(v, "v")]
made = helper.make_graph(nodes, "lesson", [source], [result], constants)
opsets = [helper.make_opsetid("", 17)]
plain = nybble.load_onnx(helper.make_model(made, opset_imports=opsets, ir_version=8))

# 3. Run it. Modules print as Python; here are their ops in order, before and after.
swapped = nybble.Model(clip_before_pooling(plain.module))
for model in (plain, swapped):
    print(" -> ".join(op.removeprefix("relax.nn.") for _, op, _ in graph.walk(model.module)))
specs.check(swapped.module, "float")  # well formed, and nothing but ops of the vocabulary
assert [name for name, op, _ in graph.walk(swapped.module) if op == "relax.nn.relu"] == [
    "clip.before"
]

# 4. It computes the same, to the bit, and its argument is unchanged.
images = rng.standard_normal((64, 3, 16, 16), dtype=np.float32)
np.testing.assert_array_equal(swapped.run(images), plain.run(images))
assert [name for name, op, _ in graph.walk(plain.module) if op == "relax.nn.relu"] == ["clip"]


def deployed(model):
    """The compiled library's layers, and whether it is the law to the bit."""
    quantized = nybble.quantize(model, images[:32, None])
    with tempfile.TemporaryDirectory() as folder:
        session = nybble.load(nybble.compile(quantized).save(Path(folder) / "net.so"))
        same = np.array_equal(session(images), quantized.run(images))
    return [layer["op"] for layer in session.manifest.layers], same


# 5. What it is good for: one layer fewer to run.
counts = []
for model in (plain, swapped):
    layers, same = deployed(model)
    print(f"{len(layers)} layers:", ", ".join(layers))
    assert same
    counts.append(len(layers))
assert counts[1] == counts[0] - 1

# 6. To make it part of the walk: a file in passes/, a line in `CANONICALIZE` of passes/pipeline.py,
#    and a test with the module before and after. CONTRIBUTING.md has the list.
print("the shared library and the law agree in every bit")
