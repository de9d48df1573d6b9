"""A Ray cluster as an executor, from the extra ``nybble[farm]``."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from nybble.errors import NybbleError
from nybble.executors.interface import Args, Done, Failure, Shared, SharedFile
from nybble.executors.process import Process, attempted

T = TypeVar("T")
ANSWER = 10.0  # seconds
CONNECTS = 3
RETRIES = 4  # of a call whose Ray worker or node was lost


class RayCluster:
    """Runs calls on the nodes of a Ray cluster, one a core.

    Ray decides where, and does again what a lost worker or node had. On its node a call runs in a
    `Process`, as it would here: with limits, and with a second try in a fresh process.

    Args:
        address: ``ray://host:10001`` for Ray's client port, ``host:6379`` from a node of the
            cluster, None for a cluster of this machine alone.

    Raises:
        NybbleError: Ray is not installed, or no cluster answers.
    """

    def __init__(self, address: str | None = None):
        path = os.pathsep.join(entry for entry in sys.path if entry)
        if address is not None:
            _check(address)
        self._ray = _ray()
        try:
            _connect(self._ray, address, path)
        except (ImportError, RuntimeError, ValueError, OSError) as error:
            raise _silent(address, error) from error
        self._call = self._ray.remote(num_cpus=1, max_retries=RETRIES)(_called)
        self._open: dict[Future[Any], Any] = {}

    @property
    def workers(self) -> int:
        """Cores of the cluster."""
        return max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    def submit(
        self, function: Callable[..., T], arguments: Args, limit: float | None = None
    ) -> Future[Done[T]]:
        """See `nybble.executors.interface.Executor.submit`."""
        reference = self._call.remote(function, arguments, limit)
        found: Future[Done[T]] = Future()
        self._open[found] = reference
        reference.future().add_done_callback(lambda future: self._ended(found, future))
        return found

    def share(self, data: bytes) -> Shared:
        """See `nybble.executors.interface.Executor.share`; Ray keeps them in its object store."""
        return SharedObject(self._ray.put(data))

    def drop(self, futures: Iterable[Future[Any]]) -> None:
        """See `nybble.executors.interface.Executor.drop`."""
        for future in futures:
            if future in self._open and not future.done():
                self._ray.cancel(self._open[future], force=True)

    def close(self) -> None:
        """Leaves the cluster; what it still does for this process is dropped."""
        self.drop(list(self._open))
        self._ray.shutdown()

    def _ended(self, found: Future[Done[T]], future: Future[Done[T]]) -> None:
        """Passes on what Ray says, in this package's words."""
        self._open.pop(found, None)
        error, errors = future.exception(), self._ray.exceptions
        if error is None:
            found.set_result(future.result())
        elif isinstance(error, errors.RayTaskError):
            found.set_exception(error.cause or error)
        elif isinstance(error, errors.RayError):
            found.set_result(Done(None, Failure("lost", f"{type(error).__name__}: {error}")))
        else:
            found.set_exception(error)


@dataclass(frozen=True)
class SharedObject:
    """Bytes in Ray's object store."""

    reference: Any

    def read(self) -> bytes:
        """The bytes, in a Ray worker."""
        data: bytes = _ray().get(self.reference)
        return data

    def brought(self) -> SharedFile:
        """The same in a file of the node, for the process that makes the call."""
        path = Path(_folder().name) / str(self.reference.hex())
        if not path.exists():
            path.write_bytes(self.read())
        return SharedFile(str(path))


def _connect(ray: Any, address: str | None, path: str) -> None:
    """Joins the cluster, its workers with our modules' path.

    Ray's client port starts a process for each client, which now and then dies at once; then the
    client is told so, and may ask again.
    """
    for left in reversed(range(CONNECTS)):
        try:
            ray.init(
                address, runtime_env={"env_vars": {"PYTHONPATH": path}}, log_to_driver=False,
                logging_level="ERROR", configure_logging=False,
            )  # fmt: skip
        except ConnectionAbortedError:
            if not left:
                raise
            ray.shutdown()
        else:
            return


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="nybble-")


def _check(address: str) -> None:
    """Refuses an address where nobody listens, for which Ray would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise NybbleError(f"--workers {address}: expected ray://host:10001 or ray:host:6379.")
    try:
        socket.create_connection((host, int(port)), ANSWER).close()
    except OSError as error:
        raise _silent(address, error) from error


def _silent(address: str | None, error: Exception) -> NybbleError:
    return NybbleError(
        f"No Ray cluster answers at {address or 'this machine'}: {error}. Start one there: "
        "ray start --head; --workers ray://host:10001 names its client port."
    )


def _called(function: Callable[..., T], arguments: Args, limit: float | None) -> Done[T]:
    """One call, in a process that stays as long as the Ray worker."""
    here = tuple(a.brought() if isinstance(a, SharedObject) else a for a in arguments)
    return attempted(_process(), function, here, limit, lambda _kind: True)


@cache
def _process() -> Process:
    return Process()


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # tells nobody
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray  # noqa: PLC0415  (an extra, and slow to load)
    except ImportError as error:
        raise NybbleError("--workers ray needs Ray: pip install nybble[farm].") from error
    return ray
