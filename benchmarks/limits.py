"""The most that this machine could do, measured by register-only loops and plain reads."""

from __future__ import annotations

import ctypes
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nybble.limits import library, loops, rate
from nybble.schedules.target import resolve

SIZES = (1 << 20, 16 << 20, 512 << 20)  # a working set in L2, in L3, in memory
TRIES = 5


@dataclass(frozen=True)
class Limits:
    """Rates of the whole machine with some threads.

    Attributes:
        macs: multiply-adds a second by kind: ``int8``, ``int4`` (weights), ``float32``.
        by: the instructions behind each kind.
        bandwidth: bytes a second, by size of the working set.
    """

    macs: dict[str, float]
    by: dict[str, str]
    bandwidth: dict[int, float]

    def seconds(self, kind: str, macs: int, size: int) -> float:
        """The least time for so many multiply-adds that read ``size`` bytes (roofline)."""
        fits = next((s for s in SIZES if s >= size), SIZES[-1])
        return max(macs / self.macs[kind], size / self.bandwidth[fits])

    def lines(self) -> list[str]:
        """One line a limit, for people."""
        rates = [
            f"{kind}: {2 * v / 1e9:.0f} GOPS ({self.by[kind]})" for kind, v in self.macs.items()
        ]
        reads = [f"{s >> 20} MiB: {v / 1e9:.0f} GB/s" for s, v in self.bandwidth.items()]
        return [*rates, "reading " + ", ".join(reads)]


def measured(isa: str, threads: int) -> Limits:
    """Measures what code for ``isa`` could reach on this machine.

    Args:
        isa: ``native`` or a level of `hold.LEVELS`.
        threads: compute limits are multiplied, bandwidth is measured on so many at once.
    """
    by = loops(resolve(isa).features)
    rates = {name: threads * rate(name) for name in by.values()}
    return Limits(
        {kind: rates[name] for kind, name in by.items()},
        by,
        {size: _bandwidth(size, threads) for size in SIZES},
    )


def last_cache() -> int:
    """Bytes of the last cache, as Linux gives them; 32 MiB where it does not."""
    path = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
    return 1024 * int(path.read_text().strip().removesuffix("K")) if path.exists() else 32 << 20


def _bandwidth(size: int, threads: int) -> float:
    """Every thread reads its own buffer, together ``size`` bytes; the sum of their rates."""
    read = library().read_bytes
    read.restype, read.argtypes = ctypes.c_long, [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_long]
    share = size // threads // 512 * 512
    buffers = [np.ones(share, np.uint8) for _ in range(threads)]
    repeats = max(1, (256 << 20) // size)

    def rate(buffer: NDArray[np.uint8]) -> float:
        start = time.thread_time()  # waiting for memory counts, being preempted does not
        read(buffer.ctypes.data, share, repeats)
        return share * repeats / (time.thread_time() - start)

    with ThreadPoolExecutor(threads) as pool:
        return max(sum(pool.map(rate, buffers)) for _ in range(TRIES))
