"""TVM's RPC tracker as its clients see it: who serves which key, and whose turn it is.

The protocol is TVM's (`tvm.rpc.tracker`); its own client retries for a minute where nobody
listens, and waits for ever for a key that nobody serves.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tvm.rpc import base

from nybble.errors import NybbleError

ANSWER = 10.0  # seconds for a tracker that is alive
LOOK = 2.0  # seconds between looks whether anybody serves the key


@dataclass(frozen=True)
class Lease:
    """A server that waits for this client.

    Attributes:
        host: its address.
        port: its port.
        match: what it wants to hear.
    """

    host: str
    port: int
    match: str

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Tracker:
    """Where a tracker listens, and the key of the devices to use.

    Attributes:
        host: name or address.
        port: of the tracker.
        key: of the devices.
    """

    host: str
    port: int
    key: str

    @staticmethod
    def parse(address: str, key: str) -> Tracker:
        """From ``host:port``.

        Raises:
            NybbleError: it is something else, or the key is empty.
        """
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal():
            raise NybbleError(f"--tracker {address}: expected host:port, as 192.168.1.7:9190.")
        if not key:
            raise NybbleError("--tracker needs --key: the name that the devices' servers go by.")
        return Tracker(host.strip("[]"), int(port), key)

    def servers(self) -> dict[str, list[str]]:
        """Addresses of all servers, by key.

        Raises:
            NybbleError: no tracker answers there.
        """
        found: dict[str, list[str]] = {}
        for server in self._summary()["server_info"]:
            key = server["key"].partition(":")[2]
            found.setdefault(key, []).append(":".join(map(str, server["addr"])))
        return found

    def rows(self) -> list[tuple[str, str, int, int]]:
        """Key, addresses of its servers, how many are free, how many clients wait, by key.

        Raises:
            NybbleError: no tracker answers there.
        """
        queues, servers = self._summary()["queue_info"], self.servers()
        rows = []
        for key in sorted({*queues, *servers}):
            queue = queues.get(key, {"free": 0, "pending": 0})
            addresses = ", ".join(servers.get(key, ["none"]))
            rows.append((key, addresses, queue["free"], queue["pending"]))
        return rows

    def check(self) -> int:
        """How many servers have the key.

        Raises:
            NybbleError: no tracker answers, or nobody serves the key; says which keys there are.
        """
        servers = self.servers()
        if self.key in servers:
            return len(servers[self.key])
        there = ", ".join(f"{key} ({len(who)})" for key, who in sorted(servers.items()))
        raise NybbleError(
            f"No server has the key '{self.key}' at the tracker {self.host}:{self.port}; "
            f"there are: {there or 'none at all'}. On a device: nybble device --tracker "
            f"{self.host}:{self.port} --key {self.key}."
        )

    def lease(self, patience: float) -> Lease | None:
        """Waits until a server is free; None where none has the key for that long.

        Args:
            patience: seconds without any server of the key.

        Raises:
            NybbleError: no tracker answers.
        """
        seen = time.monotonic()
        with self._connected() as connection:
            base.sendjson(connection, [base.TrackerCode.REQUEST, self.key, "", 1])
            connection.settimeout(LOOK)
            while True:
                try:
                    head = connection.recv(1, socket.MSG_PEEK)
                except TimeoutError:
                    if self.key in self.servers():
                        seen = time.monotonic()
                    elif time.monotonic() - seen > patience:
                        return None
                    continue
                if not head:
                    raise self._silent("it closed the connection")
                connection.settimeout(ANSWER)
                _, (host, port, match) = base.recvjson(connection)
                return Lease(host, port, match)

    def _summary(self) -> dict[str, Any]:
        with self._connected() as connection:
            base.sendjson(connection, [base.TrackerCode.SUMMARY])
            summary: dict[str, Any] = base.recvjson(connection)[1]
        return summary

    @contextmanager
    def _connected(self) -> Iterator[Any]:
        try:
            with socket.create_connection((self.host, self.port), ANSWER) as connection:
                connection.sendall(struct.pack("<i", base.RPC_TRACKER_MAGIC))
                magic = struct.unpack("<i", base.recvall(connection, 4))[0]
                if magic != base.RPC_TRACKER_MAGIC:
                    raise self._silent("what listens there is no TVM RPC tracker")
                yield connection
        except (OSError, struct.error) as error:
            raise self._silent(str(error)) from error

    def _silent(self, reason: str) -> NybbleError:
        return NybbleError(
            f"The tracker {self.host}:{self.port} does not answer: {reason}. Start one there: "
            f"nybble tracker --port {self.port}."
        )
