"""The other end of `nybble.executors.process.Process`: a loop that calls what it is sent."""

from __future__ import annotations

import os
import pickle
import signal
import traceback
from multiprocessing.connection import Connection
from typing import Any

GRACE = 10  # seconds after which a call ends itself if nobody is left to end it
Channel = Connection
_channel: list[Channel] = []  # to the parent; empty where this is no worker


def stage(name: str, limit: float | None) -> None:
    """Tells the parent what a call does now, and how long that may take.

    Does nothing outside a worker.

    Args:
        name: of the stage, for the message if it hangs.
        limit: seconds; None for any time, such as waiting for others.
    """
    if _channel:
        _arm(limit)
        _channel[0].send(("stage", name, limit))


def main(descriptor: int) -> None:
    """Serves calls until the parent closes the pipe.

    Args:
        descriptor: of the pipe.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process even inside a kernel
    os.dup2(2, 1)  # what compilers print
    channel = Channel(descriptor)
    _channel.append(channel)
    while True:
        try:
            function, arguments, limit = channel.recv()
        except EOFError:
            return
        except (ImportError, AttributeError) as error:  # the function is unknown here
            _reply(channel, ("raised", _sendable(error)))
            continue
        _arm(limit)
        reply = _called(function, arguments)
        signal.alarm(0)
        if not _reply(channel, reply):
            return


def _called(function: Any, arguments: tuple[Any, ...]) -> tuple[str, Any]:
    try:
        return "value", function(*arguments)
    except BaseException as error:  # noqa: BLE001  (raised again in the parent)
        return "raised", _sendable(error)


def _sendable(error: BaseException) -> BaseException:
    """The error with its traceback as a note; another one where it does not survive pickle."""
    notes = "".join(traceback.format_exception(error))
    try:
        copy = pickle.loads(pickle.dumps(error))
    except (TypeError, AttributeError, ValueError, pickle.PicklingError):
        copy = RuntimeError(f"{type(error).__name__}: {error}")
    copy.add_note(f"In a worker:\n{notes}")
    return copy


def _reply(channel: Channel, reply: tuple[str, Any]) -> bool:
    """Whether there was somebody to read it."""
    try:
        channel.send(reply)
    except (BrokenPipeError, ConnectionResetError):
        return False
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        kind = type(reply[1]).__name__
        channel.send(("raised", TypeError(f"A worker cannot send back a {kind}: {error}")))
    return True


def _arm(limit: float | None) -> None:
    """Where the parent itself has been killed, nobody else ends a call that hangs."""
    signal.alarm(0 if limit is None else int(limit) + GRACE)
