"""How alike every layer's output is to the float network's: signal to noise, and the cosine."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nybble.ir import interpreter
from nybble.passes import pipeline
from nybble.passes.settle import Settled
from nybble.passes.view import View

Array = NDArray[Any]
Batch = Mapping[str, Array]
See = Callable[[str, Array], None]
Run = Callable[[Batch, See], None]


@dataclass
class Sums:
    """What one layer's figures are made of, summed over samples in float64.

    Attributes:
        signal: Σ y² of the float network's output y.
        noise: Σ (y - ŷ)².
        other: Σ ŷ².
        product: Σ y·ŷ.
    """

    signal: float = 0.0
    noise: float = 0.0
    other: float = 0.0
    product: float = 0.0

    def add(self, wanted: Array, got: Array) -> None:
        """Takes in one batch of both outputs, equal in shape."""
        y, z = wanted.astype(np.float64).ravel(), got.astype(np.float64).ravel()
        self.signal += float(y @ y)
        self.noise += float((y - z) @ (y - z))
        self.other += float(z @ z)
        self.product += float(y @ z)

    @property
    def snr(self) -> float:
        """10·log10(signal / noise) in dB; infinite without noise, minus infinite without signal."""
        if self.noise == 0:
            return math.inf
        return 10 * math.log10(self.signal / self.noise) if self.signal else -math.inf

    @property
    def cosine(self) -> float:
        """Of the angle between the two; 1 where both are zero, 0 where one is."""
        size = math.sqrt(self.signal) * math.sqrt(self.other)
        if size == 0:
            return float(self.signal == self.other)
        return min(1.0, max(-1.0, self.product / size))


def fidelity(
    settled: Settled, batches: Iterable[Batch], report: Callable[[int], None] | None = None
) -> dict[str, Sums]:
    """Compares the outputs of every quantized layer with those of the float network.

    A layer's output is what lies behind its bias and its activation, rounded to its grid where it
    has one: as the next layer reads it. Errors of earlier layers are in it. Runs in torch where it
    is installed, else in NumPy, many times slower.

    Args:
        settled: the network to be deployed; `Settled.aim` is what it is compared with.
        batches: {input: float32 array with a batch axis}.
        report: called with the number of samples done.

    Returns:
        A layer -> its sums, in order of computation.
    """
    ends = _ends(settled)
    runs = _in_torch if importlib.util.find_spec("torch") else _in_numpy
    wanted_of, got_of = runs(settled)
    sums, done = {layer: Sums() for layer in settled.weights}, 0
    for batch in batches:
        pair = _Pair(ends, sums)
        wanted_of(batch, pair.keep)
        got_of(batch, pair.compare)
        done += len(next(iter(batch.values())))
        if report is not None:
            report(done)
    return sums


@dataclass(frozen=True)
class _Pair:
    """Both networks on one batch.

    Attributes:
        ends: the last tensor of every layer -> the layer.
        sums: by layer.
        wanted: the float network's outputs, by tensor.
    """

    ends: Mapping[str, str]
    sums: Mapping[str, Sums]
    wanted: dict[str, Array] = field(default_factory=dict)

    def keep(self, name: str, y: Array) -> None:
        """Remembers a layer's float output."""
        if name in self.ends:
            self.wanted[name] = y

    def compare(self, name: str, y: Array) -> None:
        """Adds up how a layer's output differs."""
        if name in self.ends:
            self.sums[self.ends[name]].add(self.wanted.pop(name), y)


def _ends(settled: Settled) -> dict[str, str]:
    """The last tensor of every layer -> the layer."""
    view, kinds = View(settled.module), settled.plan.kinds
    found = {}
    for layer in settled.weights:
        name, reader = layer, view.sole_reader(layer)
        while reader is not None and kinds[reader] in ("bias", "activation"):
            name, reader = reader, view.sole_reader(reader)
        found[name] = layer
    return found


def _in_torch(settled: Settled) -> tuple[Run, Run]:
    """The float and the quantized network, each showing every tensor."""
    torch: Any = importlib.import_module("torch")
    simulation: Any = importlib.import_module("nybble.passes.simulation")
    differentiable: Any = importlib.import_module("nybble.passes.differentiable")
    net = differentiable.Differentiable(settled.module)
    aim = net if settled.goal is None else differentiable.Differentiable(settled.aim)
    simulated = simulation.Simulation(settled, net)

    def running(network: Any, shown: Callable[[str, Any], Any]) -> Run:
        def run(batch: Batch, see: See) -> None:
            tensors = {name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in batch.items()}
            with torch.no_grad():
                network(tensors, lambda name, y: see(name, shown(name, y).numpy()))

        return run

    def rounded(name: str, y: Any) -> Any:
        return simulation.fake(y, simulated.grids[name]) if name in simulated.grids else y

    return running(aim, lambda _, y: y), running(simulated, rounded)


def _in_numpy(settled: Settled) -> tuple[Run, Run]:
    """The same, through the interpreter."""
    quantized, points = pipeline.insert(settled), set(settled.points())

    def exact(batch: Batch, see: See) -> None:
        interpreter.run(settled.aim, batch, see)

    def rounded(batch: Batch, see: See) -> None:
        def read(name: str, y: Array) -> None:
            if name not in points:  # else what is read is the rounded one
                see(name.removesuffix(READ), y)

        interpreter.run(quantized, batch, read)

    return exact, rounded


READ = ".dequantize"
"""What `nybble.passes.quantize` adds to the name of a tensor when it rounds it."""
