"""One job on a GPU: a kernel or a network checked, or timed in turns with its peers."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import cuda_arrays, cuda_op_peers, cuda_peers
from benchmarks.cuda_clock import CALLS, Clock, compared, facts, race
from benchmarks.cuda_peers import Layer, PeerError
from nybble.runtime import engine, gpu, session
from nybble.runtime.events import Call, Launch

WALL_CALLS = 10  # of a network in one turn
WALL_TURNS = 9
OWN = "Nybble"
GRAPH, SINGLY = "in a graph", "launched one by one"
Found = dict[str, Any]


class Kernel:
    """A packed kernel with its operands on the GPU.

    Args:
        home: the archive's folder.
        about: its entry in ``rows.json``.
        ffi: ``tvm_ffi``.
    """

    def __init__(self, home: Path, about: dict[str, Any], ffi: Any):
        self.about = about
        self.data = cuda_arrays.load(home / "data" / f"{about['file']}.npz")
        names = sorted(
            (name for name in self.data if name.startswith("operand")), key=lambda n: int(n[7:])
        )
        self.operands = [self.data.pop(name) for name in names]
        self._library = ffi.load_module(str(home / "data" / f"{about['file']}.so"))
        self._call, self._ffi = self._library["layer"], ffi

    def tensors(self) -> list[Any]:
        """A set of operands, and an output of bytes that no kernel is expected to write."""
        memory = gpu.Memory(self._ffi)
        shape, dtype = self.about["output"]
        output = np.empty(shape, dtype)
        output.view(np.uint8)[...] = 0x55
        return [memory, *memory.take([*self.operands, output])]

    def output(self) -> Any:
        """What it stores."""
        memory, *tensors = self.tensors()
        self._call(*tensors)
        return memory.give(tensors[-1])

    def wrong(self) -> str:
        """What differs from the law; empty where nothing does."""
        got, expected = self.output(), self.data["expected"]
        if "rows" in self.data:
            lines = got.reshape(-1, got.shape[-1])
            got = lines[np.ix_(self.data["rows"], self.data["columns"])]
        if "bound" not in self.data:
            wanted = expected.reshape(got.shape)
            are_equal = (got == wanted) | (np.isnan(got) & np.isnan(wanted))
            differ = int(np.count_nonzero(~are_equal))
            return f"{differ} of {got.size} values differ" if differ else ""
        value, bound = (self.data[name].reshape(got.shape) for name in ("expected", "bound"))
        finite = np.isfinite(value)
        if (np.isfinite(got) != finite).any():
            return f"{int((np.isfinite(got) != finite).sum())} of {got.size} values not finite"
        far = np.abs(np.where(finite, got - value, 0)) > np.where(finite, bound, 1)
        return f"{int(far.sum())} of {got.size} values beyond the bound" if far.any() else ""

    @property
    def size(self) -> int:
        """Bytes that a call moves at least."""
        shape, dtype = self.about["output"]
        return sum(a.nbytes for a in self.operands) + int(np.prod(shape)) * np.dtype(dtype).itemsize

    def calls(self) -> Call:
        """Calls it, each time on another set of operands."""
        count = cuda_peers.sets_of(self.size)
        sets = [self.tensors()[0:] for _ in range(count)]
        return lambda i: self._call(*sets[i % count][1:])

    def launch(self, clock: Clock) -> tuple[Launch, bool]:
        """Its calls in a graph, after each set was used once."""
        call = self.calls()
        for i in range(cuda_peers.MOST):
            call(i)
        device = self._ffi.Device(*gpu.DEVICE)
        return clock.graph(call, CALLS, lambda stream: self._ffi.use_raw_stream(device, stream))


def check(home: Path, about: dict[str, Any], _few: bool) -> Found:
    """A kernel against the law."""
    why = Kernel(home, about, engine.ffi()).wrong()
    return {"right": not why, "why": why}


def timed(home: Path, about: dict[str, Any], few: bool) -> Found:
    """A kernel in turns with its peers."""
    kernel, clock = Kernel(home, about, engine.ffi()), Clock()
    own, is_graph = kernel.launch(clock)
    how = GRAPH if is_graph else SINGLY
    try:
        torch = cuda_peers.found()
        few = few or not about["default"]  # others are compared with what a compilation takes
        made = _variants(torch, home, about, few)
        sides, missing = cuda_peers.peers(torch, made, clock.per_call)
    except PeerError as error:
        sides, missing = {}, {"torch": str(error)}
    times = race({OWN: own, **sides}, clock.per_call)
    return {**compared(times, OWN), "bytes": kernel.size, "how": how, "missing": missing}


def _variants(
    torch: cuda_peers.Torch, home: Path, about: dict[str, Any], few: bool
) -> cuda_peers.Variants:
    """The peers of a row."""
    if about["weights"] is None:
        return cuda_op_peers.variants(torch, about)
    return cuda_peers.variants(torch, Layer.of(about), home, few)


def network(home: Path, about: dict[str, Any], _few: bool) -> Found:
    """A whole network: what its code for CPUs gave, and times in turns with torch's."""
    net = session.load(home / "data" / about["file"])
    data = cuda_arrays.load(home / "data" / about["operands"])
    inputs = {p.name: data[f"in_{p.name}"] for p in net.manifest.inputs}
    expected = {p.name: data[f"out_{p.name}"] for p in net.manifest.outputs}
    for _ in range(3):  # the first call captures graphs, later ones launch them
        given = net(inputs)
        outputs = given if isinstance(given, dict) else dict(zip(expected, [given], strict=True))
        differ = [n for n, e in expected.items() if not np.array_equal(outputs[n], e)]
        if differ:
            return {"right": False, "why": f"{', '.join(differ)} differ from the CPU's"}
    found: Found = {"right": True, "why": "", "kernel": net.manifest.target}
    device = net.manifest.device
    found["how"] = GRAPH if device and device["graphed"] else SINGLY
    own = partial(_own_latency, net, inputs)
    sides: dict[str, Callable[[], float]] = {OWN: own}
    if about.get("peer"):
        try:
            sides["torch float16"] = torch_network(cuda_peers.found(), about)
        except (PeerError, *cuda_peers.TROUBLE) as error:
            found["missing"] = {"torch float16": str(error)[:200]}
    times = race(sides, lambda side: side(), WALL_TURNS)
    return {**found, **compared(times, OWN)}


