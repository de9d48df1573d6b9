"""Running a deployed library: inference, times, and every layer's output."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nybble.errors import ArtifactError
from nybble.runtime import engine, gpu, host
from nybble.runtime.arrays import Binder, emptied, nothing
from nybble.runtime.instruments import Observer, Stopwatch, Tracker, called
from nybble.runtime.manifest import Layer, Manifest, read_all


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

    Of a file with several variants the best that this machine can run is opened, or the one that
    the environment's ``NYBBLE_VARIANT`` names: one for its GPU before those for its CPU.

    Args:
        path: a file that `nybble.Artifact.save` wrote.
        threads: that kernels run on; None means `nybble.runtime.engine.default_threads`.

    Raises:
        ArtifactError: the file is unreadable, foreign, truncated or damaged, this machine's CPU or
            GPU cannot run it, or there are not as many CPUs as ``threads``.
    """
    most = len(host.cpus())
    count = engine.default_threads() if threads is None else threads
    if not 1 <= count <= most:
        raise ArtifactError(
            f"threads={count}: this process may use {most} CPU(s); give 1 to {most}."
        )
    variants = read_all(path)
    chosen = variants[host.choose([variant.manifest for variant in variants])]
    library = engine.open_variant(Path(path), chosen)
    try:
        return Session(library, chosen.manifest, count)
    except (RuntimeError, AttributeError) as error:
        raise ArtifactError(f"{path}: the TVM runtime refuses it: {error}") from error


class Session:
    """A loaded network, for any number of threads at a time; made by `load`.

    Each thread that calls runs on a virtual machine of its own; they share code and constants. On a
    GPU calls take turns.

    Attributes:
        manifest: what the library says about itself.
        threads: that kernels run on.
    """

    def __init__(self, library: engine.Library, manifest: Manifest, threads: int):
        self.manifest = manifest
        self.threads = threads
        self._library = library
        on_gpu = manifest.device is not None
        self._memory = gpu.Memory(engine.ffi()) if on_gpu else engine.Memory()
        self._turns: Any = threading.RLock() if on_gpu else nullcontext()
        self._idle = [library.machine()]
        self._bind = Binder(manifest.inputs, engine.release_memory)

    def __repr__(self) -> str:
        return f"Session({self.manifest!r}, threads={self.threads})"

    def __call__(self, *inputs: Any) -> NDArray[Any] | dict[str, NDArray[Any]]:
        """Runs the network.

        Args:
            inputs: one array per input in the manifest's order, or one mapping by input name.

        Returns:
            The output, or a dict by output name where there are several; without elements for
            inputs without (batch 0).

        Raises:
            ArtifactError: the inputs do not fit the manifest, or one is empty and an output is not.
        """
        arrays = self._bind(inputs)
        if self._computes(arrays):
            results = self._results(arrays)
        else:
            ends = self.manifest.inputs, self.manifest.outputs
            results = nothing(*ends, arrays, self._results)
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
        tracker = Tracker(self.manifest, observer, self._memory.give)
        try:
            with self._turns:
                self._run(self._tensors(_as_tuple(inputs)), tracker.on_call)
        except RuntimeError:
            if tracker.failure is not None:
                raise tracker.failure from None
            raise
        tracker.finish()

    def profile(self, inputs: Any, repeats: int = 10) -> list[LayerTime]:
        """Median time of every layer, measured inside the deployed library, in call order.

        Handing a kernel's arguments to the clock costs about a microsecond, which stays in each
        time; `benchmark` is free of it.

        Args:
            inputs: an array, a tuple of arrays, or a mapping by input name.
            repeats: measured calls, at least 1; one more warms up.

        Raises:
            ArtifactError: the inputs do not fit, ``repeats`` is not positive, or the library's
                calls are not its manifest's.
        """
        _at_least_once(repeats)
        tensors, runs = self._tensors(_as_tuple(inputs)), []
        for _ in range(repeats + 1):
            watch = Stopwatch(self.manifest, self._memory.wait if self.manifest.device else None)
            self._run(tensors, watch.on_call)
            runs.append(watch.seconds())
        medians = [statistics.median(times) for times in zip(*runs[1:], strict=True)]
        return [LayerTime(la, t) for la, t in zip(called(self.manifest), medians, strict=True)]

    def benchmark(self, inputs: Any, repeats: int = 20, warmup: int = 3) -> Benchmark:
        """Times whole calls, without checks and conversions of the inputs.

        Of GPUs: until the device is done, with inputs and outputs in its memory.

        Args:
            inputs: an array, a tuple of arrays, or a mapping by input name.
            repeats: measured calls.
            warmup: calls before them.

        Raises:
            ArtifactError: the inputs do not fit the manifest, or ``repeats`` is not positive.
        """
        _at_least_once(repeats)
        tensors, times = self._tensors(_as_tuple(inputs)), []
        for _ in range(warmup):
            self._run(tensors)
        self._memory.wait()
        for _ in range(repeats):
            start = time.perf_counter()
            self._run(tensors)
            self._memory.wait()
            times.append(time.perf_counter() - start)
        return Benchmark(tuple(times), self.threads)

    def _computes(self, arrays: list[NDArray[Any]]) -> bool:
        """Whether there is anything to compute; an empty cache does not keep a network from it."""
        if all(array.size for array in arrays):
            return True
        return not emptied(self.manifest.inputs, self.manifest.outputs, arrays)

    def _results(self, arrays: list[NDArray[Any]]) -> list[NDArray[Any]]:
        with self._turns:
            return self._arrays(self._run(self._memory.take(arrays)))

    def _tensors(self, inputs: tuple[Any, ...]) -> list[Any]:
        arrays = self._bind(inputs)
        if not self._computes(arrays):
            raise ArtifactError("An input has no elements, so there is nothing to run.")
        return self._memory.take(arrays)

    def _run(self, tensors: list[Any], on_call: Callable[..., int] | None = None) -> Any:
        """One call on a machine that no other thread is using."""
        try:
            machine = self._idle.pop()
        except IndexError:
            machine = self._library.machine()
        call = partial(machine.traced if on_call else machine.run, *tensors)
        try:
            if on_call is not None:
                machine.instrument(engine.ffi().convert(on_call))
            return engine.run(self.threads, call) if self.manifest.device is None else call()
        finally:
            if on_call is not None:
                machine.instrument(None)
            self._idle.append(machine)

    def _arrays(self, result: Any) -> list[NDArray[Any]]:
        """The outputs as arrays that own their memory through the runtime's tensors."""
        single = len(self.manifest.outputs) == 1 and hasattr(result, "__dlpack__")
        return [self._memory.give(tensor) for tensor in ([result] if single else result)]


def _as_tuple(inputs: Any) -> tuple[Any, ...]:
    return inputs if isinstance(inputs, tuple) else (inputs,)


def _at_least_once(repeats: int) -> None:
    if repeats < 1:
        raise ArtifactError(f"repeats={repeats}: at least one call must be measured.")
