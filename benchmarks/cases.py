"""What is measured: one row a case, with its peers and what it must reach."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import prepare
from benchmarks.problems import Problem, addition, conv, encoder, linear, network, pooling


@dataclass(frozen=True)
class Contender:
    """A peer's way to run a problem.

    Attributes:
        name: as the tables call it.
        kind: ``int8``, ``int4``, ``int2``, ``int1`` or ``float``.
        engine: a key of `engines.ENGINES`.
        file: the name of its file in the problem's folder.
        make: makes that file; raises ImportError where the peer is not installed.
        option: for the engine.
    """

    name: str
    kind: str
    engine: str
    file: str
    make: Callable[[Problem], Path]
    option: str = ""


def _ggml(kind: str, option: str) -> Contender:
    return Contender(f"ggml {option}", kind, "ggml", "weights.npy", prepare.weights, option)


def _ort(name: str, kind: str, file: str, make: Callable[[Problem], Path]) -> Contender:
    return Contender(f"ORT {name}", kind, "onnxruntime", file, make)


_TWO_BITS = ("int2", "onnxruntime", "ort-2bits.onnx", partial(prepare.ort_nbits, 2))
CONTENDERS = {
    peer.name: peer
    for peer in (
        _ort("f32", "float", "float.onnx", prepare.source),
        Contender("torch f32", "float", "torch", "float.pt", prepare.float_torch),
        _ort("int8", "int8", "ort-int8.onnx", prepare.ort_int8),
        _ort("int8 dynamic", "int8", "ort-dynamic.onnx", prepare.ort_dynamic),
        Contender("OpenVINO int8", "int8", "openvino", "openvino-int8.xml", prepare.openvino_int8),
        Contender("fbgemm int8", "int8", "fbgemm", "weights.npy", prepare.weights),
        _ggml("int8", "Q8_0"),
        _ort("4 bits", "int4", "ort-4bits.onnx", partial(prepare.ort_nbits, 4)),
        Contender("OpenVINO int4", "int4", "openvino", "openvino-int4.xml", prepare.openvino_int4),
        _ggml("int4", "Q4_0"),
        _ggml("int4", "Q4_K"),
        Contender("ORT 2 bits", *_TWO_BITS),
        Contender("ORT 2 bits LUT", *_TWO_BITS, option="lut"),
        _ggml("int2", "TQ1_0"),
        _ggml("int2", "TQ2_0"),
        _ggml("int2", "Q2_0"),
        _ggml("int1", "Q1_0"),
    )
}
INT8 = ("ORT int8", "ORT int8 dynamic", "OpenVINO int8", "fbgemm int8", "ggml Q8_0")
INT4 = ("ORT 4 bits", "OpenVINO int4", "ggml Q4_0", "ggml Q4_K")
INT2 = ("ORT 2 bits", "ORT 2 bits LUT", "ggml TQ1_0", "ggml TQ2_0", "ggml Q2_0")
NETWORK_INT8 = ("ORT int8", "OpenVINO int8")
FLOAT = ("ORT f32", "torch f32")
OWN = "Nybble int8"


@dataclass(frozen=True)
class Case:
    """One row.

    Attributes:
        problem: the float network.
        recipe: fields of `nybble.Recipe`; None compiles the float network.
        peers: names of `CONTENDERS`, or `OWN`.
        goals: the ratio to reach over the best peer of a kind.
        cold: rotate copies of the weights larger than the caches.
        tag: distinguishes rows of equal problem and widths.
    """

    problem: Problem
    recipe: Mapping[str, Any] | None
    peers: tuple[str, ...]
    goals: Mapping[str, float] = field(default_factory=dict)
    cold: bool = False
    tag: str = ""

    @property
    def name(self) -> str:
        """Unique, and what ``--only`` looks at: ``resnet18-w4a8``."""
        return f"{self.problem.name}-{prepare.label(self.recipe)}{self.tag}"

    @property
    def bits(self) -> float:
        """Bits of a weight as they are read; a ternary one takes two."""
        if self.recipe is None:
            return 32
        bits = self.recipe.get("weights", 8)
        return 2 if bits == "ternary" else int(bits)

    @property
    def limit(self) -> str:
        """Which of the machine's limits bounds it: a key of `limits.Limits.macs`."""
        if self.recipe is None:
            return "float32"
        return "int4" if self.bits < 8 else "int8"

    @property
    def bytes(self) -> int:
        """What one run must read at least: the weights, or activations where there are none."""
        width = 4 if self.recipe is None else 1
        return int(self.problem.weights * self.bits / 8) or self.problem.activations * width


