"""Decoders with caches: a pass over all tokens equals steps that hand the caches on."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import nybble
from nybble.errors import ImportModelError, UnsupportedOpError
from nybble.frontend.onnx import from_onnx
from nybble.frontend.torch import from_torch
from nybble.ir import interpreter
from tests import decoders

TOKENS = np.random.default_rng(3).integers(0, decoders.WORDS, (2, 7))
STEPS = (0, 3, 4, 7)  # of 3, 1 and 3 tokens, behind none, many and more
SHAPES = {k: v for k, v in decoders.SHAPES.items() if k != "position_ids"}
"""Of a decoder that counts positions by itself."""
PAGE = Path(__file__).resolve().parents[2] / "docs" / "deployment.md"


def close(got: Any, wanted: Any) -> None:
    for ours, theirs in zip(got, wanted, strict=True):
        np.testing.assert_allclose(ours, np.asarray(theirs), rtol=1e-4, atol=2e-5)


def follow(net: Any, run: Any) -> None:
    """Compares one pass, and the same in steps, with the torch module."""
    with torch.no_grad():
        wanted = [value.numpy() for value in net(*decoders.inputs(TOKENS))]
    close(run(decoders.named(decoders.inputs(TOKENS))), wanted)
    caches: list[Any] = []
    for begin, end in pairwise(STEPS):
        logits, *caches = run(decoders.named(decoders.inputs(TOKENS[:, begin:end], *caches)))
        close([logits], [wanted[0][:, begin:end]])
    close(caches, wanted[1:])
    one = [cache[:, :, :1] for cache in caches]
    close(
        run(decoders.named(decoders.inputs(TOKENS[:, 1:2], *one)))[:1], [wanted[0][:, 1:2]]
    )  # behind a single token


@pytest.mark.parametrize("spelled", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_as_optimum_exports(spelled: bool) -> None:
    net = decoders.drawn(decoders.Decoder(spelled))
    mod = from_onnx(decoders.as_optimum(net), decoders.SHAPES)
    follow(net, lambda feeds: interpreter.run(mod, feeds))


def test_as_the_model_builder_writes() -> None:
    net = decoders.drawn(decoders.Decoder())
    mod = from_onnx(decoders.as_model_builder(net), SHAPES)
    follow(net, lambda feeds: interpreter.run(mod, feeds))
    both = _prompts(mod, [7, 4])
    alone = _prompts(mod, [4], TOKENS[1:])
    close([both[0][1, 3:4]], [alone[0][0, 3:4]])
    later = _prompts(mod, [8, 5], TOKENS[:, :1], both[1:])
    close([later[0][1:]], [_prompts(mod, [5], TOKENS[1:, :1], alone[1:])[0]])


def _prompts(mod: Any, lengths: list[int], tokens: Any = TOKENS, caches: Any = ()) -> list[Any]:
    """A batch of prompts that are padded at their ends, in steps or whole."""
    tokens = tokens[:, : max(lengths)]
    feeds = decoders.named(decoders.inputs(tokens, *caches))
    mask = np.arange(max(lengths)) < np.array(lengths)[:, None]
    feeds["attention_mask"] = mask.astype(np.int64)
    return interpreter.run(mod, feeds)


def test_buffer_that_the_model_builder_fills() -> None:
    """A past of fixed length is written into; what lies behind the mask has no say."""
    net = decoders.drawn(decoders.Decoder())
    shapes = {"input_ids": (None, "length"), "attention_mask": (None, "total")}
    mod = from_onnx(decoders.as_model_builder(net, room=9), shapes)
    with torch.no_grad():
        wanted = [value.numpy() for value in net(*decoders.inputs(TOKENS))]
    caches: Any = [np.full((2, decoders.GROUPS, 9, decoders.SIZE), 7, np.float32)] * 2
    for begin, end in pairwise(STEPS):
        feeds = decoders.named(decoders.inputs(TOKENS[:, begin:end], *caches))
        feeds["attention_mask"] = np.ones((2, end), np.int64)
        logits, *caches = interpreter.run(mod, feeds)
        close([logits], [wanted[0][:, begin:end]])
    close([cache[:, :, :7] for cache in caches], wanted[1:])
    with pytest.raises(UnsupportedOpError, match="its total length is not known"):
        from_onnx(decoders.as_model_builder(net), {**shapes, "past_*": (None, 1, "past", 16)})


@pytest.mark.slow
def test_torch_caches_that_grow() -> None:
    net = decoders.drawn(decoders.Decoder())
    example = decoders.inputs(TOKENS[:, :3], *torch.zeros(2, 2, decoders.GROUPS, 4, decoders.SIZE))
    mod = from_torch(net, example, shapes=decoders.SHAPES)
    follow(net, lambda feeds: interpreter.run(mod, list(feeds.values())))


@pytest.mark.parametrize("scatter", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_torch_buffers(scatter: bool) -> None:
    net = decoders.drawn(decoders.Buffered(scatter))
    draw = torch.Generator().manual_seed(0)
    x, *caches = (torch.randn(s, generator=draw) for s in ((2, 3, 16), (2, 1, 7, 8), (2, 1, 7, 8)))
    shapes = {"x": (None, "length", 16), "places": ("length",)}
    mod = from_torch(net, (x, torch.arange(3), *caches), shapes=shapes)
    feeds = (x[:, :2], torch.tensor([4, 5]), *caches)
    with torch.no_grad():
        wanted = [value.numpy() for value in net(*feeds)]
    close(interpreter.run(mod, [feed.numpy() for feed in feeds]), wanted)


def test_what_shapes_cannot_mean() -> None:
    model = decoders.as_model_builder(decoders.drawn(decoders.Decoder()))
    with pytest.raises(ImportModelError, match=r"no inputs \['pasts'\]; the model has input_ids"):
        from_onnx(model, {"pasts": (None, 1, "past", 16)})
    with pytest.raises(ImportModelError, match="no input has 'rest' as an extent of its own"):
        from_onnx(model, {**SHAPES, "attention_mask": (None, "past + rest")})


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["the page's", "8 bits", "dynamic"])
def test_page_on_decoders(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop of docs/deployment.md as it stands; with other recipes too, against the law."""
    monkeypatch.chdir(tmp_path)
    net = decoders.drawn(decoders.Decoder())
    Path("decoder.onnx").write_bytes(decoders.as_optimum(net))
    text = PAGE.read_text().partition("## Decoders with caches")[2].partition("\n## ")[0]
    save, decode = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    if recipe == "the page's":
        known: dict[str, Any] = {}
        exec(save, known)
        quantized = known["small"]
    else:
        model = nybble.load_onnx("decoder.onnx", decoders.SHAPES)
        example = decoders.named(decoders.inputs(TOKENS, *torch.randn(2, 2, 1, 5, 16)))
        asked = nybble.Recipe(activations="dynamic") if recipe == "dynamic" else nybble.Recipe()
        quantized = nybble.quantize(model, [example] if recipe == "8 bits" else (), asked)
        nybble.compile(quantized).save("decoder.so")
    known = {}
    exec(decode, known)
    assert len(known["tokens"]) == 12
    session = known["session"]
    rest = decoders.inputs([known["tokens"]])
    law = quantized.run(decoders.named(rest))
    for name, value in session(decoders.named(rest)).items():
        if recipe == "8 bits":
            np.testing.assert_array_equal(value, law[name])
        else:
            np.testing.assert_allclose(value, law[name], rtol=1e-4, atol=2e-5)
    best = law["logits"][0].argmax(-1)
    assert known["tokens"][3:] == best[2:-1].tolist()
