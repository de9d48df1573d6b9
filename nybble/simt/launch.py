"""From a TensorIR function and arrays to a run of its kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
from tvm import tirx

from nybble.schedules.cuda.arch import CudaTarget
from nybble.schedules.cuda.compile import lowered
from nybble.schedules.target import resolve
from nybble.simt.codes import Scope
from nybble.simt.errors import DeadlockError, SimtError
from nybble.simt.expressions import expression
from nybble.simt.memory import Global, Pointer
from nybble.simt.order import Order
from nybble.simt.report import Report
from nybble.simt.shared import Shared
from nybble.simt.statements import Step, statement
from nybble.simt.strand import WARP, Geometry, Launch, Strand
from nybble.simt.values import Value

Array = npt.NDArray[Any]
Functions = Mapping[str, Callable[..., Value]]
_LANES = 1 << 15  # at a time: more blocks save Python's time until arrays leave the cache
_GRAINS = 1 << 23
_DYNAMIC = "tirx.use_dyn_shared_memory"


@dataclass(frozen=True)
class Trial:
    """How a run departs from the kernel or the checks.

    Attributes:
        unset: registers may be read before they are set: TVM's own reductions across threads do
            so in lanes whose sums nobody uses.
        without: a call of the kernel to leave out, by TVM's name and its number among those of
            the name: ``("cta_sync", 0)``, ``("cp_async_wait_group", 1)``. To prove that it is
            needed, and that its lack would be found.
    """

    unset: bool = False
    without: tuple[str, int] | None = None


def run(
    func: Any,
    args: Sequence[Any],
    *,
    outputs: int = 1,
    target: str = "cuda:sm_80",
    functions: Functions | None = None,
    trial: Trial | None = None,
) -> Report:
    """Runs a CUDA kernel without a GPU, and checks every step of it.

    The function is lowered as for the target up to CUDA source. All threads of a block run in
    lockstep, or warp by warp where warps wait for one another; grid and block are as the function
    binds them, and symbolic extents are taken from the arrays' shapes.

    Args:
        func: a PrimFunc with bound threads.
        args: one for each of its parameters: arrays in C order, numbers.
        outputs: how many of the last arguments the kernel writes; every element has to be written,
            and what they hold before is not to be read. Written in place.
        target: as ``--target``: ``cuda:sm_90``.
        functions: NumPy meanings of injected CUDA functions, by name. They get an array with one
            element for each lane a value, a `nybble.simt.functions.Window` for a pointer.
        trial: how the run departs from the kernel or the checks.

    Returns:
        what was counted.

    Raises:
        SimtError: the kernel does what it must not; the subclass says what.
        LookupError: there is no such call to leave out.
    """
    host, devices = _split(func, target)
    report = Report()
    with np.errstate(all="ignore"):
        _Host(host, devices, report, functions or {}, trial or Trial()).execute(args, outputs)
    return report


def _split(func: Any, target: str) -> tuple[tirx.PrimFunc, dict[str, tirx.PrimFunc]]:
    """The host's part, which launches, and the device functions by name."""
    gpu = resolve(target)
    if not isinstance(gpu, CudaTarget):
        raise SimtError(f"Target {target!r} is no GPU; give 'cuda:' and an architecture.")
    found: list[tvm.IRModule] = []

    @tvm.instrument.pass_instrument
    class Keep:
        def run_after_pass(self, mod: tvm.IRModule, info: Any) -> None:
            if str(info.name) == "tirx.SplitHostDevice":
                found.append(mod)

    config = dict(tvm.transform.PassContext.current().config)
    with tvm.transform.PassContext(config=config, instruments=[Keep()]):
        devices = {str(one.attrs["global_symbol"]): one for one in lowered(func, gpu)}
    hosts = [one for one in found[0].functions.values() if "calling_conv" not in one.attrs]
    if len(hosts) != 1 or not devices:
        raise SimtError(
            f"{len(hosts)} host and {len(devices)} device functions; one and some wanted"
        )
    return hosts[0], devices


@dataclass
class _Host:
    """The part of a function that runs on the CPU: it describes tensors, launches kernels."""

    func: tirx.PrimFunc
    devices: dict[str, tirx.PrimFunc]
    report: Report
    functions: Functions
    trial: Trial
    written: list[list[Global]] = field(default_factory=list)

    def execute(self, args: Sequence[Any], outputs: int) -> None:
        """Runs it, and checks that it wrote its outputs whole."""
        name = str(self.func.attrs.get("global_symbol", "main"))
        scope = Scope(name, expression, self.functions, launcher=self.launch)
        strand = Strand(
            _launch_of(
                name, Geometry({}), np.zeros(1, np.int64), self.report, Shared(1, 0, 1, Order(1, 1))
            ),
            [0],
            0,
        )
        params = list(self.func.params)
        if len(params) != len(args):
            raise SimtError(f"{name}: {len(args)} arguments for {len(params)} parameters")
        memory: list[Global] = []
        self.written = [memory, scope.workspaces]
        values: list[tuple[Any, Value]] = []
        for i, (param, arg) in enumerate(zip(params, args, strict=True)):
            if isinstance(param.ty, tirx.BufferType):
                memory.append(_device_array(param, arg, i >= len(args) - outputs))
                values.append((param, Pointer(memory[-1], np.int64(0), param.name)))
                values += _extents(name, param, arg)
            else:
                values.append((param, np.dtype(str(param.ty.dtype)).type(arg)))
        body = _with(scope, strand, values, self.func.body)
        body.run(strand, None)
        for one in memory:
            if one.output:
                one.check_complete(name)

    def launch(self, name: str, values: Sequence[Value], extents: Mapping[str, int]) -> None:
        """Runs a kernel on all its blocks."""
        func = self.devices[name]
        dynamic = int(extents.get(_DYNAMIC, 0))
        geometry = Geometry({tag: int(n) for tag, n in extents.items() if tag != _DYNAMIC})
        kernel = _Kernel(name, func, list(values), geometry, self.functions, self.trial)
        kernel.run(dynamic, self.report)
        for one in (*self.written[0], *self.written[1]):
            one.settle()


