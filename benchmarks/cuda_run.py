"""Checks and times packed kernels on a machine with an NVIDIA GPU; needs NumPy, no network.

    python3 run.py                  # numerics of every kernel, then times; writes results.json
    python3 run.py --check          # numerics alone

Every kernel is held against what the law expects of its layer, integers bit for bit, and networks
against their own code for CPUs. Kernels of large products are timed by CUDA's events, in turns with
the peers that are installed (torch: cuBLAS in half precision, and ``torch._int_mm``), on several
sets of operands so that none stays in a cache.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "lib"))

from nybble.runtime import engine, gpu, session  # noqa: E402  (out of the archive)

LINES = HERE / "results.jsonl"
PATIENCE = 180  # seconds for a row
TURNS = 15
CALLS = 20  # between two events
COLD = 256 << 20  # bytes of operands that are taken in turn: more than any cache
Call = Callable[[int], Any]


class Clock:
    """Seconds of calls on the default stream, by CUDA's events."""

    def __init__(self) -> None:
        self._cuda = ctypes.CDLL("libcudart.so.13")
        self._events = [ctypes.c_void_p(), ctypes.c_void_p()]
        for event in self._events:
            self._done(self._cuda.cudaEventCreate(ctypes.byref(event)))

    def seconds(self, call: Call) -> float:
        """Of one call, the mean of some."""
        first, last = self._events
        self._done(self._cuda.cudaEventRecord(first, None))
        for i in range(CALLS):
            call(i)
        self._done(self._cuda.cudaEventRecord(last, None))
        self._done(self._cuda.cudaEventSynchronize(last))
        found = ctypes.c_float()
        self._done(self._cuda.cudaEventElapsedTime(ctypes.byref(found), first, last))
        return found.value / 1e3 / CALLS

    def _done(self, error: int) -> None:
        if error:
            raise RuntimeError(f"CUDA reports error {error}")


