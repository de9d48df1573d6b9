"""QDQ ONNX: what ONNX Runtime makes of it, beside the law and the simulation."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from tvm import relax

import nybble
from nybble.commands import CompileJob, compile_to_file
from nybble.errors import ArtifactError, NybbleError
from nybble.export.onnx import to_onnx
from nybble.options import RecipeOptions
from tests import models
from tests.passes import nets
from tests.walking import LARGE, SMALL, few, imported, tiny

LEVELS = onnxruntime.GraphOptimizationLevel
OPTIMIZED = (LEVELS.ORT_DISABLE_ALL, LEVELS.ORT_ENABLE_ALL)


def session(data: bytes, level: Any) -> Any:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level, options.intra_op_num_threads = level, 1
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def answered(data: bytes, x: Any, level: Any) -> Any:
    one = session(data, level)
    return one.run(None, {one.get_inputs()[0].name: x})[0]


def checked(quantized: nybble.QuantizedModel) -> onnx.ModelProto:
    model = onnx.load_from_string(quantized.to_onnx())
    onnx.checker.check_model(model, full_check=True)
    return model


def assert_agrees(quantized: nybble.QuantizedModel, x: Any, tolerance: float) -> None:
    """Close to law and simulation, in shares of the largest output, and the same answers."""
    data = checked(quantized).SerializeToString()
    law: Any = quantized.run(x)
    simulated: Any = quantized.simulate(x)
    for level in OPTIMIZED:
        y = answered(data, x, level)
        assert np.abs(y - law).max() < tolerance * np.abs(law).max()
        assert np.abs(y - simulated).max() < tolerance * np.abs(law).max()
        np.testing.assert_array_equal(y.argmax(-1), law.argmax(-1))
        np.testing.assert_array_equal(y.argmax(-1), simulated.argmax(-1))


Recipe = nybble.Recipe
MIXED = Recipe(layers={"/dilated*": {"weights": 2, "activations": 3}, "/mix*": {"weights": 5}})
WIDTHS = {
    "w8a8": (Recipe(), 0.02),
    "w4a8": (Recipe(weights=4), 0.03),
    "w4a4": (Recipe(weights=4, activations=4), 0.08),
    "ternary": (Recipe(weights="ternary"), 0.03),
    "w1a1": (Recipe(weights=1, activations=1), 0.05),
    "mixed": (MIXED, 0.03),
}


@pytest.mark.sweep
@pytest.mark.parametrize("widths", WIDTHS)
def test_widths_agree_with_the_law(widths: str) -> None:
    recipe, tolerance = WIDTHS[widths]
    quantized = nybble.quantize(tiny(), [few()], recipe)
    assert_agrees(quantized, models.images(32, (3, SMALL, SMALL), seed=9), tolerance)


@pytest.mark.parametrize("group", [None, 32])
@pytest.mark.parametrize(("weights", "symmetric"), [(4, False), (8, False), ("ternary", True)])
def test_weights_only(weights: Any, symmetric: bool, group: int | None) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 72), nn.ReLU(), nn.Linear(72, 10))
    recipe = Recipe(weights=weights, activations="float", group=group, symmetric=symmetric)
    model = imported(models.settled(lambda: net, (3, 8, 8)), 8, "onnx")
    quantized = nybble.quantize(model, recipe=recipe)
    x = models.images(16, (3, 8, 8))
    real: Any = quantized.simulate(x)
    exact = answered(checked(quantized).SerializeToString(), x, LEVELS.ORT_DISABLE_ALL)
    np.testing.assert_allclose(exact, real, atol=1e-5 * np.abs(real).max())
    fused = answered(quantized.to_onnx(), x, LEVELS.ORT_ENABLE_ALL)  # rounds rows, as the law does
    np.testing.assert_allclose(fused, real, atol=0.03 * np.abs(real).max())


class Ending(nn.Module):
    """Moves signed values to the output, in the other order of axes too."""

    def __init__(self, permutes: bool, softmax: bool) -> None:
        super().__init__()
        self.conv, self.permutes, self.softmax = nn.Conv2d(3, 8, 3, stride=4), permutes, softmax

    def forward(self, x: Any) -> Any:
        x = nn.functional.max_pool2d(self.conv(x), 2)
        x = (x.permute(0, 2, 3, 1) if self.permutes else x).flatten(1)
        return torch.softmax(x, 1) if self.softmax else x


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("permutes", [False, True])
@pytest.mark.parametrize("bits", [8, 4])
def test_moves_behind_the_last_layer(permutes: bool, softmax: bool, bits: int) -> None:
    model = imported(models.settled(lambda: Ending(permutes, softmax), (3, 32, 32)), 32, "onnx")
    quantized = nybble.quantize(model, [few()], Recipe(activations=bits, first_last=None))
    law: Any = quantized.run(few())
    data = checked(quantized).SerializeToString()
    for level in OPTIMIZED:  # unless the moves are quantized, ORT refuses its own optimized graph
        np.testing.assert_allclose(answered(data, few(), level), law, atol=1e-6)


class Gated(nn.Module):
    """What has no integer form, in either order of axes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, stride=2)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Any) -> Any:
        x = nn.functional.silu(self.a(x)) * torch.sigmoid(self.a(x))
        x = nn.functional.pad(nn.functional.leaky_relu(self.b(x), 0.1), (1, 0, 2, 0), value=0.5)
        x = torch.minimum(torch.maximum(torch.tanh(x), x / 2), torch.exp(x) - 0.5)
        return torch.softmax(self.head(x.mean((2, 3))), 1)


