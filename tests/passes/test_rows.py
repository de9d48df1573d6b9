"""Transformers and gated networks are computed in integers from border to border."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import nybble
from nybble.ir import graph, interpreter, specs
from nybble.passes.pipeline import canonicalize
from tests import models, transformers
from tests.frontend.onnx_models import model, node, values
from tests.walking import assert_equal_to_the_law, compared, law_of, runs_here

WIDTH, LENGTH, SIZE = 32, 9, 32
TOKENS = (LENGTH, WIDTH)
IMAGE = (3, SIZE, SIZE)


class Functions(nn.Module):
    """Functions of one tensor that become tables, each behind a layer of its own."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 5)
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.function(self.first(x)))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], float]] = {
    "bert": (lambda: transformers.Bert(WIDTH, 4), TOKENS, 26),
    "post-norm": (lambda: transformers.Encoder(WIDTH, 4, False), TOKENS, 26),
    "pre-norm, tanh": (lambda: transformers.Encoder(WIDTH, 4, True, "tanh"), TOKENS, 26),
    "causal": (lambda: transformers.Encoder(WIDTH, 4, True, causal=True), TOKENS, 26),
    "vit": (lambda: transformers.VisionTransformer(SIZE, 8, WIDTH, 1), IMAGE, 22),
}


def inputs(shape: tuple[int, ...], count: int, seed: int) -> Any:
    if shape == TOKENS:
        return transformers.tokens(count, *shape, seed=seed)
    return models.images(count, shape, seed=seed)


def imported(net: nn.Module, x: Any, source: str) -> nybble.Model:
    example = torch.from_numpy(x[:1])
    if source == "torch":
        return nybble.load_torch(net, example)
    return nybble.load_onnx(models.export_onnx(net, example))


@cache
def quantized(name: str, source: str) -> tuple[Any, Any]:
    """A network, and what becomes of it."""
    build, shape, _ = NETWORKS[name]
    net, x = transformers.drawn(build), inputs(shape, 8, 1)
    return net, nybble.quantize(imported(net, x, source), [x])


def noise(exact: Any, wanted: Any) -> float:
    """Signal to quantization noise in dB."""
    return float(10 * np.log10(np.square(wanted).sum() / np.square(exact - wanted).sum()))


@pytest.mark.parametrize(
    ("name", "source"), [*((name, "torch") for name in NETWORKS), ("bert", "onnx"), ("vit", "onnx")]
)
def test_a_transformer_is_integer_only(name: str, source: str) -> None:
    net, made = quantized(name, source)
    assert list(made.integer["main"].attrs[specs.KEPT_FLOAT]) == []
    assert specs.between_borders(made.integer) == []
    ops = [op for _, op, _ in graph.walk(made.integer)]
    assert ops.count("nybble.matmul") == 2
    assert ops.count("nybble.masked_softmax" if name == "causal" else "nybble.softmax") == 1
    assert ops.count("nybble.layer_norm") == (3 if name == "vit" else 2)
    x = inputs(NETWORKS[name][1], 4, 9)
    wanted = net(torch.from_numpy(x)).detach().numpy()
    assert noise(made.run(x), wanted) > NETWORKS[name][2]


@pytest.mark.parametrize(
    "name",
    [name if name == "vit" else pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS],
)
def test_the_library_equals_the_law(name: str, tmp_path: Path) -> None:
    runs_here("native")
    _, made = quantized(name, "torch")
    path = nybble.compile(made, "native").save(tmp_path / "net.so")
    x = inputs(NETWORKS[name][1], 3, 9)
    for threads in (1, 2):
        report, session = compared(law_of(made, x), path, x, threads)
        assert report.equal
        assert session.manifest.float_ops == ()


def test_a_class_token_written_out_for_a_known_batch(tmp_path: Path) -> None:
    """Exporters that know the batch store one token for each image."""
    runs_here("native")
    batch = 3
    nodes = [
        node("MatMul", "x w", "patches"), node("Concat", "token patches", "tokens", axis=1),
        node("Add", "tokens positions", "placed"), node("MatMul", "placed v", "y"),
    ]  # fmt: skip
    weights = {"w": values(8, 8), "token": np.repeat(values(1, 1, 8, seed=1), batch, 0),
               "positions": values(1, 5, 8, seed=2), "v": values(8, 3, seed=3)}  # fmt: skip
    network = nybble.load_onnx(model(nodes, (batch, 4, 8), weights))
    x = values(batch, 4, 8, seed=4)
    made = nybble.quantize(network, [x])
    assert list(made.integer["main"].attrs[specs.KEPT_FLOAT]) == []
    assert specs.between_borders(made.integer) == []
    (wanted,) = interpreter.run(network.module, [x])
    assert noise(made.run(x), wanted) > 30
    path = nybble.compile(made, "native").save(tmp_path / "net.so")
    assert compared(law_of(made, x), path, x, 1)[0].equal


