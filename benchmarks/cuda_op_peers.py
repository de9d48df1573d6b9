"""Torch's ops on whole rows and products of two tensors, beside ours."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from benchmarks.cuda_goals import FP16, TORCH
from benchmarks.cuda_peers import Torch, Variants, sets_of
from nybble.runtime.events import Call

Shape = list[int]
SINGLE = "torch float32"


def variants(torch: Torch, about: dict[str, Any]) -> Variants:
    """The peers of a row of ``rows.json``; none where torch has no kernel that does the same."""
    found = PEERS.get(about["op"])
    if found is None:
        return {}
    name, make = found
    return {name: lambda: [make(torch, about)]}


def _matmul(torch: Torch, about: dict[str, Any]) -> Call:
    """A product of two tensors, the second as it lies."""
    sets = _sets(torch, [shape for shape, _ in about["inputs"]], "float16", about["output"][0])
    if about["attrs"]["transpose_b"]:
        sets = [(a, b.transpose(-1, -2)) for a, b in sets]
    return lambda i: torch.torch.matmul(*sets[i % len(sets)])


def _sets(torch: Torch, shapes: list[Shape], dtype: str, output: Shape) -> list[tuple[Any, ...]]:
    """Operands that outgrow the caches."""
    size = sum(map(prod, [*shapes, output])) * np.dtype(dtype).itemsize
    return [
        tuple(torch.drawn(tuple(shape), dtype) for shape in shapes) for _ in range(sets_of(size))
    ]


def _on_rows(
    call: Callable[[Any, Any, Any], Any], dtype: str = "float16"
) -> Callable[[Torch, dict[str, Any]], Call]:
    """Makes a peer of ``call(torch, x, one)``, where ``one`` has a value for each of a row."""

    def make(torch: Torch, about: dict[str, Any]) -> Call:
        (shape, _), *_ = about["inputs"]
        sets = _sets(torch, [shape], dtype, about["output"][0])
        one = torch.drawn((shape[-1],), dtype)
        return lambda i: call(torch.torch, sets[i % len(sets)][0], one)

    return make


def _layer_norm(torch: Any, x: Any, one: Any) -> Any:
    return torch.nn.functional.layer_norm(x, one.shape, one, one)


def _rms_norm(torch: Any, x: Any, one: Any) -> Any:
    return torch.nn.functional.rms_norm(x, one.shape, one)


PEERS: dict[str, tuple[str, Callable[[Torch, dict[str, Any]], Call]]] = {
    "matmul": (FP16, _matmul),
    "softmax": (TORCH, _on_rows(lambda torch, x, _one: torch.softmax(x, -1))),
    "layer_norm": (TORCH, _on_rows(_layer_norm)),
    "rms_norm": (TORCH, _on_rows(_rms_norm)),
    "row_tops": (
        SINGLE,
        _on_rows(lambda torch, x, _one: torch.linalg.vector_norm(x, torch.inf, -1), "float32"),
    ),
}
