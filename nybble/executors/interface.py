"""What an executor is: it runs a function over arguments, wherever that may be."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
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
        index: of its arguments.
        value: what the function returned; None for a failure.
        failure: None for a value.
    """

    index: int
    value: T | None
    failure: Failure | None = None


class Executor(Protocol):
    """Runs a function over arguments; functions and arguments are sent by pickle."""

    @property
    def workers(self) -> int:
        """Calls that run at the same time."""

    def map(
        self, function: Callable[..., T], arguments: Sequence[Args], limit: float | None = None
    ) -> Iterator[Done[T]]:
        """Calls the function once for each tuple of arguments; all of them come, in any order.

        Args:
            function: at the top level of a module that the workers can import.
            arguments: of each call.
            limit: seconds that a call may take; None for any time. A function that tells its
                stages (`nybble.executors.serve.stage`) sets its own.

        Raises:
            Exception: what the function raised, at the first call that does.
        """

    def close(self) -> None:
        """Ends the workers; what they still do is dropped."""


def gathered(done: Iterable[Done[T]], count: int) -> list[T]:
    """All values in the order of their arguments.

    Args:
        done: of `Executor.map`.
        count: how many arguments there were.

    Raises:
        NybbleError: a call failed.
    """
    values: dict[int, Any] = {}
    for one in done:
        if one.failure is not None:
            raise NybbleError(f"A worker gave no result ({one.failure.kind}): {one.failure.detail}")
        values[one.index] = one.value
    return [values[index] for index in range(count)]
