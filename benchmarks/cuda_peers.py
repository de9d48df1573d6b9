"""What else multiplies such matrices on a GPU: cuBLAS, torch, Triton, CUTLASS, whatever is there.

Every peer says why it is missing. Operands are drawn at random on the GPU, several sets of them;
what Triton and CUTLASS compute is held against torch before it is timed.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from benchmarks.cuda_clock import CALLS
from nybble import nvidia
from nybble.runtime.events import Call, Launch, singly

COLD = 256 << 20  # bytes of operands that are taken in turn: more than any cache
MOST = 16  # sets
FEWEST = 2
INT_MM = 17  # rows, from which torch._int_mm multiplies
TROUBLE = (  # what a peer raises that does not take a layer, or is of another version
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NotImplementedError,
    OSError, RuntimeError, TypeError, ValueError,
)  # fmt: skip


Variants = dict[str, Callable[[], Iterable[Call]]]
"""By name of a peer, its configurations."""


class PeerError(Exception):
    """Why a peer is not there."""


@dataclass(frozen=True)
class Layer:
    """A product x · wᵀ.

    Attributes:
        rows: m.
        channels: n.
        depth: k.
        weights: dtype; ``int4``.
        is_half: activations are float16, else integers.
    """

    rows: int
    channels: int
    depth: int
    weights: str
    is_half: bool

    @staticmethod
    def of(about: dict[str, Any]) -> Layer:
        """Of a row of ``rows.json``."""
        (n, k), dtype = about["weights"]
        m = prod(about["output"][0]) // n
        return Layer(m, n, k, dtype, about["inputs"][0][1] == "float32")

    def sets(self, bytes_each: float) -> int:
        """How many sets of operands outgrow the caches."""
        return sets_of(int(bytes_each * self.channels * self.depth))


def sets_of(size: int) -> int:
    """How many sets of operands of so many bytes outgrow the caches."""
    return max(FEWEST, min(COLD // max(size, 1) + 1, MOST))


@dataclass(frozen=True)
class Torch:
    """Torch on a device.

    Attributes:
        torch: the module.
        device: ``cuda``; ``cpu`` in tests.
    """

    torch: Any
    device: str = "cuda"

    def drawn(self, shape: tuple[int, ...], kind: str) -> Any:
        """Random values."""
        torch = self.torch
        if kind in ("int8", "uint8"):
            low, high = (-99, 99) if kind == "int8" else (0, 256)
            return torch.randint(low, high, shape, dtype=getattr(torch, kind), device=self.device)
        return torch.randn(shape, dtype=getattr(torch, kind), device=self.device)

    def graph(self, call: Call) -> Launch:
        """Calls captured as a CUDA graph."""
        torch = self.torch
        if self.device == "cpu":
            return singly(call, CALLS)
        torch.cuda.synchronize()
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            for i in range(MOST):
                call(i)
        torch.cuda.synchronize()
        made = torch.cuda.CUDAGraph()
        with torch.cuda.graph(made, stream=side, capture_error_mode="relaxed"):
            for i in range(CALLS):
                call(i)
        launch: Launch = made.replay
        return launch

    def stream(self) -> int:
        """The handle of the current stream."""
        return 0 if self.device == "cpu" else int(self.torch.cuda.current_stream().cuda_stream)


def found() -> Torch:
    """Torch, where it is installed and sees a GPU.

    Raises:
        PeerError: it is not, or does not.
    """
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        raise PeerError(f"torch is not installed ({error})") from error
    if not torch.cuda.is_available():
        raise PeerError("torch sees no GPU")
    return Torch(torch)


# ---------------------------------------------------------------- peers


def cublas(torch: Torch, layer: Layer) -> Call:
    """CuBLAS in half precision."""
    count = layer.sets(2)
    xs = [torch.drawn((layer.rows, layer.depth), "float16") for _ in range(count)]
    ws = [torch.drawn((layer.channels, layer.depth), "float16") for _ in range(count)]
    return lambda i: torch.torch.matmul(xs[i % count], ws[i % count].T)


def _integers(torch: Torch, layer: Layer) -> list[tuple[Any, Any]]:
    if layer.is_half:
        raise PeerError("activations are no integers")
    x, w = (layer.rows, layer.depth), (layer.channels, layer.depth)
    return [(torch.drawn(x, "int8"), torch.drawn(w, "int8")) for _ in range(layer.sets(1))]


def int_mm(torch: Torch, layer: Layer) -> Call:
    """``torch._int_mm``: 8 bits to int32 sums."""
    if layer.rows < INT_MM or layer.depth % 8 or layer.channels % 8:
        raise PeerError("needs more than 16 rows and multiples of 8")
    sets = [(x, w.T) for x, w in _integers(torch, layer)]
    return lambda i: torch.torch._int_mm(*sets[i % len(sets)])


def tinygemm(torch: Torch, layer: Layer) -> Call:
    """Torch's own product of bfloat16 with weights of 4 bits, in groups of 128."""
    if not layer.is_half or layer.weights != "int4":
        raise PeerError("weights of 4 bits alone")
    ops, count = torch.torch.ops.aten, layer.sets(0.5)
    xs = [torch.drawn((layer.rows, layer.depth), "bfloat16") for _ in range(count)]
    packed = [
        ops._convert_weight_to_int4pack(torch.drawn((layer.channels, layer.depth // 2), "uint8"), 8)
        for _ in range(count)
    ]
    scales = torch.drawn((layer.depth // 128, layer.channels, 2), "bfloat16")
    return lambda i: ops._weight_int4pack_mm(xs[i % count], packed[i % count], 128, scales)


def triton_integers(torch: Torch, layer: Layer) -> Iterator[Call]:
    """Products of 8 bits, one for each configuration."""
    sets, ours = _integers(torch, layer), importlib.import_module("benchmarks.cuda_triton")
    y, scale = torch.drawn((layer.rows, layer.channels), "int8"), 1e-4
    wanted = _kept(torch, sets[0], scale)
    for config in ours.INTEGERS:
        if layer.depth % config[2] or config[0] >= 4 * max(layer.rows, 32):
            continue

        def call(i: int, config: Any = config) -> None:
            ours.integers(*sets[i % len(sets)], y, scale, config)

        call(0)
        _agree(y, wanted)
        yield call


def triton_halves(torch: Torch, layer: Layer) -> Iterator[Call]:
    """Products of halves with weights of 4 bits, one for each configuration."""
    ours = importlib.import_module("benchmarks.cuda_triton")
    if not layer.is_half or layer.weights != "int4" or layer.depth % ours.GROUP:
        raise PeerError("weights of 4 bits in groups of 128 alone")
    m, n, k, count = layer.rows, layer.channels, layer.depth, layer.sets(0.5)
    xs = [torch.drawn((m, k), "float16") for _ in range(count)]
    ws = [torch.drawn((n, k // 2), "uint8") for _ in range(count)]
    scales = torch.drawn((k // ours.GROUP, n), "float16").abs() / 64
    y = torch.drawn((m, n), "float16")
    wanted = _dequantized(torch, xs[0], ws[0], scales)
    for config in ours.HALVES:

        def call(i: int, config: Any = config) -> None:
            ours.halves(xs[i % count], ws[i % count], scales, y, config)

        call(0)
        _agree(y.float() / wanted.abs().max(), wanted / wanted.abs().max(), 5e-3)
        yield call


def cutlass(torch: Torch, layer: Layer, library: Path) -> Iterator[Call]:
    """CUTLASS's product of 8 bits, one for each tile."""
    if not library.exists():
        raise PeerError("CUTLASS's headers were not there when the archive was packed")
    sets = _integers(torch, layer)
    ctypes.CDLL(nvidia.DRIVER, ctypes.RTLD_GLOBAL)  # whose tensor maps it uses
    code = ctypes.CDLL(str(library))
    y, scale = torch.drawn((layer.rows, layer.channels), "int8"), 1e-4
    memory = torch.drawn((32 << 20,), "uint8")
    wanted = _kept(torch, sets[0], scale)
    sizes = layer.rows, layer.channels, layer.depth
    for tile in (0, 1):

        def call(i: int, tile: int = tile) -> None:
            x, w = (ctypes.c_void_p(one.data_ptr()) for one in sets[i % len(sets)])
            failed = code.cutlass_int8(
                tile, x, w, ctypes.c_void_p(y.data_ptr()), *sizes, ctypes.c_float(scale),
                ctypes.c_void_p(memory.data_ptr()), ctypes.c_size_t(memory.numel()),
                ctypes.c_void_p(torch.stream()),
            )  # fmt: skip
            if failed:
                raise PeerError(f"CUTLASS refuses the layer with status {failed}")

        call(0)
        _agree(y, wanted)
        yield call


def _kept(torch: Torch, operands: tuple[Any, Any], scale: float) -> Any:
    """What products of 8 bits store, by torch in float64: exact."""
    x, w = (one.double() for one in operands)
    return (torch.torch.matmul(x, w.T) * scale).clamp(-128, 127)


def _dequantized(torch: Torch, x: Any, w: Any, scales: Any) -> Any:
    n, k = w.shape[0], 2 * w.shape[1]
    halves = w.reshape(n, k // 128, 64)
    values = torch.torch.cat([(halves & 15).float() - 8, (halves >> 4).float() - 8], 2)
    return torch.torch.matmul(x.float(), (values * scales.float().T[:, :, None]).reshape(n, k).T)


def _agree(got: Any, wanted: Any, within: float = 1.0) -> None:
    """Conversions to integers cut or round: one of them apart is right."""
    far = float((got.to(wanted.dtype) - wanted).abs().max())
    if not far <= within * 1.001:
        raise PeerError(f"its result is wrong: {far:g} apart")


# ---------------------------------------------------------------- all of them


def variants(torch: Torch, layer: Layer, home: Path, few: bool = False) -> Variants:
    """The peers of a product with weights.

    Args:
        torch: on a device.
        layer: the product.
        home: the archive's folder.
        few: only what comes with torch; after one of the others ended the process.
    """
    made: Variants = {"cuBLAS float16": lambda: [cublas(torch, layer)]}
    if layer.is_half:
        made["torch int4"] = lambda: [tinygemm(torch, layer)]
        if not few:
            made["Triton"] = lambda: triton_halves(torch, layer)
    else:
        made["torch._int_mm"] = lambda: [int_mm(torch, layer)]
        if not few:
            made["Triton"] = lambda: triton_integers(torch, layer)
            made["CUTLASS"] = lambda: cutlass(torch, layer, home / "data" / "cutlass.so")
    return made


def peers(
    torch: Torch, made: Variants, seconds: Callable[[Launch], float]
) -> tuple[dict[str, Launch], dict[str, str]]:
    """Every peer that is there, ready to be launched; and why the others are not.

    Args:
        torch: on a device.
        made: by name, what gives a peer's configurations.
        seconds: of a launch; the fastest configuration is taken.
    """
    ready: dict[str, Launch] = {}
    missing: dict[str, str] = {}
    for name, configurations in made.items():
        launches: list[Launch] = []
        try:
            for call in configurations():
                launches.append(torch.graph(call))
        except (PeerError, *TROUBLE) as error:
            missing[name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        if launches:
            missing.pop(name, None)
            for launch in launches:
                seconds(launch)
            ready[name] = min(launches, key=seconds)
    return ready, missing
