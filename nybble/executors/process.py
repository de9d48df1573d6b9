"""One long-lived process that runs functions: killed when it hangs, replaced when it is gone."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import IO, Any, TypeVar

from nybble.errors import NybbleError
from nybble.executors.interface import Args, Done, Failure

T = TypeVar("T")
SHOWN = 600  # characters of what a process printed before it died


class CrashedError(NybbleError):
    """The process died; ``fresh`` tells whether this call was its first."""

    def __init__(self, detail: str, fresh: bool):
        super().__init__(detail)
        self.fresh = fresh


class HungError(NybbleError):
    """The call took longer than it may, and its process was killed."""


class Process:
    """Starts with its first call; importing what the function needs is part of that call.

    Not to be used by two threads at once, except for `kill`.

    Args:
        environment: variables to set in it.

    Attributes:
        starts: how often a process was started.
    """

    def __init__(self, environment: dict[str, str] | None = None):
        self.starts = 0
        self._environment = environment or {}
        self._running: subprocess.Popen[bytes] | None = None
        self._channel: Connection | None = None
        self._printed: IO[bytes] | None = None
        self._calls = 0

    @property
    def pid(self) -> int | None:
        """Of the process, None while there is none."""
        return self._running.pid if self._running else None

    def call(self, function: Callable[..., Any], arguments: Args, limit: float | None) -> Any:
        """What the function returns there.

        Args:
            function: at the top level of an importable module.
            arguments: for it.
            limit: seconds for the call, or for what comes before its first stage.

        Raises:
            CrashedError: the process died.
            HungError: a stage, or the call, took too long.
            Exception: what the function raised.
        """
        request = pickle.dumps((function, arguments, limit))
        channel = self._started()
        try:
            channel.send_bytes(request)
            return self._answer(channel, limit)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise self._crashed() from None
        finally:
            self._calls += 1

    def kill(self) -> None:
        """Ends the process and all that it started, if there is one."""
        running = self._running
        if running is not None and running.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)

    def close(self) -> None:
        """Ends the process, and forgets it; the next call starts another."""
        self.kill()
        running, self._running = self._running, None  # whoever kills now kills nobody else
        if running is not None:
            running.wait()
        for open_file in (self._channel, self._printed):
            if open_file is not None:
                open_file.close()
        self._channel = self._printed = None

    def _started(self) -> Connection:
        if self._channel is not None and self._running is not None and self._running.poll() is None:
            return self._channel
        self.close()
        mine, theirs = Pipe()
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the process)
        path = os.pathsep.join(entry for entry in sys.path if entry)  # the same Nybble as here
        call = f"from nybble.executors import serve; serve.main({theirs.fileno()})"
        self._running = subprocess.Popen(
            [sys.executable, "-c", call],
            env={"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": path, **self._environment},
            stdin=subprocess.DEVNULL,
            stdout=self._printed,
            stderr=self._printed,
            pass_fds=(theirs.fileno(),),
            start_new_session=True,  # a terminal's Ctrl-C is for the parent
        )
        theirs.close()
        self._channel, self._calls = mine, 0
        self.starts += 1
        return mine

    def _answer(self, channel: Connection, limit: float | None) -> Any:
        """Waits for the result, stage by stage."""
        name, since = "the call", time.monotonic()
        while True:
            left = None if limit is None else max(0.0, since + limit - time.monotonic())
            if not channel.poll(left):
                self.close()
                raise HungError(f"{name} took more than {limit:g} seconds and was ended.")
            kind, *rest = channel.recv()
            if kind == "value":
                return rest[0]
            if kind == "raised":
                raise rest[0]
            name, limit = rest
            since = time.monotonic()

    def _crashed(self) -> CrashedError:
        assert self._running is not None
        assert self._printed is not None
        self.kill()  # what it started may live on
        code = self._running.wait()
        cause = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        self._printed.seek(0)
        tail = self._printed.read().decode(errors="replace").strip()[-SHOWN:]
        fresh = self._calls == 0
        self.close()
        return CrashedError(f"the process {cause}{': ' if tail else ''}{tail}", fresh)


def attempted(
    process: Process,
    function: Callable[..., T],
    arguments: Args,
    limit: float | None,
    lost: Callable[[str], bool],
) -> Done[T]:
    """`Process.call`, tried again in a fresh process where the first one died.

    Its death may have been the fault of another call before it, or of somebody who killed it. A
    second time is the call's own fault.

    Args:
        process: where.
        function: as in `Process.call`.
        arguments: as in `Process.call`.
        limit: as in `Process.call`.
        lost: called with ``crash`` or ``hang`` when a process is lost; whether to go on.

    Raises:
        Exception: what the function raised.
    """
    while True:
        try:
            return Done(process.call(function, arguments, limit))
        except HungError as error:
            lost("hang")
            return Done(None, Failure("hang", str(error)))
        except CrashedError as error:
            if not lost("crash") or error.fresh:
                return Done(None, Failure("crash", str(error)))
