"""The name under which a measurement is kept: everything that its numbers depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tvm
from numpy.typing import NDArray
from torch import Tensor

import nybble
from nybble.ir import graph
from nybble.passes.sensitivity.options import Measure
from nybble.recipe import Recipe

Array = NDArray[Any]
RECIPE = (
    "activations", "first_last", "layers", "calibrator", "percentile", "keep_float", "seed",
)  # fmt: skip
"""The fields of a recipe that sensitivity depends on."""
MEASURE = ("name", "layers", "loss_name", "batch", "tolerance", "fewest", "most")
_SOURCES = (
    "sensitivity", "calibrate.py", "differentiable.py", "grids.py", "plan.py", "settle.py",
    "simulation.py",
)  # fmt: skip


class Digest:
    """A hash that grows with arrays and plain values."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def value(self, value: Any) -> None:
        """Adds something that has one repr."""
        self._hash.update(repr(value).encode() + b"\0")

    def array(self, name: str, array: Array) -> None:
        """Adds an array with its name, dtype and shape."""
        self.value((name, str(array.dtype), array.shape))
        self._hash.update(np.ascontiguousarray(array).data)

    def text(self) -> str:
        """The hash so far."""
        return self._hash.hexdigest()[:32]


def of_module(mod: tvm.IRModule) -> str:
    """A module's structure, names, attributes and constants."""
    digest = Digest()
    for var in graph.inputs(mod):
        digest.value((str(var.name), graph.shape_of(var), graph.dtype_of(var)))
    for name, op, call in graph.walk(mod):
        attributes = graph.attributes(call) if op else {}
        digest.value((name, op, sorted(attributes.items(), key=str)))
        for index, operand in enumerate(getattr(call, "args", [])):
            if graph.is_constant(operand):
                digest.array(str(index), graph.numpy_of(operand))
            else:
                digest.value(str(operand))
    digest.value([str(v.name) for v in graph.outputs(mod)])
    return digest.text()


def of_data(parts: Iterable[Mapping[str, Tensor]]) -> str:
    """Calibration data, sample by sample: how they are grouped into parts makes no difference."""
    digest = Digest()
    for part in parts:
        for index in range(len(next(iter(part.values())))):
            for name in sorted(part):
                digest.array(name, part[name][index : index + 1].numpy())
    return digest.text()


def key(mod: str, data: str, measure: Measure, widths: Sequence[Any], recipe: Recipe) -> str:
    """The name of a measurement.

    Args:
        mod: what `of_module` gave.
        data: what `of_data` gave.
        measure: which, and its options.
        widths: that are measured.
        recipe: how the network would be quantized.
    """
    digest = Digest()
    digest.value((mod, data, tuple(widths), [getattr(measure, field) for field in MEASURE]))
    asked = recipe.as_dict()
    digest.value(json.dumps({field: asked[field] for field in RECIPE}, sort_keys=True))
    digest.value((nybble.__version__, torch.__version__, _code()))
    return digest.text()


@cache
def _code() -> str:
    """What the numbers are made by."""
    digest = hashlib.sha256()
    root = Path(__file__).resolve().parents[1]
    for name in _SOURCES:
        path = root / name
        for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()