def test_tokens_that_differ_between_images_are_kept() -> None:
    proto = model([node("Concat", "tokens x", axis=1)], (2, 4, 8), {"tokens": values(2, 1, 8)})
    canonical = canonicalize(nybble.load_onnx(proto).module)
    assert [op for _, op, _ in graph.walk(canonical)] == ["relax.concat"]


def test_embeddings_are_rows_of_integers() -> None:
    net = transformers.drawn(lambda: transformers.Embedded(50, LENGTH, WIDTH, 4))
    numbers = np.random.default_rng(3).integers(0, 50, (4, LENGTH), np.int32)
    model = nybble.load_onnx(models.export_onnx(net, torch.from_numpy(numbers)))
    made = nybble.quantize(model, [numbers])
    assert list(made.integer["main"].attrs[specs.KEPT_FLOAT]) == []
    assert [op for _, op, _ in graph.walk(made.integer)][:3] == [
        "relax.take", "nybble.add", "nybble.layer_norm",
    ]  # fmt: skip
    wanted = net(torch.from_numpy(numbers).long()).detach().numpy()
    assert noise(made.run(numbers), wanted) > 26


FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": torch.nn.functional.gelu,
    "elu": torch.nn.functional.elu,
    "softplus": torch.nn.functional.softplus,
    "mish": torch.nn.functional.mish,
    "root": lambda x: torch.sqrt(torch.relu(x) + 0.1),
    "logarithm": lambda x: torch.log(torch.abs(x) + 1.0),
    "reciprocal": lambda x: 1.0 / (torch.abs(x) + 0.5),
    "error": torch.erf,
    "bent": lambda x: torch.prelu(x, torch.tensor([0.2])),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_one_tensor_are_tables(name: str) -> None:
    net = transformers.drawn(lambda: Functions(FUNCTIONS[name]))
    x = transformers.tokens(8, LENGTH, WIDTH)
    made = nybble.quantize(imported(net, x, "torch"), [x])
    assert list(made.integer["main"].attrs[specs.KEPT_FLOAT]) == []
    assert [op for _, op, _ in graph.walk(made.integer)].count("nybble.table") == 1
    assert noise(made.run(x), net(torch.from_numpy(x)).detach().numpy()) > 26


def test_the_mean_of_tokens_and_a_softmax_at_the_end() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.softmax(self.last(torch.relu(self.first(x)).mean(1)), -1)

    x = transformers.tokens(4, LENGTH, WIDTH)
    net = transformers.drawn(Pooled)
    made = nybble.quantize(imported(net, x, "torch"), [x])
    kept = [str(line) for line in made.integer["main"].attrs[specs.KEPT_FLOAT]]
    assert kept == ["softmax: relax.nn.softmax: follows the last quantized layer"]
    assert specs.between_borders(made.integer) == []
    exact: Any = made.run(x)
    np.testing.assert_allclose(exact, net(torch.from_numpy(x)).detach().numpy(), atol=0.02)


@pytest.mark.slow
def test_mobilenet_v3_is_integer_only(tmp_path: Path) -> None:
    x = models.images(16, IMAGE)
    made = nybble.quantize(imported(transformers.mobilenet_v3(SIZE), x, "torch"), [x])
    assert list(made.integer["main"].attrs[specs.KEPT_FLOAT]) == []
    assert_equal_to_the_law(made, "native", tmp_path / "net.so", IMAGE)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["native", "x86-64-v3", "x86-64"])
def test_a_whole_vision_transformer(target: str, tmp_path: Path) -> None:
    """Four blocks, 64 channels, 65 tokens."""
    runs_here(target)
    net = transformers.drawn(lambda: transformers.VisionTransformer(SIZE, 4, 64, 4))
    x = models.images(16, IMAGE)
    made = nybble.quantize(imported(net, x, "torch"), [x])
    assert_equal_to_the_law(made, target, tmp_path / "net.so", IMAGE)
    y = models.images(16, IMAGE, seed=9)
    assert noise(made.run(y), net(torch.from_numpy(y)).detach().numpy()) > 18


def test_a_product_with_a_constant_of_every_place_is_integer() -> None:
    angles = torch.arange(LENGTH)[:, None] / 10 ** (torch.arange(WIDTH) / WIDTH)
    net = transformers.drawn(lambda: Functions(lambda x: x * angles.cos()))
    x = inputs(TOKENS, 8, 1)
    made = nybble.quantize(imported(net, x, "torch"), [x])
    assert specs.between_borders(made.integer) == []
    assert [op for _, op, _ in graph.walk(made.integer)].count("nybble.multiply") == 1
    assert noise(made.run(x), net(torch.from_numpy(x)).detach().numpy()) > 30
