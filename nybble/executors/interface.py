"""What an executor is: it runs a function over arguments, wherever that may be."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

from nybble.errors import NybbleError

T = TypeVar("T")
Args = tuple[Any, ...]


@dataclass(frozen=True)
class Failure:
    """Why a call gave nothing.

    Attributes:
        kind: ``crash``: its process died, and so did a fresh one that did nothing else; ``hang``:
            it took longer than it may; ``lost``: the machines that ran it vanished.
        detail: what is known: the signal, the last lines that were printed, the limit.
    """

    kind: Literal["crash", "hang", "lost"]
    detail: str


@dataclass(frozen=True)
class Done(Generic[T]):
    """One call that came to an end.

    Attributes:
        value: what the function returned; None for a failure.
        failure: None for a value.
    """

    value: T | None
    failure: Failure | None = None


class Shared(Protocol):
    """Bytes that many calls need; small, hashable, and to be sent as an argument."""

    def __hash__(self) -> int:
        """Equal bytes of one executor have one hash: workers keep what they made of them."""

    def read(self) -> bytes:
        """The bytes, in a worker."""


@dataclass(frozen=True)
class SharedFile:
    """Bytes in a file of the machine that the worker runs on."""

    path: str

    def read(self) -> bytes:
        """The bytes."""
        return Path(self.path).read_bytes()


class Executor(Protocol):
    """Runs functions; they and their arguments are sent by pickle."""

    @property
    def workers(self) -> int:
        """Calls that run at the same time."""

    def submit(
        self, function: Callable[..., T], arguments: Args, limit: float | None = None
    ) -> Future[Done[T]]:
        """Calls a function once; what its worker takes along when it dies is done again.

        Args:
            function: at the top level of a module that the workers can import.
            arguments: for it.
            limit: seconds that the call may take; None for any time. A function that tells its
                stages (`nybble.executors.serve.stage`) sets its own.

        Returns:
            What comes of it; what the function raises is raised by its ``result()``.
        """

    def share(self, data: bytes) -> Shared:
        """Sends bytes once that many calls take; they are gone after `close`."""

    def drop(self, futures: Iterable[Future[Any]]) -> None:
        """Ends calls that nobody waits for any more."""

    def close(self) -> None:
        """Ends the workers; what they still do is dropped."""


def each(
    executor: Executor,
    function: Callable[..., T],
    arguments: Iterable[Args],
    limit: float | None = None,
) -> Iterator[tuple[int, Done[T]]]:
    """Calls the function for each tuple of arguments, as in `Executor.submit`.

    Who stops listening drops what still runs.

    Yields:
        Index and end of every call, in the order of their ends.

    Raises:
        Exception: what the function raised.
    """
    futures = {executor.submit(function, args, limit): i for i, args in enumerate(arguments)}
    try:
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        executor.drop(futures)


def gathered(
    executor: Executor, function: Callable[..., T], arguments: Iterable[Args]
) -> Iterator[T]:
    """What the function returns for each tuple of arguments, in their order.

    Raises:
        NybbleError: a call failed.
        Exception: what the function raised.
    """
    waiting: dict[int, Any] = {}
    following = 0
    for index, done in each(executor, function, arguments):
        if done.failure is not None:
            raise NybbleError(
                f"A worker gave no result ({done.failure.kind}): {done.failure.detail}"
            )
        waiting[index] = done.value
        while following in waiting:
            yield waiting.pop(following)
            following += 1
