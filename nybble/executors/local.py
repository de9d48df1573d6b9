"""Processes of this machine as an executor."""

from __future__ import annotations

import hashlib
import queue
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from nybble.errors import NybbleError
from nybble.executors.interface import Args, Done, Failure, Shared, SharedFile
from nybble.executors.process import Process, attempted

T = TypeVar("T")


@dataclass(frozen=True)
class _Call:
    """What was submitted; ``future`` is cancelled once nobody waits for it."""

    function: Callable[..., Any]
    arguments: Args
    limit: float | None
    future: Future[Done[Any]]
    dropped: threading.Event


class Processes:
    """Long-lived processes, each started by the first call that it gets.

    Args:
        workers: how many.
        environment: variables to set in them.

    Attributes:
        counts: ``crash``, ``hang``: processes that were lost; ``start``: those that were started.
    """

    def __init__(self, workers: int, environment: dict[str, str] | None = None):
        if workers < 1:
            raise NybbleError(f"workers={workers}: at least one is needed.")
        self.counts: Counter[str] = Counter()
        self._processes = [Process(environment) for _ in range(workers)]
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._open: dict[Future[Any], _Call] = {}
        self._busy: dict[Process, _Call] = {}
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._shared: tempfile.TemporaryDirectory[str] | None = None

    @property
    def workers(self) -> int:
        """Calls that run at the same time."""
        return len(self._processes)

    @property
    def pids(self) -> list[int]:
        """Of the processes that there are at the moment."""
        return [pid for process in self._processes if (pid := process.pid) is not None]

    def submit(
        self, function: Callable[..., T], arguments: Args, limit: float | None = None
    ) -> Future[Done[T]]:
        """See `nybble.executors.interface.Executor.submit`."""
        self._start_threads()
        call = _Call(function, arguments, limit, Future(), threading.Event())
        with self._lock:
            self._open[call.future] = call
        self._calls.put(call)
        return call.future

    def share(self, data: bytes) -> Shared:
        """See `nybble.executors.interface.Executor.share`."""
        if self._shared is None:
            self._shared = tempfile.TemporaryDirectory(prefix="nybble-")
        path = Path(self._shared.name) / hashlib.sha256(data).hexdigest()
        path.write_bytes(data)
        return SharedFile(str(path))

    def drop(self, futures: Iterable[Future[Any]]) -> None:
        """See `nybble.executors.interface.Executor.drop`; kills processes at work."""
        with self._lock:
            for call in [self._open[f] for f in futures if f in self._open and not f.done()]:
                call.dropped.set()
            for process in [p for p, call in self._busy.items() if call.dropped.is_set()]:
                process.kill()

    def close(self) -> None:
        """Ends the processes; what they still do is dropped."""
        self.drop(list(self._open))
        for _ in self._threads:
            self._calls.put(None)
        for thread in self._threads:
            thread.join()
        self._threads.clear()
        for process in self._processes:
            process.close()
        if self._shared is not None:
            self._shared.cleanup()
            self._shared = None

    def _start_threads(self) -> None:
        for process in self._processes[len(self._threads) :]:
            thread = threading.Thread(target=self._serve, args=(process,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, process: Process) -> None:
        while (call := self._calls.get()) is not None:
            with self._lock:
                self._busy[process] = call
            before = process.starts
            if not call.dropped.is_set():
                self._run(process, call)
            with self._lock:
                del self._busy[process], self._open[call.future]
                self.counts["start"] += process.starts - before
            if call.dropped.is_set() and not call.future.done():
                call.future.set_result(Done(None, Failure("lost", "the call was dropped")))

    def _run(self, process: Process, call: _Call) -> None:
        def lost(kind: str) -> bool:
            self.counts[kind] += not call.dropped.is_set()
            return not call.dropped.is_set()

        try:
            done = attempted(process, call.function, call.arguments, call.limit, lost)
        except BaseException as error:  # noqa: BLE001  (raised again by the future)
            call.future.set_exception(error)
        else:
            call.future.set_result(done)
