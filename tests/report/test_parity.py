"""Parity finds every difference, and only differences."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from nybble.errors import NybbleError
from nybble.ir import numerics
from nybble.report import parity as parity_
from nybble.report.parity import ParityReport, parity
from nybble.runtime.manifest import Layer
from nybble.runtime.session import Session

Array = NDArray[Any]
LAW: dict[str, Array] = {
    "a.out": np.arange(6, dtype=np.uint8),
    "b.out": np.array([0.5, 1.5], np.float32),
}


class Fake:
    """Stands in for a session: shows given outputs."""

    def __init__(self, outputs: dict[str, Array], float_ops: tuple[str, ...] = (), form: str = ""):
        self.outputs, self.threads, self.form = outputs, 1, form or "values"
        self.manifest = SimpleNamespace(float_ops=float_ops, kept_float=())

    def observe(self, _inputs: Any, observer: Callable[[Layer, Array], None]) -> None:
        for name, array in self.outputs.items():
            described = {"name": name[0], "kernel": "k", "output": name, "form": self.form}
            observer(cast("Layer", {**described, "dtype": "uint4"}), array)


def compared(outputs: dict[str, Array], float_ops: tuple[str, ...] = ()) -> ParityReport:
    return parity(LAW, cast("Session", Fake(outputs, float_ops)), None)


def test_equal() -> None:
    report = compared(LAW)
    assert report.equal
    assert report.elements == 8
    assert [row.layer for row in report.rows] == ["a", "b"]


@pytest.mark.parametrize("form", ["packed", "planes"])
def test_packed_outputs_are_compared_by_value(form: str) -> None:
    law = np.arange(21, dtype=np.uint8).reshape(3, 7) % 16
    stored = numerics.pack(law, "uint4") if form == "packed" else numerics.to_planes(law, "uint4")
    report = parity({"a": law}, cast("Session", Fake({"a": stored}, form=form)), None)
    assert report.equal
    assert report.elements == 21
    stored[1, 1] ^= 2
    assert (
        parity({"a": law}, cast("Session", Fake({"a": stored}, form=form)), None).rows[0].differing
    )


def test_takes_pairs_as_well() -> None:
    assert parity(iter(LAW.items()), cast("Session", Fake(LAW)), None).equal


def test_one_flipped_integer_is_found() -> None:
    wrong = LAW["a.out"].copy()
    wrong[3] = 255
    report = compared({**LAW, "a.out": wrong})
    assert not report.equal
    assert (report.rows[0].differing, report.rows[0].largest) == (1, 252.0)
    assert report.rows[1].differing == 0


def test_floats_count_unless_there_are_float_islands() -> None:
    close = {**LAW, "b.out": LAW["b.out"] + np.float32(1e-6)}
    assert not compared(close).equal
    assert compared(close, float_ops=("softmax",)).equal
    assert compared(close, float_ops=("softmax",)).rows[1].differing == 2


def test_integers_behind_a_float_island_are_shown_but_not_promised() -> None:
    law = {**LAW, "c.out": np.arange(4, dtype=np.int8)}
    tipped = {**law, "c.out": np.array([0, 1, 2, 4], np.int8)}
    session = cast("Session", Fake(tipped, float_ops=("b: relax.sigmoid",)))
    report = parity(law, session, None)
    assert [(row.layer, row.exact, row.differing) for row in report.rows] == [
        ("a", True, 0),
        ("b", False, 0),
        ("c", False, 1),
    ]
    assert report.equal
    assert not parity(law, cast("Session", Fake(tipped)), None).equal


@pytest.mark.parametrize(
    "output",
    [LAW["a.out"].astype(np.int8), LAW["a.out"].reshape(2, 3), LAW["a.out"][:5]],
    ids=["dtype", "shape", "length"],
)
def test_other_type_or_shape_differs_everywhere(output: Array) -> None:
    row = compared({"a.out": output}).rows[0]
    assert row.differing == output.size
    assert row.largest == np.inf


def test_nan_differs() -> None:
    nan = np.array([np.nan, 1.5], np.float32)
    assert parity_.difference(nan, nan) == (1, np.inf)


def test_nothing_compared_is_not_equal() -> None:
    assert not compared({}).equal


def test_library_of_another_model() -> None:
    with pytest.raises(NybbleError, match=r"'c' writes 'c.out', which the law never"):
        compared({"c.out": LAW["a.out"]})
