"""Nybble and ONNX Runtime side by side: one process each, taking turns, ratios from one run.

Absolute times on a shared machine move by 15 % from minute to minute. So every round times each
peer once, and what is reported is the median over the rounds of the ratio within a round.
"""

from __future__ import annotations

import multiprocessing
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Peer:
    """One contender.

    Attributes:
        name: as the tables call it.
        engine: ``nybble`` for a ``.so``, ``onnxruntime`` for an ONNX file, ``torch_avx2`` for
            TorchScript.
        path: the file that it runs.
        images: the input, float32 (N, C, H, W).
        threads: how many it may use.
    """

    name: str
    engine: str
    path: Path
    images: Array
    threads: int


@dataclass(frozen=True)
class Timing:
    """Seconds of one peer, one value per round: CPU time with one thread, else wall time."""

    name: str
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median over the rounds, in seconds."""
        return float(np.median(self.seconds))

    def ratio(self, other: Timing) -> float:
        """Median over the rounds of this peer's time by the other's."""
        return float(np.median(np.divide(self.seconds, other.seconds)))


def race(peers: Sequence[Peer], rounds: int = 15, warmup: int = 3) -> list[Timing]:
    """Times every peer once a round, in turn; the order rotates so that nobody always follows."""
    with _workers(peers) as pipes:
        for _ in range(warmup):
            for pipe in pipes:
                _time_once(pipe)
        seconds: list[list[float]] = [[] for _ in peers]
        for turn in range(rounds):
            for step in range(len(peers)):
                i = (turn + step) % len(peers)
                seconds[i].append(_time_once(pipes[i]))
    return [Timing(p.name, tuple(s)) for p, s in zip(peers, seconds, strict=True)]


def _time_once(pipe: Connection) -> float:
    time.sleep(0.005)  # let the previous peer's waiting threads stop spinning
    pipe.send("run")
    return float(pipe.recv())


@contextmanager
def _workers(peers: Sequence[Peer]) -> Iterator[list[Connection]]:
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    try:
        for peer in peers:
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(peer, theirs), daemon=True)
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
            ours.recv()  # loaded
        yield pipes
    finally:
        for pipe in pipes:
            pipe.close()
        for process in processes:
            process.join(timeout=10)


def _serve(peer: Peer, pipe: Connection) -> None:
    run = ENGINES[peer.engine](peer)
    clock = time.process_time if peer.threads == 1 else time.perf_counter
    run()
    pipe.send("ready")
    while True:
        try:
            pipe.recv()
        except EOFError:  # the parent has closed its end: done
            return
        start = clock()
        run()
        pipe.send(clock() - start)


def _nybble(peer: Peer) -> Callable[[], Any]:
    import nybble  # in the worker only: the parent never loads the runtime  # noqa: PLC0415

    session = nybble.load(peer.path, threads=peer.threads)
    return lambda: session(peer.images)


def _onnxruntime(peer: Peer) -> Callable[[], Any]:
    import onnxruntime  # noqa: PLC0415

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = peer.threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        str(peer.path), options, providers=["CPUExecutionProvider"]
    )
    feed = {session.get_inputs()[0].name: peer.images}
    return lambda: session.run(None, feed)


def _torch_avx2(peer: Peer) -> Callable[[], Any]:
    """TorchScript held to AVX2; ONNX Runtime cannot be told to."""
    os.environ |= {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    import torch  # reads the variables when it is loaded  # noqa: PLC0415

    torch.set_num_threads(peer.threads)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is frozen, and works
        net = torch.jit.optimize_for_inference(torch.jit.load(str(peer.path)).eval())
    images = torch.from_numpy(peer.images)

    def run() -> Any:
        with torch.inference_mode():
            return net(images)

    return run


ENGINES: dict[str, Callable[[Peer], Callable[[], Any]]] = {
    "nybble": _nybble,
    "onnxruntime": _onnxruntime,
    "torch_avx2": _torch_avx2,
}
