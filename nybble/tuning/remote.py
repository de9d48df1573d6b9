"""What a client process does: leases a device, sends a candidate there, checks and times it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import tvm
from numpy.typing import NDArray
from tvm import rpc

from nybble.errors import NybbleError, ScheduleError
from nybble.executors.serve import stage
from nybble.schedules.cuda.arch import CudaTarget
from nybble.tuning import candidate, turns
from nybble.tuning.measure import Limits, Outcome, check_reference, difference
from nybble.tuning.runner import EVALUATOR, Runner, garbage, race
from nybble.tuning.tasks import Operands, Point, Task
from nybble.tuning.tracker import Lease, Tracker

CONNECT = 15.0  # seconds; a device that takes longer hangs
CANDIDATE = "the candidate on"  # begins the name of the stage that is the candidate's own fault
ARRIVE = 3  # times a step's limit: a session that lives longer is ended by the device
MACHINE = "nybble.machine"  # a function of the devices that tells what they are
BIG = 1  # TVM's ThreadGroup::kBig


@dataclass(frozen=True)
class Job:
    """A candidate for a device.

    Attributes:
        tracker: of the devices.
        task: the layer.
        point: the candidate.
        libraries: the code of the candidate and of the reference.
        turns: against the reference.
        limits: of every step.
    """

    tracker: Tracker
    task: Task
    point: Point
    libraries: tuple[bytes, bytes]
    turns: int
    limits: Limits


@dataclass(frozen=True)
class Trouble:
    """A session that ended early.

    Attributes:
        where: ``device``: before the candidate ran, so the candidate is not to blame;
            ``reference``: the default kernel did not run there; ``candidate``: while it ran;
            ``nobody``: there was no device.
        detail: which device, and what it said.
    """

    where: Literal["device", "reference", "candidate", "nobody"]
    detail: str


def on_device(job: Job) -> Outcome | Trouble:
    """Measures one candidate on whatever device is free next.

    Raises:
        NybbleError: no tracker answers, or the task's reference is wrong.
    """
    stage("waiting for a device", None)
    lease = job.tracker.lease(patience=job.limits.run)
    if lease is None:
        return Trouble("nobody", f"no server had the key '{job.tracker.key}' any more")
    where: Literal["device", "reference", "candidate"] = "device"
    try:
        stage(f"connecting to {lease}", CONNECT)
        session = _Session(job, lease)
        where = "reference"
        stage(f"the reference on {lease}", job.limits.run)
        reference = session.runner("reference", job.task.reference, job.libraries[1])
        check_reference(job.task, reference.first(), session.operands.expected)
        where = "candidate"
        stage(f"{CANDIDATE} {lease}", job.limits.run)
        return session.against(reference)
    except ScheduleError as error:  # the values, not the shapes, are beyond the kernel
        return Outcome.failed(job.point, "illegal", str(error))
    except candidate.TROUBLE as error:  # TVM's, for whatever happened there
        return Trouble(where, f"{lease}: {candidate.last_line(error)}")


@dataclass(frozen=True)
class Described:
    """What a device says of itself.

    Attributes:
        cpu: its processor's name.
        caches: bytes of that one's data caches.
        gpu: the name of its GPU, None without one.
        capability: of the GPU: 90 for sm_90.
    """

    cpu: str
    caches: tuple[int, ...] = ()
    gpu: str | None = None
    capability: int | None = None


def describe(tracker: Tracker) -> Described | None:
    """What the device is that is free next, None where it is gone.

    A server that was not started by ``nybble device`` tells LLVM's name of the processor alone.

    Raises:
        NybbleError: no tracker answers.
    """
    stage("waiting for a device", None)
    lease = tracker.lease(patience=CONNECT)
    if lease is None:
        return None
    stage(f"connecting to {lease}", CONNECT)
    try:
        remote = rpc.connect(lease.host, lease.port, lease.match, int(CONNECT))
        try:
            found = json.loads(remote.get_function(MACHINE)())
            return Described(**{**found, "caches": tuple(found["caches"])})
        except AttributeError:
            return Described(str(remote.get_function("target.llvm_get_system_cpu")()))
    except candidate.TROUBLE:
        return None


class _Session:
    """A connection to one device."""

    def __init__(self, job: Job, lease: Lease):
        self.job, self.lease = job, lease
        self.operands: Operands = job.task.operands()
        seconds = int(CONNECT + ARRIVE * job.limits.run)
        self.remote = rpc.connect(lease.host, lease.port, lease.match, seconds)
        on_gpu = isinstance(job.task.target, CudaTarget)
        self.device = self.remote.cuda() if on_gpu else self.remote.cpu()
        if on_gpu and not self.device.exist:
            raise NybbleError(f"{lease} has no GPU that runs, which {job.task.target.name} needs.")
        threads = job.task.threads
        self.remote.get_function("runtime.config_threadpool")(BIG, threads)
        started = int(self.remote.get_function("runtime.NumThreads")())
        if started < threads:
            raise NybbleError(
                f"{lease} starts {started} thread(s), the task wants {threads}. Tune with "
                f"--threads {started}, or start its server with TVM_NUM_THREADS={threads}."
            )
        self._sent: dict[tuple[str, str | None], list[Any]] = {}

    def runner(self, name: str, point: Point, library: bytes) -> Runner:
        """Code there, with its operands."""
        self.remote.upload(bytearray(library), f"{name}.so")
        module = self.remote.load_module(f"{name}.so")
        key = point.kernel, point.weights
        if key not in self._sent:
            self._sent[key] = self._send(candidate.packed(self.job.task, point, self.operands))
        inputs = self._send(self.operands.inputs)
        (output,) = self._send([garbage(self.operands.expected)])
        device = (self.device.dlpack_device_type(), self.device.index)
        arguments = [*inputs, *self._sent[key], output]
        return Runner(module, arguments, output.numpy, tvm.get_global_func(EVALUATOR), device)

    def against(self, reference: Runner) -> Outcome:
        """Checks and times the candidate."""
        job, expected = self.job, self.operands.expected
        made = self.runner("candidate", job.point, job.libraries[0])
        wrong = difference(job.task, made.first(), expected)
        if wrong is None:
            stage("waiting for the device's turn", None)
            with turns.measuring(job.task.threads, self.lease.host):
                stage(f"{CANDIDATE} {self.lease}", job.limits.run)
                taken = race(made, reference, job.turns)
            wrong = difference(job.task, made.read(), expected)
        if wrong is not None:
            return Outcome.failed(job.point, "wrong", wrong)
        return Outcome.timed(job.point, taken)

    def _send(self, arrays: Sequence[NDArray[Any]]) -> list[Any]:
        return [tvm.runtime.tensor(array, self.device) for array in arrays]
