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
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

LOOPBACK = "127.0.0.1"
PATIENT = {"RAY_CLIENT_SERVER_CHECK_CHANNEL_TIMEOUT_S": "120"}
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
    with (folder / "head.log").open("wb") as log:
        head = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", *words],
            stdout=log, stderr=log, start_new_session=True,
            env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0", **PATIENT},
        )  # fmt: skip
    try:
        _wait(port, head, folder)
        yield f"ray://{LOOPBACK}:{port}"
    finally:
        _end(head)
        shutil.rmtree(folder, ignore_errors=True)


def _wait(port: int, head: subprocess.Popen[bytes], folder: Path) -> None:
    until = time.monotonic() + START
    while time.monotonic() < until and head.poll() is None:
        try:
            socket.create_connection((LOOPBACK, port), 1).close()
        except OSError:
            time.sleep(0.5)
        else:
            return
    pytest.fail(f"no client server: {(folder / 'head.log').read_text()[-1000:]}")


def _end(head: subprocess.Popen[bytes]) -> None:
    """Ends the head and what it has started, and nothing else."""
    started = psutil.Process(head.pid).children(recursive=True) if head.poll() is None else []
    head.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(started, timeout=20)
    for one in alive:
        one.kill()
    head.kill()
    head.wait()
