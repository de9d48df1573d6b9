"""Devices behind a tracker: some die, hang or come back, and every candidate has its outcome."""

from __future__ import annotations

import re
import signal
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tvm.rpc import base

from nybble.commands_tune import Elsewhere, TuneJob, run
from nybble.errors import NybbleError
from nybble.executors.local import Processes
from nybble.options import RecipeOptions
from nybble.schedules.machine import Machine
from nybble.tuning.measure import Limits
from nybble.tuning.rpc import DevicePool
from nybble.tuning.tasks import Point
from nybble.tuning.tracker import Tracker
from tests.tuning import faults
from tests.tuning.farm import LOOPBACK, Farm, farming, free_port
from tests.tuning.layers import SMALL, kernels_of, task_of


@contextmanager
def answering(summary: dict[str, Any]) -> Iterator[int]:
    """A listener that answers one question as a tracker would."""
    with socket.create_server((LOOPBACK, 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(base.recvall(connection, 4))
                base.recvjson(connection)
                base.sendjson(connection, [base.TrackerCode.SUCCESS, summary])

        thread = threading.Thread(target=answer)
        thread.start()
        yield int(server.getsockname()[1])
        thread.join()


def test_no_tracker_says_how_to_start_one() -> None:
    port = free_port()
    with pytest.raises(NybbleError, match=rf"{port} does not answer: .*refused.* nybble tracker"):
        Tracker.parse(f"{LOOPBACK}:{port}", "box").check()


def test_a_key_that_nobody_serves_names_those_that_are() -> None:
    servers = [{"key": f"server:{k}", "addr": ["h", 1]} for k in ("pi", "pi", "phone")]
    with answering({"server_info": servers, "queue_info": {}}) as port:
        tracker = Tracker.parse(f"{LOOPBACK}:{port}", "box")
        with pytest.raises(NybbleError, match=r"the key 'box' .*phone \(1\), pi \(2\)\. On a dev"):
            tracker.check()


def asked_of(port: int, folder: Path) -> TuneJob:
    """The command with a tracker at a port, and a model that is not there."""
    return TuneJob(
        folder / "no.onnx", folder / "net.jsonl", None, RecipeOptions(), keep_float=True,
        target="native", trials=1, time=None, threads=1,
        elsewhere=Elsewhere(f"{LOOPBACK}:{port}", "box"),
    )  # fmt: skip


def test_the_command_asks_the_tracker_before_it_reads_the_model(tmp_path: Path) -> None:
    with pytest.raises(NybbleError, match=r"does not answer: .*refused.* nybble tracker"):
        run(asked_of(free_port(), tmp_path))
    servers = [{"key": "server:pi", "addr": ["h", 1]}]
    with (
        answering({"server_info": servers, "queue_info": {}}) as port,
        pytest.raises(NybbleError, match=r"the key 'box' .*pi \(1\)"),
    ):
        run(asked_of(port, tmp_path))


def test_another_listener_is_no_tracker() -> None:
    with socket.create_server((LOOPBACK, 0)) as server:
        port = server.getsockname()[1]

        def greet() -> None:
            with server.accept()[0] as connection:
                connection.sendall(b"HTTP/1.1 400 Bad Request")

        thread = threading.Thread(target=greet)
        thread.start()
        with pytest.raises(NybbleError, match="is no TVM RPC tracker"):
            Tracker.parse(f"{LOOPBACK}:{port}", "box").servers()
        thread.join()


@pytest.mark.parametrize("address", ["9190", "host", "host:", "host:port"])
def test_an_address_without_a_port_is_refused(address: str) -> None:
    with pytest.raises(NybbleError, match="expected host:port"):
        Tracker.parse(address, "box")


def test_a_key_is_needed() -> None:
    with pytest.raises(NybbleError, match="needs --key"):
        Tracker.parse("host:9190", "")


# ---------------------------------------------------------------- a farm on loopback


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[Farm]:
    with farming(tmp_path) as made:
        yield made


def pool_of(farm: Farm, builders: Processes) -> DevicePool:
    limits = Limits(compile=90, run=10)
    return DevicePool(farm.tracker, builders, limits, faults.built, faults.on_device)


@pytest.mark.slow
def test_servers_die_hang_and_return_and_no_outcome_is_lost(farm: Farm, tmp_path: Path) -> None:
    for name in "abcd":
        farm.serve(name)
    farm.wait(4)
    task = task_of(SMALL, tmp_path)
    builders = Processes(2)
    pool = pool_of(farm, builders)
    asked = [task.reference, Point("cpu.generic", "int8"), Point("cpu.none", "int8")]
    asked += [faults.point("wrong"), faults.point("confused")]
    rivals = [Point(kernel.name, "int8") for kernel in kernels_of(task)]
    asked += rivals * 3
    try:
        found = []
        for outcome in pool.measure(task, asked, turns=3):
            found.append(outcome)
            if len(found) == 4:
                farm.signal("a", signal.SIGKILL)
            if len(found) == 6:
                farm.signal("b", signal.SIGSTOP)
            if len(found) == 8:
                farm.signal("c", signal.SIGKILL)
                farm.running["c"].wait()
                farm.serve("c")
        assert len(found) == len(asked)
        by_point = {o.point: o for o in found}
        assert Counter(o.point for o in found) == Counter(asked)
        assert by_point[asked[2]].failure == "illegal"
        assert by_point[asked[3]].failure == "wrong"
        assert by_point[asked[4]].failure == "compiler"
        bad = {asked[2], asked[3], asked[4]}
        assert [o for o in found if o.point not in bad and o.failure is not None] == []
        assert by_point[asked[1]].ratio > 1.5  # type: ignore[operator]
        farm.wait(3)
        farm.signal("b", signal.SIGCONT)
        again = list(pool.measure(task, rivals, turns=3))
        assert [o.failure for o in again] == [None] * len(rivals)
    finally:
        pool.close()
        builders.close()


@pytest.mark.slow
def test_a_candidate_that_crashes_devices_is_named_and_they_serve_on(
    farm: Farm, tmp_path: Path
) -> None:
    farm.serve("a")
    farm.wait(1)
    task = task_of(SMALL, tmp_path)
    builders = Processes(1)
    pool = pool_of(farm, builders)
    try:
        assert pool.machine(task.target) == Machine.here(task.target)
        asked = [faults.point("trap"), task.reference, faults.point("endless")]
        found = {o.point: o for o in pool.measure(task, asked, turns=3)}
        assert found[asked[0]].failure == "crash"
        assert re.search(rf"{LOOPBACK}:\d+", found[asked[0]].detail)
        assert found[asked[1]].failure is None
        assert found[asked[2]].failure == "hang"
        assert "took more than 10 seconds" in found[asked[2]].detail
    finally:
        pool.close()
        builders.close()
