"""A Ray cluster of one node with a client server on loopback, as `ray start` makes it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

LOOPBACK = "127.0.0.1"
PATIENT = {"RAY_CLIENT_SERVER_CHECK_CHANNEL_TIMEOUT_S": "60"}
TRIES = 4
START = 240.0  # seconds, on a machine that has other things to do


def free_port() -> int:
    with socket.create_server((LOOPBACK, 0)) as found:
        return int(found.getsockname()[1])


@contextmanager
def client_server(cores: int = 2) -> Iterator[str]:
    """The address ``ray://…`` of a cluster that is there until the context ends."""
    pytest.importorskip("ray", reason="Ray is in the extra nybble[farm]")
    folder = Path(tempfile.mkdtemp(prefix="ray"))  # its sockets' paths must be short
    port = free_port()
    options = {
        "port": free_port(), "ray-client-server-port": port, "num-cpus": cores,
        "node-ip-address": LOOPBACK, "temp-dir": folder, "include-dashboard": False,
        "object-store-memory": 100 << 20,
    }  # fmt: skip
    words = [f"--{name}={value}" for name, value in options.items()]
    head = _started(words, port, folder)
    try:
        yield f"ray://{LOOPBACK}:{port}"
    finally:
        _end(head, folder)
        shutil.rmtree(folder, ignore_errors=True)


def _started(words: list[str], port: int, folder: Path) -> subprocess.Popen[bytes]:
    """The head, listening; Ray gives its own processes 30 seconds, which may be too few."""
    log = folder / "head.log"
    for _ in range(TRIES):
        with log.open("wb") as output:
            head = subprocess.Popen(
                [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", *words],
                stdout=output, stderr=output, start_new_session=True,
                env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0", **PATIENT},
            )  # fmt: skip
        if _listens(port, head):
            return head
        _end(head, folder)
    pytest.fail(f"no client server: {log.read_text()[-1000:]}")


def _listens(port: int, head: subprocess.Popen[bytes]) -> bool:
    until = time.monotonic() + START
    while time.monotonic() < until and head.poll() is None:
        try:
            socket.create_connection((LOOPBACK, port), 1).close()
        except OSError:
            time.sleep(0.5)
        else:
            return True
    return False


def _end(head: subprocess.Popen[bytes], folder: Path) -> None:
    """Ends the head and what it has started, which its folder tells from all others."""
    head.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        head.wait(30)
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if str(folder).encode() in (process / "cmdline").read_bytes():
                os.kill(int(process.name), signal.SIGKILL)
    head.wait()