def _plain(weights: int | str, activations: int | str, **more: Any) -> dict[str, Any]:
    """Widths for every layer, the first and the last included."""
    return {"weights": weights, "activations": activations, "first_last": None, **more}


W4G128 = _plain(4, "float", group=128)


def networks() -> Iterator[Case]:
    """Whole networks; first and last layers keep 8 bits."""
    goals = {"resnet18": (1.0, 1.4, 1.5, 1.6), "resnet50": (1.0, 1.4, 1.5, 1.6)}
    widths = ((8, 8), (4, 8), (4, 4), (2, 4))
    for name, marks in goals.items():
        for (w, a), mark in zip(widths, marks, strict=True):
            recipe = {"weights": w, "activations": a}
            yield Case(network(name), recipe, NETWORK_INT8, {"int8": mark})
    for w, a in widths:
        recipe = {"weights": w, "activations": a}
        goal = {"int8": 1.3} if (w, a) == (8, 8) else {}
        yield Case(network("mobilenet_v2"), recipe, NETWORK_INT8, goal)
    peers = (*NETWORK_INT8, "ORT int8 dynamic")
    yield Case(encoder(128, 768, 12), _plain(8, 8), peers)


def products() -> Iterator[Case]:
    """Matrix products, 4096 x 4096."""
    yield Case(linear(128, 4096, 4096), _plain(8, 8), INT8, {"int8": 1.05})
    for rows in (16, 128, 512):
        if rows != 128:
            yield Case(linear(rows, 4096, 4096), _plain(8, 8), INT8)
        normal, ternary = linear(rows, 4096, 4096), linear(rows, 4096, 4096, "ternary")
        yield Case(normal, _plain(4, 8), INT4 + INT8, {"int4": 1.7, "int8": 1.0})
        yield Case(normal, W4G128, INT4 + INT8, {"int4": 1.7})
        yield Case(ternary, _plain("ternary", 8), INT2 + INT8, {"int2": 1.7})
        yield Case(ternary, _plain(2, 8), INT2 + INT8, {"int2": 1.7})


def vectors() -> Iterator[Case]:
    """Matrix-vector products: 4096 x 4096 in cache, 4096 x 11008 from memory."""
    for outputs, cold in ((4096, False), (11008, True)):
        tag = "-cold" if cold else ""
        plain, ternary, binary = (
            linear(1, 4096, outputs, g) for g in ("normal", "ternary", "binary")
        )
        yield Case(plain, _plain(8, 8), INT8, {"int8": 1.0}, cold, tag)
        yield Case(plain, W4G128, INT4, {"int4": 1.3} if cold else {}, cold, tag)
        yield Case(plain, _plain(4, 8), INT4, {"int4": 1.3} if cold else {}, cold, tag)
        goal = {"int2": 1.3 if cold else 2.0}
        yield Case(ternary, _plain("ternary", 8), INT2, goal, cold, tag)
        peers = (OWN, *INT2, "ggml Q1_0")
        yield Case(binary, _plain(1, 8), peers, {"own": 3.0}, cold, tag)


def convolutions() -> Iterator[Case]:
    """Bit-serial convolutions beside our own 8 bits, and 8 bits beside the peers."""
    for problem in (conv(64, 56, 3), conv(256, 14, 3), conv(256, 28, 1)):
        yield Case(problem, _plain(8, 8), NETWORK_INT8, {"int8": 1.0})
        yield Case(problem, _plain(4, 8), (OWN, *NETWORK_INT8))
        for w, a in ((1, 1), (1, 2), (2, 2)):
            yield Case(problem, _plain(w, a), (OWN, *NETWORK_INT8), {"own": 2.5})


def others() -> Iterator[Case]:
    """What else a network does, and what may remain in float."""
    for size in (56, 14):
        yield Case(conv(128, size, 3, 128), _plain(8, 8), NETWORK_INT8, {"int8": 1.3})
    for kind in ("max", "average", "global"):
        yield Case(pooling(kind), _plain(8, 8), (*NETWORK_INT8, "ORT f32"))
    yield Case(addition(), _plain(8, 8), (*NETWORK_INT8, "ORT f32"))
    within = {"float": 0.77}  # 1.3 times the time of ONNX Runtime
    yield Case(network("resnet18"), None, FLOAT, within)
    yield Case(conv(64, 56, 3), None, FLOAT, within)
    yield Case(conv(128, 56, 3, 128), None, FLOAT, within)
    for rows in (1, 128):
        yield Case(linear(rows, 4096, 4096), None, FLOAT, within)


def cases() -> list[Case]:
    """All of them, in the order of the tables."""
    return [*networks(), *products(), *vectors(), *convolutions(), *others()]