def _own_latency(net: Any, inputs: dict[str, Any]) -> float:
    return float(net.benchmark(inputs, WALL_CALLS, 1).median)


def torch_network(torch: Any, about: dict[str, Any]) -> Callable[[], float]:
    """Median seconds of calls of torch's network, until the GPU is done.

    Half precision, channels last, batch norms folded into the convolutions, as one CUDA graph.
    """
    from benchmarks.cuda_resnet import resnet50  # noqa: PLC0415  (imports torch)

    batch = int(about["batch"])
    made = resnet50().to(torch.device, dtype=torch.torch.float16).eval()
    made = made.to(memory_format=torch.torch.channels_last)
    size = (batch, 3, int(about["size"]), int(about["size"]))
    images = torch.drawn(size, "float16").to(memory_format=torch.torch.channels_last)
    with torch.torch.inference_mode():
        launch = graphed_once(torch, lambda: made(images))

    def seconds() -> float:
        taken = []
        for _ in range(WALL_CALLS):
            start = time.perf_counter()
            launch()
            if torch.device != "cpu":
                torch.torch.cuda.synchronize()
            taken.append(time.perf_counter() - start)
        return statistics.median(taken)

    return seconds


def graphed_once(torch: Any, call: Callable[[], Any]) -> Launch:
    """One call as a CUDA graph, after some that choose algorithms."""
    if torch.device == "cpu":
        return call
    torch.torch.backends.cudnn.benchmark = True
    torch.torch.cuda.synchronize()
    side = torch.torch.cuda.Stream()
    with torch.torch.cuda.stream(side):
        for _ in range(5):
            call()
    torch.torch.cuda.synchronize()
    made = torch.torch.cuda.CUDAGraph()
    with torch.torch.cuda.graph(made, stream=side):
        call()
    launch: Launch = made.replay
    return launch


def machine(_home: Path, _about: dict[str, Any], _few: bool) -> Found:
    """How fast its memory is, and at which clocks."""
    clock = Clock()
    return {"copy": clock.copy_rate(), "peak": clock.peak_rate(), "facts": facts()}


JOBS = {"check": check, "time": timed, "network": network, "machine": machine}
