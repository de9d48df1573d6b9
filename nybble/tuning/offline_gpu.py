"""The part of an offline batch that knows GPUs: which one it is, and candidates timed as graphs.

It travels with the batch, beside Nybble's runtime, and needs NumPy and TVM's runtime. Networks
launch their kernels as CUDA graphs, so candidates are timed in graphs too: what a launch costs from
Python would hide a small kernel's time. Operands come in several sets, used in turn, so that large
ones are as cold as in a network.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nybble.runtime import engine, gpu
from nybble.runtime.events import Events, Launch

COLD = 256 << 20  # bytes of operands in turn: more than any cache
SETS = 8  # at most
IN_GRAPH = 64  # calls
SOME = 8  # calls that tell how long one takes
SHORTEST = 1e-7  # seconds of any call
SYMBOL = "main"


def described(device: Any, target: str) -> dict[str, Any]:
    """The GPU as the times' first line has it; ends the script where code for it is missing.

    Args:
        device: architectures and portable code, as of `nybble.runtime.manifest.Device`.
        target: that the batch was made for.
    """
    found = gpu.find()
    if isinstance(found, str):
        sys.exit(f"Compiled for {target}, and {found}.")
    if not gpu.fits(device, found.capability):
        sys.exit(f"Compiled for {target}; this GPU, {found.name}, is sm_{found.capability}.")
    return {"cpu": found.name, "caches": [], "capability": found.capability}


class GpuRunner:
    """Code with its operands on the GPU; what `nybble.tuning.runner.race` asks of a side.

    Attributes:
        once: seconds of a call, about; known after `first`.

    Args:
        library: a file with the function `SYMBOL`.
        arrays: inputs and constants.
        output: an array like the output, of bytes that no kernel is expected to write.
    """

    def __init__(self, library: str, arrays: Sequence[NDArray[Any]], output: NDArray[Any]):
        ffi = engine.ffi()
        gpu.load_runtime()
        self._module = ffi.get_global_func("ffi.Module.load_from_file.so")(library, "so")
        self._call, self._ffi = self._module[SYMBOL], ffi
        size = sum(array.nbytes for array in arrays) + output.nbytes
        count = max(2, min(COLD // max(size, 1) + 1, SETS))
        self._memories = [gpu.Memory(ffi) for _ in range(count)]
        self._sets = [memory.take([*arrays, output]) for memory in self._memories]
        self._graphs: dict[int, Launch] = {}
        self._events: Events | None = None
        self.once = 0.0

    def first(self) -> NDArray[Any]:
        """Runs it with every set; the output of the first."""
        for i in range(len(self._sets)):
            self._run(i)
        self._memories[0].wait()
        start = time.perf_counter()
        for i in range(SOME):
            self._run(i)
        self._memories[0].wait()
        self.once = max((time.perf_counter() - start) / SOME, SHORTEST)
        return self.read()

    def read(self) -> NDArray[Any]:
        """The first output; those of all sets are alike."""
        outputs = [m.give(s[-1]) for m, s in zip(self._memories, self._sets, strict=True)]
        for other in outputs[1:]:
            if not np.array_equal(outputs[0], other, equal_nan=outputs[0].dtype.kind == "f"):
                return np.full_like(outputs[0], 0x55)  # wrong, whatever is expected
        return outputs[0]

    def seconds(self, count: int) -> float:
        """Mean seconds of at least that many calls.

        Graphs are made here, after the first calls of all sides: memory that TVM's pool gave to
        one of them may have moved until then.
        """
        calls = min(count, IN_GRAPH)
        events = self._events = self._events or Events()
        if calls not in self._graphs:
            self._graphs[calls] = self._graph(events, calls)
        times, launch = ceil(count / calls), self._graphs[calls]

        def launches() -> None:
            for _ in range(times):
                launch()

        return max(events.seconds(launches) / (times * calls), SHORTEST)

    def _graph(self, events: Events, calls: int) -> Launch:
        device = self._ffi.Device(*gpu.DEVICE)

        def on_stream(stream: int) -> Any:
            return self._ffi.use_raw_stream(device, stream)

        return events.graph(self._run, calls, on_stream)[0]

    def _run(self, i: int) -> None:
        self._call(*self._sets[i % len(self._sets)])
