"""Networks tried on data: deployed, timed, their outputs beside labels and float's outputs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nybble import known, walk
from nybble.errors import NybbleError
from nybble.ir import graph
from nybble.model import Model, QuantizedModel, named_inputs
from nybble.runtime.manifest import Manifest
from nybble.runtime.session import Session, load

Array = NDArray[Any]
Advance = Callable[[int, int | None], None]
CHUNK = 32
REPEATS, WARMUP = 50, 5


@dataclass(frozen=True)
class Evaluation:
    """Data to try networks on.

    Attributes:
        inputs: float32 as the network takes them, with a batch axis: an array, or one for each
            input by name.
        labels: (N,) integers, the right class of each sample; None where nobody knows.
    """

    inputs: Array | Mapping[str, Array]
    labels: Array | None = None


@dataclass(frozen=True)
class Ready:
    """Data that fits a network.

    Attributes:
        inputs: by name.
        labels: (N,), or None.
        size: samples in one call.
    """

    inputs: dict[str, Array]
    labels: Array | None
    size: int

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def chunks(self) -> Iterator[dict[str, Array]]:
        """The inputs, ``size`` samples at a time."""
        for start in range(0, len(self), self.size):
            yield {name: x[start : start + self.size] for name, x in self.inputs.items()}


@dataclass(frozen=True)
class Tried:
    """What a deployed network did.

    Attributes:
        manifest: of the library.
        size: bytes of the library.
        seconds: median latency of one sample.
        outputs: in order, all samples.
    """

    manifest: Manifest
    size: int
    seconds: float
    outputs: list[Array]

    def accuracy(self, labels: Array | None) -> float | None:
        """Share of samples whose largest output is the label."""
        if labels is None:
            return None
        return float(np.mean(self.outputs[0].argmax(-1) == labels))

    def error(self, wanted: list[Array]) -> float | None:
        """Σ (y - ŷ)² / Σ y² over all outputs; None where float's are all zero."""
        pairs = [(y.astype(float), z.astype(float))
                 for y, z in zip(wanted, self.outputs, strict=True)]  # fmt: skip
        signal = sum(float(np.square(y).sum()) for y, _ in pairs)
        noise = sum(float(np.square(y - z).sum()) for y, z in pairs)
        return noise / signal if signal else None


def ready(model: Model, given: Evaluation) -> Ready:
    """Checks data against a network.

    Raises:
        NybbleError: an input is missing or has another shape or dtype, there are no samples, they
            do not fill the batches that the network fixes, or the labels do not go with them.
    """
    inputs = named_inputs(model.module, given.inputs)
    lengths = {len(x) for x in inputs.values()}
    if len(lengths) != 1 or 0 in lengths:
        raise NybbleError(f"The data to evaluate has inputs of {sorted(lengths)} samples.")
    count = lengths.pop()
    extents = [graph.shape_of(v)[0] for v in graph.inputs(model.module)]
    fixed = next((e for e in extents if isinstance(e, int)), None)
    if fixed is not None and count % fixed:
        raise NybbleError(
            f"The data to evaluate has {count} samples; the network takes {fixed} at a time. Leave "
            f"{count % fixed} out."
        )
    if given.labels is not None:
        _check_labels(model, np.asarray(given.labels), count)
    labels = None if given.labels is None else np.asarray(given.labels)
    return Ready(inputs, labels, fixed or CHUNK)


def _check_labels(model: Model, labels: Array, count: int) -> None:
    shape = graph.shape_of(graph.outputs(model.module)[0])
    if len(shape) != 2:
        raise NybbleError(
            f"Labels need a network with outputs (N, classes), this one has {shape}. Leave the "
            "labels out: the outputs are then compared with float's."
        )
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise NybbleError(
            f"The labels are {labels.dtype} {labels.shape}; expected integers ({count},), one for "
            "each sample."
        )


@dataclass(frozen=True)
class Deployment:
    """How networks are compiled to be tried.

    Attributes:
        target: as for `nybble.compile`.
        measure: as there.
        prefer: as there.
        records: as there.
    """

    target: walk.Target = "native"
    measure: bool = False
    prefer: str = "speed"
    records: known.Given = None

    def tried(self, network: Model | QuantizedModel, data: Ready, advance: Advance) -> Tried:
        """Compiles, measures and runs one network.

        Raises:
            ArtifactError: this machine cannot link or run the target's code.
        """
        artifact = walk.compile(
            network, self.target, measure=self.measure, prefer=self.prefer, records=self.records
        )
        with tempfile.TemporaryDirectory(prefix="nybble-") as folder:
            path = artifact.save(Path(folder) / "net.so")
            session = load(path)
            return Tried(session.manifest, path.stat().st_size, _seconds(session, data),
                         _outputs(session, data, advance))  # fmt: skip


def _seconds(session: Session, data: Ready) -> float:
    one = session.manifest.inputs[0].shape[0]
    size = one if isinstance(one, int) else 1
    inputs = {name: x[:size] for name, x in data.inputs.items()}
    return session.benchmark(inputs, REPEATS, WARMUP).median / size


def _outputs(session: Session, data: Ready, advance: Advance) -> list[Array]:
    found: list[list[Array]] = []
    for done, chunk in enumerate(data.chunks(), 1):
        given: Any = session(chunk)
        found.append(list(given.values()) if isinstance(given, dict) else [given])
        advance(min(done * data.size, len(data)), len(data))
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]
