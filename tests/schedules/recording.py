"""Records for tests: of one linear layer on this machine, unless told otherwise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from nybble.schedules.kernel import Epilogue, Problem, TensorSpec
from nybble.schedules.machine import Machine
from nybble.schedules.records import SURE, Record
from nybble.schedules.target import resolve

V3 = resolve("x86-64-v3")
HERE = Machine.here(V3)
ELSEWHERE = replace(HERE, cpu="another CPU")
AVX2 = ("cpu.int8.avx2", "int8")
LINEAR = Problem(
    "linear",
    (TensorSpec((8, 64), "uint8"),),
    TensorSpec((8, 32), "int32"),
    weights=TensorSpec((32, 64), "int8"),
)
CONV = Problem(
    "conv2d",
    (TensorSpec(("n", 14, 14, 32), "uint8"),),
    TensorSpec(("n", 14, 14, 64), "uint8"),
    (("dilation", (1, 1)), ("groups", 1), ("pad_value", 0), ("padding", (1, 1, 1, 1)),
     ("strides", (1, 1))),
    TensorSpec((64, 3, 3, 32), "int8"),
    Epilogue("requantize", 0, 255),
)  # fmt: skip


def record(ratio: float = 0.8, **changes: Any) -> Record:
    """A record of the layer's default kernel, alone on one thread."""
    given: dict[str, Any] = {
        "problem": LINEAR, "kernel": AVX2[0], "weights": AVX2[1], "decisions": (),
        "seconds": 1e-4, "ratio": ratio, "noise": 0.02, "threads": 1, "machine": HERE,
        "reference": AVX2, "turns": SURE,
    }  # fmt: skip
    return Record(**{**given, **changes})


def decided(**decisions: Any) -> tuple[tuple[str, Any], ...]:
    """Decisions as records have them."""
    return tuple(sorted(decisions.items()))
