"""A device that measures for others: TVM's RPC tracker and server, started and watched.

TVM's own server (``python -m tvm.exec.rpc_server``) stops listening once the process of a session
has crashed, and lives on. This one is the same server that then listens again.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import signal
from collections.abc import Callable

import tvm_ffi

from nybble import cpuinfo
from nybble.errors import NybbleError
from nybble.runtime import gpu
from nybble.schedules.cuda import toolkit
from nybble.schedules.machine import CPUINFO
from nybble.tuning.remote import MACHINE
from nybble.tuning.tracker import Tracker

PORTS = 100  # tried from the first on
Say = Callable[[str], None]


def serve(tracker: Tracker, host: str, port: int, address: str | None, say: Say) -> None:
    """Serves a tracker's clients until the process is ended.

    Args:
        tracker: where to register, and under which key.
        host: address to listen at.
        port: the first to try.
        address: under which clients reach this machine, where the tracker cannot tell.
        say: called with a line when something happens.

    Raises:
        NybbleError: no tracker answers, or no port is free.
    """
    from tvm.rpc import server  # noqa: PLC0415  (its logger is its own)

    server.logger.setLevel(logging.WARNING)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # its threads would keep the process alive
    tvm_ffi.register_global_func(MACHINE, _described)
    if toolkit.has_driver():
        gpu.load_runtime()  # without a call of the driver, which would not outlive a fork
    tracker.servers()
    home = os.getcwd()
    while True:
        try:
            state = server.PopenRPCServerState(
                host, port, port + PORTS, tracker_addr=(tracker.host, tracker.port),
                key=tracker.key, custom_addr=address,
            )  # fmt: skip
        except (OSError, ValueError) as error:
            raise NybbleError(f"Cannot listen at {host}:{port}: {error}.") from error
        say(f"serving '{tracker.key}' at {host}:{state.port}")
        state.thread.join()  # ends with the session whose process crashed
        state.sock.close()
        os.chdir(home)  # the session's folder is gone
        say("a session crashed; listening again")


def _described() -> str:
    """This machine as JSON; asked in the process of a session, so that the driver may be."""
    lines = CPUINFO.read_text().splitlines()
    name = cpuinfo.name(lines) or platform.machine()
    found = gpu.find() if toolkit.has_driver() else ""
    there = {} if isinstance(found, str) else {"gpu": found.name, "capability": found.capability}
    return json.dumps({"cpu": name, "caches": cpuinfo.caches(), **there})


def track(host: str, port: int, say: Say) -> None:
    """Runs a tracker until the process is ended.

    Args:
        host: address to listen at.
        port: where to listen.
        say: called with a line when it does.

    Raises:
        NybbleError: the port is taken, or tornado is not installed.
    """
    try:
        from tvm.rpc import tracker  # noqa: PLC0415  (needs tornado)
    except ImportError as error:
        raise NybbleError("The tracker needs tornado: pip install nybble[farm].") from error
    tracker.logger.setLevel(logging.WARNING)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        state = tracker.PopenTrackerServerState(host, port, port + 1)
    except (OSError, ValueError) as error:
        raise NybbleError(f"Cannot listen at {host}:{port}: {error}.") from error
    say(f"tracking at {host}:{state.port}")
    state.thread.join()
