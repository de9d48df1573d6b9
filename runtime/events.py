"""Seconds on a GPU by CUDA's events, of calls in a graph, so that launching them costs no time."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from nybble import nvidia

RELAXED = 2  # cudaStreamCaptureModeRelaxed: memory may be allocated meanwhile
Call = Callable[[int], Any]
"""Launches work on the current stream; the number tells which operands to take."""
Launch = Callable[[], Any]
"""Launches several calls on the default stream, and does not wait for them."""


class CudaError(RuntimeError):
    """A function of the CUDA runtime failed."""


class Events:
    """Times launches on the default stream; needs CUDA's runtime library loaded."""

    def __init__(self) -> None:
        self._cuda = ctypes.CDLL(nvidia.CUDART)
        self._events = [ctypes.c_void_p(), ctypes.c_void_p()]
        for event in self._events:
            self._done("cudaEventCreate", ctypes.byref(event))

    def seconds(self, launch: Launch) -> float:
        """From the begin of a launch to the end of its work."""
        first, last = self._events
        self._done("cudaEventRecord", first, None)
        launch()
        self._done("cudaEventRecord", last, None)
        self._done("cudaEventSynchronize", last)
        found = ctypes.c_float()
        self._done("cudaEventElapsedTime", ctypes.byref(found), first, last)
        return found.value / 1e3

    def graph(self, call: Call, count: int, on_stream: Callable[[int], Any]) -> tuple[Launch, bool]:
        """Calls captured as a graph, or one by one where that fails; whether they are a graph.

        Args:
            call: was called before, so that it allocates nothing more.
            count: of calls.
            on_stream: a context in which ``call`` launches on the stream with this handle.
        """
        stream, graph, made = (ctypes.c_void_p() for _ in range(3))
        self._done("cudaStreamCreate", ctypes.byref(stream))
        self._done("cudaDeviceSynchronize")
        self._done("cudaStreamBeginCapture", stream, RELAXED)
        try:
            with on_stream(stream.value or 0):
                for i in range(count):
                    call(i)
        finally:
            failed = self._cuda.cudaStreamEndCapture(stream, ctypes.byref(graph))
            self._cuda.cudaStreamDestroy(stream)
        flags = ctypes.c_ulonglong(0)
        if failed or self._cuda.cudaGraphInstantiate(ctypes.byref(made), graph, flags):
            self._cuda.cudaGetLastError()  # forgets it
            return singly(call, count), False
        self._cuda.cudaGraphDestroy(graph)
        return lambda: self._done("cudaGraphLaunch", made, None), True

    def _done(self, name: str, *arguments: Any) -> None:
        error = getattr(self._cuda, name)(*arguments)
        if error:
            raise CudaError(f"{name} reports error {error}")


def singly(call: Call, count: int) -> Launch:
    """Calls, one by one."""

    def launch() -> None:
        for i in range(count):
            call(i)

    return launch
