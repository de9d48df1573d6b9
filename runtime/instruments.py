"""What the virtual machine calls around every function: one observes outputs, one takes times.

The VM calls ``on_call(function, name, before, result, *args)`` before and after everything it does;
a kernel's name is its symbol, and its last argument is the tensor it writes. Both instruments hold
the calls against the manifest, so numbers never land on the wrong layer.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from nybble.errors import ArtifactError
from nybble.runtime.manifest import Layer, Manifest

Observer = Callable[[Layer, NDArray[Any]], None]
Give = Callable[[Any], NDArray[Any]]  # a tensor as an array
GO_ON = 0
_NOTHING = "vm.builtin.null_value"  # the VM's cheapest function: its time is the instrument's own


def called(manifest: Manifest) -> list[Layer]:
    """The layers that call a kernel, in order."""
    return [layer for layer in manifest.layers if layer["symbol"] is not None]


class Tracker:
    """Shows every layer's output to an observer.

    Attributes:
        failure: what the observer raised; C++ between it and the caller loses its type.

    Args:
        manifest: of the library.
        observer: called with each layer and its output.
        give: reads a tensor, wherever it is.
    """

    def __init__(self, manifest: Manifest, observer: Observer, give: Give):
        self.failure: BaseException | None = None
        self._layers = called(manifest)
        self._symbols = {layer["symbol"] for layer in self._layers}
        self._observer = observer
        self._give = give
        self._position = 0

    def on_call(self, _function: Any, name: str, before: bool, _result: Any, *args: Any) -> int:
        """The instrument."""
        if before or name not in self._symbols:
            return GO_ON
        try:
            layer = expected(self._layers, self._position, name)
            output = self._give(args[-1])
            output.flags.writeable = False
            self._observer(layer, output)
        except BaseException as error:
            self.failure = error
            raise
        self._position += 1
        return GO_ON

    def finish(self) -> None:
        """Raises ArtifactError when layers of the manifest were not called."""
        complete(self._layers, self._position)


class Stopwatch:
    """Times every layer in one run, without what the instrument itself costs.

    Args:
        manifest: of the library.
        wait: returns once a device has done what it was told; None where calls do it themselves.
    """

    def __init__(self, manifest: Manifest, wait: Callable[[], None] | None = None):
        self._wait = wait
        self._layers = called(manifest)
        self._timed = {layer["symbol"] for layer in self._layers} | {_NOTHING}
        self._names: list[str] = []
        self._starts: list[float] = []
        self._ends: list[float] = []

    def on_call(self, _function: Any, name: str, before: bool, _result: Any, *_args: Any) -> int:
        """The instrument: reads the clock as the first or as the last thing it does."""
        if self._wait is not None and name in self._timed:
            self._wait()
        now = time.perf_counter()
        if name in self._timed:
            if before:
                self._names.append(name)
                self._starts.append(time.perf_counter())
            else:
                self._ends.append(now)
        return GO_ON

    def seconds(self) -> list[float]:
        """Each layer's time; what an empty call takes is subtracted.

        Raises:
            ArtifactError: the calls are not the manifest's.
        """
        spans = zip(self._names, self._starts, self._ends, strict=True)
        times = [(name, end - start) for name, start, end in spans]
        empty = statistics.median([t for name, t in times if name == _NOTHING] or [0.0])
        kernels = [(name, t) for name, t in times if name != _NOTHING]
        for position, (name, _) in enumerate(kernels):
            expected(self._layers, position, name)
        complete(self._layers, len(kernels))
        return [max(t - empty, 0.0) for _, t in kernels]


def expected(layers: list[Layer], position: int, name: str) -> Layer:
    """The layer at ``position``, which must be the one that calls ``name``.

    Raises:
        ArtifactError: the manifest tells another story.
    """
    if position == len(layers):
        raise ArtifactError(f"The library calls '{name}' after the manifest's last layer.")
    layer = layers[position]
    if layer["symbol"] != name:
        raise ArtifactError(
            f"The library calls '{name}' where the manifest has layer '{layer['name']}'."
        )
    return layer


def complete(layers: list[Layer], position: int) -> None:
    """Raises ArtifactError when the calls ended before the manifest's layers did."""
    if position != len(layers):
        raise ArtifactError(
            f"The library never ran the manifest's layer '{layers[position]['name']}'."
        )