class Kernel:
    """A packed kernel with its operands on the GPU.

    Args:
        about: its entry in ``rows.json``.
        ffi: ``tvm_ffi``.
    """

    def __init__(self, about: dict[str, Any], ffi: Any):
        self.about = about
        with np.load(HERE / "data" / f"{about['file']}.npz") as data:
            self.data = {name: data[name] for name in data.files}
        names = [name for name in self.data if name.startswith("operand")]
        self.operands = [self.data.pop(name) for name in names]
        self._library = ffi.load_module(str(HERE / "data" / f"{about['file']}.so"))
        self._call, self._ffi = self._library["layer"], ffi

    def tensors(self) -> list[Any]:
        """A set of operands, and an output."""
        memory = gpu.Memory(self._ffi)
        shape, dtype = self.about["output"]
        return [memory, *memory.take([*self.operands, np.zeros(shape, dtype)])]

    def output(self) -> Any:
        """What it stores."""
        memory, *tensors = self.tensors()
        self._call(*tensors)
        return memory.give(tensors[-1])

    def wrong(self) -> str:
        """What differs from the law; empty where nothing does."""
        got, expected = self.output(), self.data["expected"]
        if "rows" in self.data:
            got = got[np.ix_(self.data["rows"], self.data["columns"])]
        if "bound" not in self.data:
            differ = int(np.count_nonzero(got != expected.reshape(got.shape)))
            return f"{differ} of {got.size} values differ" if differ else ""
        value, bound = (self.data[name].reshape(got.shape) for name in ("expected", "bound"))
        finite = np.isfinite(value)
        far = np.abs(np.where(finite, got - value, 0)) > np.where(finite, bound, 1)
        return f"{int(far.sum())} of {got.size} values beyond the bound" if far.any() else ""

    @property
    def size(self) -> int:
        """Bytes that a call moves at least."""
        shape, dtype = self.about["output"]
        return sum(a.nbytes for a in self.operands) + int(np.prod(shape)) * np.dtype(dtype).itemsize

    def calls(self) -> Call:
        """Calls it, each time on another set of operands."""
        sets = [self.tensors() for _ in range(max(2, min(COLD // self.size + 1, 16)))]
        return lambda i: self._call(*sets[i % len(sets)][1:])


def peers(kernel: Kernel) -> dict[str, Call]:
    """What else multiplies such matrices here."""
    try:
        import torch  # noqa: PLC0415  (where it is installed)
    except ImportError:
        return {}
    (n, k), _ = kernel.about["weights"]
    m = int(np.prod(kernel.about["output"][0])) // n
    copies = max(2, min(COLD // (2 * n * k) + 1, 16))

    def drawn(dtype: Any) -> list[Any]:
        pairs = []
        for _ in range(copies):
            if dtype == torch.int8:
                x, w = (
                    torch.randint(-99, 99, s, dtype=dtype, device="cuda") for s in ((m, k), (n, k))
                )
            else:
                x, w = (torch.randn(s, dtype=dtype, device="cuda") for s in ((m, k), (n, k)))
            pairs.append((x, w.T))
        return pairs

    halves, found = drawn(torch.float16), {}
    found["cuBLAS float16"] = lambda i: torch.matmul(*halves[i % copies])
    if m > 16 and k % 8 == 0 and n % 8 == 0:  # torch's own conditions
        bytes_ = drawn(torch.int8)
        found["torch._int_mm"] = lambda i: torch._int_mm(*bytes_[i % copies])
    return found


def timed(kernel: Kernel, clock: Clock) -> dict[str, Any]:
    """Median seconds, and how many times as fast as each peer."""
    calls = {"": kernel.calls(), **peers(kernel)}
    for call in calls.values():
        clock.seconds(call)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(TURNS):
        for name, call in calls.items():
            seconds[name].append(clock.seconds(call))
    own = seconds.pop("")
    ratios = {
        name: statistics.median(theirs / ours for theirs, ours in zip(times, own, strict=True))
        for name, times in seconds.items()
    }
    return {"seconds": statistics.median(own), "ratios": ratios, "bytes": kernel.size}


def say(line: str) -> None:
    """A line of progress."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def kernel_row(about: dict[str, Any], check: bool) -> dict[str, Any]:
    """One kernel checked and, of a large product, timed."""
    kernel = Kernel(about, engine.ffi())
    why = kernel.wrong()
    found = {"right": not why, "why": why}
    return found if check or why or not about["macs"] else {**found, **timed(kernel, Clock())}


def network_row(about: dict[str, Any], check: bool) -> dict[str, Any]:
    """A whole network, against what its code for CPUs gave, and the median of its calls."""
    net = session.load(HERE / "data" / about["file"])
    with np.load(HERE / "data" / about["operands"]) as data:
        inputs = {p.name: data[f"in_{p.name}"] for p in net.manifest.inputs}
        expected = {p.name: data[f"out_{p.name}"] for p in net.manifest.outputs}
    for _ in range(2):  # the first call captures graphs, the second launches them
        given = net(inputs)
        outputs = given if isinstance(given, dict) else dict(zip(expected, [given], strict=True))
        differ = [n for n, e in expected.items() if not np.array_equal(outputs[n], e)]
        if differ:
            return {"right": False, "why": f"{', '.join(differ)} differ from the CPU's"}
    times = {} if check else {"seconds": net.benchmark(inputs, 50).median}
    return {"right": True, "why": "", "kernel": net.manifest.target, **times}


def work(start: int, check: bool) -> None:
    """Does rows one after another, and writes a line for each; what CUDA fails at ends it."""
    rows = json.loads((HERE / "rows.json").read_text())["rows"]
    engine.ffi()
    gpu.load_runtime()
    for about in rows[start:]:
        found = (network_row if "operands" in about else kernel_row)(about, check)
        with LINES.open("a") as file:
            file.write(json.dumps(found) + "\n")


def supervise(check: bool) -> list[dict[str, Any]]:
    """All rows, in processes of their own: one that dies or hangs costs its row, no other."""
    rows = json.loads((HERE / "rows.json").read_text())["rows"]
    LINES.write_text("")
    while (start := len(done())) < len(rows):
        command = [sys.executable, __file__, "--start", str(start), *(["--check"] * check)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            code = watched(process, rows)
            said = (process.stderr.read() if process.stderr else "").strip().splitlines()[-1:]
        if len(done()) < len(rows):
            why = "hangs" if code is None else f"the process ends with {code}: {''.join(said)}"
            with LINES.open("a") as file:
                file.write(json.dumps({"right": False, "why": why}) + "\n")
            say(f"{rows[len(done()) - 1]['row']}: {why}")
    return [{**about, **found} for about, found in zip(rows, done(), strict=True)]


def watched(process: Any, rows: list[dict[str, Any]]) -> int | None:
    """Shows its progress; its exit code, or None if it had to be killed."""
    seen, since = len(done()), time.monotonic()
    while process.poll() is None:
        time.sleep(0.2)
        if len(now := done()) > seen:
            for at in range(seen, len(now)):
                say(f"{rows[at]['row']}: {now[at]['why'] or 'right'} {now[at].get('ratios', '')}")
            seen, since = len(now), time.monotonic()
        if time.monotonic() - since > PATIENCE:
            process.kill()
            return None
    return int(process.returncode)


def done() -> list[dict[str, Any]]:
    """The rows that are finished."""
    return [json.loads(line) for line in LINES.read_text().splitlines()]


def main() -> None:
    """Checks, times, writes."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="numerics alone")
    parser.add_argument("--start", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    found = gpu.find()
    if isinstance(found, str):
        raise SystemExit(f"No GPU: {found}.")
    if args.start is not None:
        work(args.start, args.check)
        return
    version = ctypes.c_int()
    ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    rows = supervise(args.check)
    packed = json.loads((HERE / "rows.json").read_text())
    result = {
        "gpu": found.name, "capability": found.capability, "driver": version.value,
        "date": datetime.date.today().isoformat(), "target": packed["target"],
        "nybble": packed["nybble"], "rows": rows,
    }  # fmt: skip
    (HERE / "results.json").write_text(json.dumps(result, indent=1))
    wrong = sum(not row["right"] for row in rows)
    say(f"{len(rows)} rows, {wrong} wrong; {HERE / 'results.json'}")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
