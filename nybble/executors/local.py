"""Processes of this machine as an executor."""

from __future__ import annotations

import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from nybble.errors import NybbleError
from nybble.executors.interface import Args, Done, Failure
from nybble.executors.process import CrashedError, HungError, Process

T = TypeVar("T")


@dataclass
class _Batch:
    """The calls of one `Processes.map`.

    Attributes:
        results: calls that came to an end, or errors that the function raised.
        dropped: nobody waits for them any more.
    """

    function: Callable[..., Any]
    limit: float | None
    results: queue.Queue[Done[Any] | BaseException] = field(default_factory=queue.Queue)
    dropped: bool = False


@dataclass(frozen=True)
class _Call:
    batch: _Batch
    index: int
    arguments: Args


class Processes:
    """Long-lived processes, each started by the first call that it gets.

    A call whose process dies is done again in a fresh one, for the cause may have been another call
    before it, or somebody who killed it. A second time is the call's own fault.

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
        self._busy: dict[Process, _Batch] = {}
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []

    @property
    def workers(self) -> int:
        """Calls that run at the same time."""
        return len(self._processes)

    @property
    def pids(self) -> list[int]:
        """Of the processes that there are at the moment."""
        return [pid for process in self._processes if (pid := process.pid) is not None]

    def map(
        self, function: Callable[..., T], arguments: Sequence[Args], limit: float | None = None
    ) -> Iterator[Done[T]]:
        """See `nybble.executors.interface.Executor.map`; an early end kills what still runs."""
        self._start_threads()
        batch = _Batch(function, limit)
        for index, args in enumerate(arguments):
            self._calls.put(_Call(batch, index, tuple(args)))
        try:
            for _ in arguments:
                done = batch.results.get()
                if isinstance(done, BaseException):
                    raise done
                yield done
        finally:
            self._drop(batch)

    def close(self) -> None:
        """Ends the processes; what they still do is dropped."""
        with self._lock:
            busy = list(self._busy.items())
            for process, batch in busy:
                batch.dropped = True
                process.kill()
        for _ in self._threads:
            self._calls.put(None)
        for thread in self._threads:
            thread.join()
        self._threads.clear()
        for process in self._processes:
            process.close()

    def _start_threads(self) -> None:
        for process in self._processes[len(self._threads) :]:
            thread = threading.Thread(target=self._serve, args=(process,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _drop(self, batch: _Batch) -> None:
        with self._lock:
            batch.dropped = True
            for process in [p for p, served in self._busy.items() if served is batch]:
                process.kill()

    def _serve(self, process: Process) -> None:
        while (call := self._calls.get()) is not None:
            with self._lock:
                if call.batch.dropped:
                    continue
                self._busy[process] = call.batch
            before = process.starts
            result = self._result(process, call)
            with self._lock:
                del self._busy[process]
                self.counts["start"] += process.starts - before
            call.batch.results.put(result)

    def _result(self, process: Process, call: _Call) -> Done[Any] | BaseException:
        batch = call.batch
        try:
            return Done(call.index, process.call(batch.function, call.arguments, batch.limit))
        except HungError as error:
            self.counts["hang"] += 1
            return Done(call.index, None, Failure("hang", str(error)))
        except CrashedError as error:
            if batch.dropped:
                return Done(call.index, None, Failure("lost", "the work was dropped"))
            self.counts["crash"] += 1
            if error.fresh:
                return Done(call.index, None, Failure("crash", str(error)))
            return self._result(process, call)
        except BaseException as error:  # noqa: BLE001  (raised again by `map`)
            return error
