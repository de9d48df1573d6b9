"""Running a deployed library: inference, times, and every layer's output."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nybble.errors import ArtifactError
from nybble.runtime import engine, host
from nybble.runtime.arrays import bind
from nybble.runtime.manifest import Layer, Manifest, read

Observer = Callable[[Layer, NDArray[Any]], None]
Probe = Callable[[Layer, bool, NDArray[Any]], None]


class LayerTime(NamedTuple):
    """One layer's share of a call."""

    layer: Layer
    seconds: float


@dataclass(frozen=True)
class Benchmark:
    """Wall times of whole calls, in seconds.

    Attributes:
        times: every measured call, in order.
        threads: that the kernels ran on.
    """

    times: tuple[float, ...]
    threads: int

    @property
    def median(self) -> float:
        """The typical call."""
        return statistics.median(self.times)

    @property
    def best(self) -> float:
        """The fastest call: the machine undisturbed."""
        return min(self.times)

    def percentile(self, share: float) -> float:
        """The time that ``share`` percent of the calls stay under."""
        return float(np.percentile(self.times, share))


def load(path: str | Path, threads: int | None = None) -> Session:
    """Opens a deployed library after checking every byte of it.

    Args:
        path: a file that `nybble.Artifact.save` wrote.
        threads: that kernels run on; None means ``TVM_NUM_THREADS`` or the physical cores.

    Raises:
        ArtifactError: the file is unreadable, foreign, truncated or damaged, this CPU cannot run
            it, or ``threads`` is no positive number.
    """
    if threads is not None and threads < 1:
        raise ArtifactError(f"threads={threads}: at least one thread is needed.")
    manifest = read(path)
    host.check(manifest)
    return Session(engine.open_vm(Path(path)), manifest, threads or engine.default_threads())


