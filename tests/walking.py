"""What the tests of the whole walk share: networks, and the law beside the library."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

import nybble
from nybble.report.parity import ParityReport, parity
from nybble.runtime import host
from nybble.schedules.target import host_features, resolve
from tests import models

SMALL, LARGE = 32, 64


def runs_here(target: str) -> None:
    """Skips the test where this machine cannot run what is compiled for ``target``."""
    cpu = resolve(target)
    if cpu.arch != host.arch() or not cpu.features <= host_features():
        pytest.skip(f"this CPU does not run {target}")


def imported(net: nn.Module, size: int, source: str, channels: int = 3) -> nybble.Model:
    example = torch.zeros(1, channels, size, size)
    if source == "torch":
        return nybble.load_torch(net, (example,))
    return nybble.load_onnx(models.export_onnx(net, example))


class Law(NamedTuple):
    """What the law makes of an input: every binding's value, and the outputs."""

    values: dict[str, Any]
    outputs: Any


def law_of(quantized: Any, x: Any) -> Law:
    values: dict[str, Any] = {}
    return Law(values, quantized.run(x, values.__setitem__))


def compared(law: Law, path: Path, x: Any, threads: int) -> tuple[ParityReport, Any]:
    """The law against the library: the outputs bit for bit, and the report of every layer."""
    session: Any = nybble.load(path, threads=threads)
    report = parity(law.values, session, x)
    called = [layer for layer in session.manifest.layers if layer["symbol"]]
    assert [row.layer for row in report.rows] == [layer["name"] for layer in called]
    assert report.threads == threads
    if not session.manifest.kept_float:
        deployed = session(x)
        assert deployed.dtype == law.outputs.dtype
        np.testing.assert_array_equal(deployed, law.outputs)
    return report, session


def assert_equal_to_the_law(
    quantized: nybble.QuantizedModel, target: str, path: Path, shape: tuple[int, ...]
) -> None:
    """Integer-only, and no difference in any layer, with 1 and 2 threads, 1 and 3 images."""
    nybble.compile(quantized, target).save(path)
    for batch in (1, 3):
        x = models.images(batch, shape, seed=9)
        law = law_of(quantized, x)
        for threads in (1, 2):
            report, session = compared(law, path, x, threads)
            assert [row for row in report.rows if row.differing] == []
            assert report.equal
            assert all(row.exact for row in report.rows)
            assert session.manifest.float_ops == ()
            assert session.manifest.kept_float == ()


@cache
def tiny() -> Any:
    return imported(models.tiny_cnn(SMALL), SMALL, "onnx")


@cache
def few() -> Any:
    return models.images(8, (3, SMALL, SMALL), seed=5)
