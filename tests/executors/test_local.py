"""Processes of this machine: every call comes back once, whatever happens to its process."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nybble.errors import NybbleError
from nybble.executors.interface import each, gathered
from nybble.executors.local import Processes
from tests.executors import calls


@pytest.fixture
def pool() -> Iterator[Processes]:
    processes = Processes(2)
    yield processes
    processes.close()
    assert processes.pids == []


def test_every_call_comes_back_from_processes_that_stay(pool: Processes) -> None:
    assert pool.pids == []  # nothing starts before it is needed
    assert list(gathered(pool, calls.double, [(i,) for i in range(9)])) == list(range(0, 18, 2))
    pids = {done.value for _, done in each(pool, calls.pid_of, [(i,) for i in range(9)])}
    assert pids <= set(pool.pids)  # an ended batch leaves them alone
    assert os.getpid() not in pids
    assert pool.counts == {"start": 2}


def test_workers_load_nothing_that_they_do_not_need(pool: Processes) -> None:
    ((_, done),) = each(pool, calls.loaded, [(("numpy", "tvm", "torch", "pytest"),)])
    assert done.value == []


def test_a_call_that_kills_its_process_is_tried_twice_and_named(pool: Processes) -> None:
    done = dict(each(pool, calls.die_at, [(i, 3) for i in range(6)]))
    assert {i: d.value for i, d in done.items() if i != 3} == {0: 0, 1: 2, 2: 4, 4: 8, 5: 10}
    failure = done[3].failure
    assert failure is not None
    assert failure.kind == "crash"
    assert failure.detail == "the process ended by SIGSEGV: last words"
    assert pool.counts["crash"] in (1, 2)  # one if its process had done nothing before


def test_a_killed_process_is_replaced_and_its_call_done_again(
    pool: Processes, tmp_path: Path
) -> None:
    list(each(pool, calls.double, [(i,) for i in range(4)]))
    done = gathered(pool, calls.die_once, [(i, tmp_path / "mark") for i in range(4)])
    assert list(done) == [0, 2, 4, 6]
    pids = pool.pids
    os.kill(pids[0], signal.SIGKILL)  # between two calls: nobody notices
    assert list(gathered(pool, calls.double, [(i,) for i in range(4)])) == [0, 2, 4, 6]


def test_a_call_that_hangs_is_ended_after_its_limit(pool: Processes) -> None:
    done = dict(each(pool, calls.sleep, [(60.0,), (0.0,)], limit=2))
    failure = done[0].failure
    assert failure is not None
    assert (failure.kind, failure.detail) == (
        "hang", "the call took more than 2 seconds and was ended.",
    )  # fmt: skip
    assert done[1].value == 0.0
    assert pool.counts["hang"] == 1


def test_stages_have_limits_of_their_own(pool: Processes) -> None:
    ((_, hung),) = each(pool, calls.hang_in_stage, [(0,)])
    assert hung.failure is not None
    assert hung.failure.detail == "measuring took more than 0.3 seconds and was ended."
    ((_, done),) = each(pool, calls.stages, [(0,)], limit=30)
    assert done.value == 1


def test_what_a_function_raises_is_raised_with_where(pool: Processes) -> None:
    with pytest.raises(ValueError, match="seven is no even number") as caught:
        list(each(pool, calls.refuse, [(0,)]))
    assert "in refuse" in caught.value.__notes__[0]
    with pytest.raises(TypeError, match="cannot send back a function"):
        list(each(pool, calls.unsendable, [(0,)]))


def test_who_stops_listening_ends_the_work(pool: Processes) -> None:
    results = each(pool, calls.sleep, [(0.0,), (50.0,), (51.0,), (52.0,)])
    assert next(results)[1].value == 0.0
    start = time.monotonic()
    results.close()  # type: ignore[attr-defined]
    assert list(gathered(pool, calls.double, [(1,)])) == [2]
    assert time.monotonic() - start < 20


def test_a_failure_is_an_error_where_all_values_are_needed(pool: Processes) -> None:
    with pytest.raises(NybbleError, match=r"no result \(crash\): the process ended by SIGSEGV"):
        list(gathered(pool, calls.die, [(0,)]))


def test_no_workers_are_refused() -> None:
    with pytest.raises(NybbleError, match="workers=0: at least one"):
        Processes(0)