@pytest.mark.parametrize("source", ["onnx", "torch"])
def test_float_ops(source: str) -> None:
    model = imported(models.settled(Gated, (3, 16, 16)), 16, source)
    x = models.images(8, (3, 16, 16))
    quantized: Any = nybble.quantize(model, [x])
    data = checked(quantized).SerializeToString()
    for level in OPTIMIZED:
        np.testing.assert_allclose(answered(data, x, level), quantized.run(x), atol=0.01)


def test_names_types_and_transposes() -> None:
    quantized = nybble.quantize(tiny(), [few()], MIXED)
    graph = checked(quantized).graph
    assert [i.name for i in graph.input] == ["input"]
    assert [o.name for o in graph.output] == ["output"]
    nodes = {node.name: node for node in graph.node}
    assert nodes["/dilated/Conv"].op_type == "Conv"
    assert nodes["/head/Gemm"].op_type == "Gemm"
    assert not any(node.op_type == "Transpose" for node in graph.node)
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert kinds["/dilated/Conv.weight.integers"] == onnx.TensorProto.INT4
    assert kinds["/mix/Conv.weight.integers"] == onnx.TensorProto.INT8
    assert kinds["/stem/Conv.bias.integers"] == onnx.TensorProto.INT32
    assert "/Clip.quantize.clip" in nodes  # 3 bits


def test_the_recipe_is_kept() -> None:
    model = checked(nybble.quantize(tiny(), [few()], MIXED))
    (kept,) = (p.value for p in model.metadata_props if p.key == "nybble.recipe")
    assert Recipe.from_json(kept) == MIXED


def test_files_appear_whole_or_not_at_all(tmp_path: Path) -> None:
    quantized = nybble.quantize(tiny(), [few()])
    path = quantized.to_onnx(tmp_path / "net.onnx")
    assert path.read_bytes() == quantized.to_onnx()
    with pytest.raises(ArtifactError, match="there is no directory"):
        quantized.to_onnx(tmp_path / "missing" / "net.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]


def test_what_has_no_form_is_named() -> None:
    net = nets.Net(3, 30, 30)
    uneven = net.emit("head/pool", relax.op.nn.adaptive_avg_pool2d(net.x, (4, 4)))
    with pytest.raises(NybbleError, match=r"'head/pool' .* averages 30x30 pixels to 4x4 cells"):
        to_onnx(net.done(uneven), "{}")


def test_the_command_writes_both(tmp_path: Path) -> None:
    source, data = tmp_path / "source.onnx", tmp_path / "few.npy"
    source.write_bytes(models.export_onnx(models.tiny_cnn(SMALL), torch.zeros(1, 3, SMALL, SMALL)))
    np.save(data, few())
    made = tmp_path / "qdq.onnx"
    options = RecipeOptions(None)
    job = CompileJob(source, tmp_path / "net.so", data, options, ("native",), False, onnx=made)
    compile_to_file(job)
    session: Any = nybble.load(tmp_path / "net.so")
    assert session(few()).shape == (8, 10)
    assert answered(made.read_bytes(), few(), LEVELS.ORT_ENABLE_ALL).shape == (8, 10)
    job = CompileJob(source, tmp_path / "f.so", None, options, ("native",), True, onnx=made)
    with pytest.raises(NybbleError, match="does not go with --float"):
        compile_to_file(job)


@pytest.mark.whole
@pytest.mark.parametrize("name", ["resnet18", pytest.param("mobilenet_v2", marks=pytest.mark.slow)])
def test_networks(name: str) -> None:
    """Untrained and deep, roundings grow: the simulation's distance from the law is the measure."""
    model = imported(models.NETWORKS[name](LARGE), LARGE, "onnx")
    quantized = nybble.quantize(model, [models.images(8, (3, LARGE, LARGE), seed=5)])
    data, x = checked(quantized).SerializeToString(), models.images(4, (3, LARGE, LARGE), seed=9)
    law, simulated = (np.asarray(run(x)) for run in (quantized.run, quantized.simulate))
    for level in OPTIMIZED:
        apart = np.linalg.norm(answered(data, x, level) - law)
        assert apart < 1.5 * np.linalg.norm(simulated - law), level


@pytest.mark.slow
def test_efficientnet_lite0_on_photographs() -> None:
    folder = Path(os.environ.get("NYBBLE_DATA", "")) / "imagenet_500"
    if not folder.is_dir():
        pytest.skip("NYBBLE_DATA holds no imagenet_500")
    pytest.importorskip("efficientnet_lite_pytorch")
    from benchmarks.accuracy import efficientnet_lite0  # noqa: PLC0415  (needs the package above)

    task = efficientnet_lite0(folder)
    quantized = nybble.quantize(task.model, task.calibration[:, None])
    data, x = checked(quantized).SerializeToString(), task.images[1:401:10]
    law: Any = np.concatenate([quantized.run(x[i : i + 10]) for i in range(0, len(x), 10)])
    for level in OPTIMIZED:
        same = answered(data, x, level).argmax(-1) == law.argmax(-1)
        assert np.mean(same) >= 0.95, level