@dataclass
class _Kernel:
    """One launch: a device function, its arguments, its grid."""

    name: str
    func: tirx.PrimFunc
    values: list[Value]
    geometry: Geometry
    functions: Functions
    trial: Trial

    def run(self, dynamic: int, report: Report) -> None:
        """Runs all blocks, as many at a time as memory allows."""
        scope, step = self._compile(None)
        if scope.wanted and self.geometry.size("threadIdx") > WARP:
            scope, step = self._compile(scope.wanted)
        warps = -(-self.geometry.size("threadIdx") // WARP)
        start = scope.shared_bytes
        size = -(-(start + dynamic) // 128) * 128
        report.shared_bytes = max(report.shared_bytes, start + dynamic)
        grains = max(1, size // scope.grain * (warps + 1))
        together = max(1, min(_LANES // (warps * WARP), _GRAINS // grains))
        blocks = np.arange(self.geometry.size("blockIdx"))
        for first in range(0, len(blocks), together):
            some = blocks[first : first + together]
            shared = Shared(len(some), size, scope.grain, Order(len(some), warps))
            shared.dynamic, shared.limit = start, start + dynamic
            launch = _launch_of(self.name, self.geometry, some, report, shared)
            launch.unset = self.trial.unset
            _run_strands(self._strands(scope, launch), step)

    def _compile(self, split: int | None) -> tuple[Scope, Step]:
        without = self.trial.without
        scope = Scope(self.name, expression, self.functions, split=split, without=without)
        for param in self.func.params:
            scope.slot(param)
        step = statement(scope, self.func.body)
        if without is not None and scope.calls[without[0]] <= without[1]:
            raise LookupError(f"{self.name} has {scope.calls[without[0]]} {without[0]}")
        return scope, step

    def _strands(self, scope: Scope, launch: Launch) -> list[Strand]:
        warps = launch.order.warps
        per = scope.split or warps
        strands = []
        for first in range(0, warps, per):
            strand = Strand(launch, range(first, min(first + per, warps)), scope.used)
            for param, value in zip(self.func.params, self.values, strict=True):
                strand.env[scope.slot(param)] = value
            strands.append(strand)
        return strands


def _run_strands(strands: Sequence[Strand], step: Step) -> None:
    """Runs each until it waits, in turn, until all are through.

    Raises:
        DeadlockError: all wait, and nobody has arrived anywhere in a whole round.
    """
    if not step.waits:
        for strand in strands:
            step.run(strand, strand.active)
        return
    left: list[tuple[Strand, Iterator[None]]] = [(s, step.go(s, s.active)) for s in strands]
    launch = strands[0].launch
    while left:
        before, count = launch.progress, len(left)
        left = [(s, one) for s, one in left if next(one, one) is not one]
        if left and launch.progress == before and len(left) == count:
            waiting = "; ".join(f"warp {s.thread[0] // WARP}: {s.line}" for s, _ in left)
            raise DeadlockError(f"{launch.kernel}: every warp waits: {waiting}")


def _launch_of(
    name: str, geometry: Geometry, blocks: npt.NDArray[np.int64], report: Report, shared: Shared
) -> Launch:
    return Launch(name, geometry, blocks, report, shared, shared.order)


def _device_array(param: Any, arg: Any, output: bool) -> Global:
    if not isinstance(arg, np.ndarray) or not arg.flags.c_contiguous:
        raise SimtError(f"{param.name}: an array in C order is wanted, not {type(arg).__name__}")
    wanted = str(param.ty.dtype.dtype)
    if str(arg.dtype) != wanted:
        raise SimtError(f"{param.name}: an array of {wanted} is wanted, not of {arg.dtype}")
    return Global(str(param.name), arg, output)


def _extents(name: str, param: Any, arg: Array) -> list[tuple[Any, Value]]:
    """Symbolic extents of a parameter, by the array's shape."""
    shape = list(param.ty.shape)
    if len(shape) != arg.ndim:
        raise SimtError(f"{name}: {param.name} has {len(shape)} dimensions, the array {arg.ndim}")
    found = []
    for i, (extent, count) in enumerate(zip(shape, arg.shape, strict=True)):
        if isinstance(extent, tvm.ir.Var):
            found.append((extent, np.dtype(str(extent.ty.dtype)).type(count)))
        elif isinstance(extent, tirx.IntImm) and int(extent) != count:
            raise SimtError(f"{name}: extent {i} of {param.name} is {int(extent)}, not {count}")
    return found


def _with(scope: Scope, strand: Strand, values: Sequence[tuple[Any, Value]], body: Any) -> Step:
    """The step for ``body`` with variables set."""
    slots = [(scope.slot(var), value) for var, value in values]
    step = statement(scope, body)
    strand.env.extend([None] * scope.used)
    strand.cache.extend([None] * scope.used)
    for slot, value in slots:
        strand.env[slot] = value
    return step
