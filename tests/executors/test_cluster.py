"""The same calls on a Ray cluster of two nodes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nybble.errors import NybbleError
from nybble.executors import choose
from nybble.executors.cluster import RayCluster
from nybble.executors.local import Processes
from tests.executors import calls
from tests.executors.answers import assert_two_workers_answer_and_fail


@pytest.mark.parametrize("name", ["0", "-1", "many", "rays", "ray//host"])
def test_unknown_workers_are_refused(name: str) -> None:
    with pytest.raises(NybbleError, match=f"--workers {name}: expected a number"):
        choose.executor(name)


def test_a_number_means_processes() -> None:
    made = choose.executor("3")
    assert isinstance(made, Processes)
    assert made.workers == 3
    made.close()


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head and a second node, of one core each."""
    pytest.importorskip("ray", reason="Ray is in the extra nybble[farm]")
    from ray.cluster_utils import Cluster  # noqa: PLC0415

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    made.add_node(num_cpus=1)
    yield made
    made.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # Ray's own
def test_two_nodes_do_again_what_a_killed_worker_had(cluster: Any, tmp_path: Path) -> None:
    ray = RayCluster(cluster.address)
    try:
        assert_two_workers_answer_and_fail(ray)

        marks = [tmp_path / str(i) for i in range(4)]
        futures = [ray.submit(calls.wait_marked, (mark, 4.0)) for mark in marks]
        first = worker_of(marks)
        os.kill(first, signal.SIGKILL)  # a Ray worker with a call on it
        assert [future.result(timeout=120).value for future in futures] == marks
        for mark in marks:
            mark.unlink()
        futures = [ray.submit(calls.wait_marked, (mark, 4.0)) for mark in marks]
        worker_of(marks)
        cluster.remove_node(cluster.worker_nodes.copy().pop(), allow_graceful=False)
        assert [future.result(timeout=180).value for future in futures] == marks
    finally:
        ray.close()


def worker_of(marks: list[Path]) -> int:
    """Process of the Ray worker that runs one of these calls."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        found = [mark.read_text() for mark in marks if mark.exists()]
        if any(found):
            return int(next(filter(None, found)))
        time.sleep(0.1)
    pytest.fail("no call has started")


@pytest.mark.parametrize("name", ["ray://127.0.0.1:1", "ray:127.0.0.1:1"])
def test_no_cluster_is_an_error(name: str) -> None:
    with pytest.raises(NybbleError, match=r"No Ray cluster answers at .*127\.0\.0\.1:1: .*refused"):
        choose.executor(name)
