"""A tracker and devices on loopback, as processes that tests may kill."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nybble.errors import NybbleError
from nybble.tuning.tracker import Tracker

ROOT = Path(__file__).resolve().parent.parent.parent
LOOPBACK = "127.0.0.1"


def free_port() -> int:
    with socket.create_server((LOOPBACK, 0)) as found:
        return int(found.getsockname()[1])


class Farm:
    """A tracker and servers, each the head of a process group."""

    def __init__(self, folder: Path):
        self.folder, self.port = folder, free_port()
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.tracker = Tracker(LOOPBACK, self.port, "box")

    def start(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                [sys.executable, "-m", "nybble", *command],
                cwd=ROOT,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def serve(self, name: str) -> None:
        first = str(20000 + 120 * (hash((self.port, name)) % 300))
        self.start(
            name, "device", "--host", LOOPBACK, "--port", first,
            "--tracker", f"{LOOPBACK}:{self.port}", "--key", "box",
        )  # fmt: skip

    def signal(self, name: str, what: int) -> None:
        os.killpg(self.running[name].pid, what)

    def wait(self, servers: int, seconds: float = 120) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            try:
                if self.tracker.check() >= servers:
                    return
            except NybbleError:
                pass
            time.sleep(0.5)
        logs = {log.name: log.read_text()[-500:] for log in self.folder.glob("*.log")}
        pytest.fail(f"there are no {servers} servers: {logs}")

    def close(self) -> None:
        for running in self.running.values():
            os.killpg(running.pid, signal.SIGKILL)
            running.wait()


@contextmanager
def farming(folder: Path) -> Iterator[Farm]:
    """A farm whose tracker answers; it has no devices yet."""
    pytest.importorskip("tornado", reason="the tracker needs tornado: nybble[farm]")
    made = Farm(folder)
    made.start("tracker", "tracker", "--host", LOOPBACK, "--port", str(made.port))
    try:
        until = time.monotonic() + 120
        while True:  # a server does not start without a tracker
            try:
                made.tracker.servers()
                break
            except NybbleError:
                assert time.monotonic() < until, (folder / "tracker.log").read_text()
                time.sleep(0.5)
        yield made
    finally:
        made.close()