class Session:
    """A loaded network. Call it from one thread at a time; made by `load`.

    Attributes:
        manifest: what the library says about itself.
        threads: that kernels run on.
    """

    def __init__(self, vm: Any, manifest: Manifest, threads: int):
        self.manifest = manifest
        self.threads = threads
        self._vm = vm
        self._main = vm["main"]
        self._tensor = engine.ffi().from_dlpack

    def __call__(self, *inputs: Any) -> NDArray[Any] | dict[str, NDArray[Any]]:
        """Runs the network.

        Args:
            inputs: one array per input in the manifest's order, or one mapping by input name.

        Returns:
            The output, or a dict by output name where there are several.

        Raises:
            ArtifactError: the inputs do not fit the manifest.
        """
        results = self._arrays(self._run(self._tensors(inputs)))
        if len(results) == 1:
            return results[0]
        return {p.name: array for p, array in zip(self.manifest.outputs, results, strict=True)}

    def observe(self, inputs: Any, observer: Observer) -> None:
        """Runs once and shows every layer's output, in call order, as the kernels wrote it.

        Args:
            inputs: an array, a tuple of arrays, or a mapping by input name.
            observer: called with the layer and its output: a read-only view of memory that later
                layers overwrite, so what shall last must be copied.

        Raises:
            ArtifactError: the inputs do not fit, or the library's calls are not its manifest's.
        """

        def after(layer: Layer, before: bool, output: NDArray[Any]) -> None:
            if not before:
                output.flags.writeable = False
                observer(layer, output)

        self._probed(self._tensors(_as_tuple(inputs)), after)

    def profile(self, inputs: Any, repeats: int = 10) -> list[LayerTime]:
        """Median time of every layer, measured inside the deployed library, in call order.

        Args:
            inputs: an array, a tuple of arrays, or a mapping by input name.
            repeats: measured calls; one more warms up.

        Raises:
            ArtifactError: the inputs do not fit, or the library's calls are not its manifest's.
        """
        tensors, clock = self._tensors(_as_tuple(inputs)), time.perf_counter
        layers = self._called_layers()
        times: list[list[float]] = [[] for _ in layers]
        starts: list[float] = []
        ends: list[float] = []

        def stamp(_layer: Layer, before: bool, _output: NDArray[Any]) -> None:
            (starts if before else ends).append(clock())

        for repeat in range(repeats + 1):
            starts.clear()
            ends.clear()
            self._probed(tensors, stamp)
            if repeat:
                for kept, start, end in zip(times, starts, ends, strict=True):
                    kept.append(end - start)
        return [LayerTime(la, statistics.median(t)) for la, t in zip(layers, times, strict=True)]

    def benchmark(self, inputs: Any, repeats: int = 20, warmup: int = 3) -> Benchmark:
        """Times whole calls, without checks and conversions of the inputs.

        Args:
            inputs: an array, a tuple of arrays, or a mapping by input name.
            repeats: measured calls.
            warmup: calls before them.

        Raises:
            ArtifactError: the inputs do not fit the manifest, or ``repeats`` is not positive.
        """
        if repeats < 1:
            raise ArtifactError(f"repeats={repeats}: at least one call must be measured.")
        tensors, times = self._tensors(_as_tuple(inputs)), []
        for _ in range(warmup):
            self._run(tensors)
        for _ in range(repeats):
            start = time.perf_counter()
            self._run(tensors)
            times.append(time.perf_counter() - start)
        return Benchmark(tuple(times), self.threads)

    def _tensors(self, inputs: tuple[Any, ...]) -> list[Any]:
        return [self._tensor(array) for array in bind(self.manifest.inputs, inputs)]

    def _run(self, tensors: list[Any]) -> Any:
        engine.use_threads(self.threads)
        return self._main(*tensors)

    def _arrays(self, result: Any) -> list[NDArray[Any]]:
        """The outputs as arrays that own their memory through the runtime's tensors."""
        single = len(self.manifest.outputs) == 1 and hasattr(result, "__dlpack__")
        return [np.from_dlpack(tensor) for tensor in ([result] if single else result)]

    def _called_layers(self) -> list[Layer]:
        return [layer for layer in self.manifest.layers if layer["symbol"] is not None]

    def _probed(self, tensors: list[Any], probe: Probe) -> None:
        """One run with ``probe`` called right before and right after every layer."""
        tracker = _Tracker(self._called_layers(), probe)
        self._vm["set_instrument"](engine.ffi().convert(tracker.on_call))
        try:
            self._run(tensors)
        except RuntimeError:
            if tracker.failure is not None:
                raise tracker.failure from None
            raise
        finally:
            self._vm["set_instrument"](None)
        if tracker.position != len(tracker.layers):
            missed = tracker.layers[tracker.position]["name"]
            raise ArtifactError(f"The library never ran the manifest's layer '{missed}'.")


class _Tracker:
    """Follows the VM's calls along the manifest's layers."""

    def __init__(self, layers: list[Layer], probe: Probe):
        self.layers = layers
        self.position = 0
        self.failure: BaseException | None = None
        self._symbols = {layer["symbol"] for layer in layers}
        self._probe = probe

    def on_call(self, _function: Any, name: str, before: bool, _result: Any, *args: Any) -> int:
        """What the VM calls around every function; 0 lets the call go ahead."""
        if name not in self._symbols:  # the VM's own: shapes and storage
            return 0
        try:
            self._on_layer(name, before, np.from_dlpack(args[-1]))
        except BaseException as error:  # C++ between here and the caller would lose its type
            self.failure = error
            raise
        return 0

    def _on_layer(self, name: str, before: bool, output: NDArray[Any]) -> None:
        if self.position == len(self.layers):
            raise ArtifactError(f"The library calls '{name}' after the manifest's last layer.")
        layer = self.layers[self.position]
        if layer["symbol"] != name:
            raise ArtifactError(
                f"The library calls '{name}' where the manifest has layer '{layer['name']}'."
            )
        self._probe(layer, before, output)
        self.position += not before


def _as_tuple(inputs: Any) -> tuple[Any, ...]:
    return inputs if isinstance(inputs, tuple) else (inputs,)
