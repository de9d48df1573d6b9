"""Times in turns on a GPU, and what it is."""

from __future__ import annotations

import ctypes
import shutil
import statistics
import subprocess
from collections.abc import Callable
from typing import Any

from nybble.runtime.events import Events, Launch

CALLS = 20  # of one turn
TURNS = 15
MEMORY_CLOCK = 36  # cudaDevAttrMemoryClockRate, in kHz
BUS_WIDTH = 37  # cudaDevAttrGlobalMemoryBusWidth, in bits
ON_DEVICE = 3  # cudaMemcpyDeviceToDevice
COPIED = 1 << 30  # bytes
QUERY = (
    "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,temperature.gpu,power.draw,power.limit"
)


class Clock(Events):
    """Times launches of `CALLS` calls; needs CUDA's runtime library loaded."""

    def per_call(self, launch: Launch) -> float:
        """Of one call, the mean of `CALLS`."""
        return self.seconds(launch) / CALLS

    def copy_rate(self) -> float:
        """Bytes a second, read and written, of copies within the GPU's memory: the best of some."""
        source, target = ctypes.c_void_p(), ctypes.c_void_p()
        for buffer in (source, target):
            self._done("cudaMalloc", ctypes.byref(buffer), ctypes.c_size_t(COPIED))

        def launch() -> None:
            for _ in range(CALLS):
                self._done(
                    "cudaMemcpyAsync", target, source, ctypes.c_size_t(COPIED), ON_DEVICE, None
                )

        fastest = min(self.per_call(launch) for _ in range(5))
        for buffer in (source, target):
            self._done("cudaFree", buffer)
        return 2 * COPIED / fastest

    def peak_rate(self) -> float:
        """Bytes a second of the memory by its clock and width; 0 where the driver does not say."""
        found = []
        for attribute in (MEMORY_CLOCK, BUS_WIDTH):
            value = ctypes.c_int()
            failed = self._cuda.cudaDeviceGetAttribute(ctypes.byref(value), attribute, 0)
            found.append(0 if failed else value.value)
        return 2 * found[0] * 1e3 * found[1] / 8  # two transfers a cycle


def race(
    sides: dict[str, Launch], seconds: Callable[[Launch], float], turns: int = TURNS
) -> dict[str, list[float]]:
    """Times in turns, so that what slows the GPU down slows all alike."""
    for launch in sides.values():
        seconds(launch)
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(turns):
        for name, launch in sides.items():
            found[name].append(seconds(launch))
    return found


def compared(times: dict[str, list[float]], own: str) -> dict[str, Any]:
    """Median seconds of all sides, and how many times as fast ``own`` is as each other one."""
    ours = times[own]
    ratios = {
        name: statistics.median(theirs / mine for theirs, mine in zip(taken, ours, strict=True))
        for name, taken in times.items()
        if name != own
    }
    quarters = statistics.quantiles(ours, n=4)
    return {
        "seconds": statistics.median(ours),
        "spread": (quarters[2] - quarters[0]) / statistics.median(ours),
        "ratios": ratios,
        "peers": {name: statistics.median(taken) for name, taken in times.items() if name != own},
    }


def facts() -> dict[str, str]:
    """What ``nvidia-smi`` says of the GPU now; empty where there is none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    command = [program, f"--query-gpu={QUERY}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except subprocess.TimeoutExpired:
        return {}
    values = (
        [value.strip() for value in done.stdout.splitlines()[0].split(",")] if done.stdout else []
    )
    names = QUERY.split(",")
    return dict(zip(names, values, strict=True)) if len(values) == len(names) else {}
