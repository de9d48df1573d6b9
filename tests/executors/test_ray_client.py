"""The same calls through Ray's client port, as `--workers ray://host:10001` makes them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import nybble
from nybble import Measure
from nybble.executors import choose
from nybble.executors.interface import gathered
from tests.executors import calls
from tests.executors.answers import assert_two_workers_answer_and_fail
from tests.executors.ray_head import client_server
from tests.sensitivity.nets import images, model

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # Ray's own


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with client_server() as found:
        yield found


def test_calls_come_back_fail_and_are_dropped(address: str) -> None:
    ray = choose.executor(address)
    try:
        assert_two_workers_answer_and_fail(ray)
        shared = ray.share(b"12345")
        assert list(gathered(ray, calls.length_of, [(shared,), (shared,)])) == [5, 5]
        waiting = [ray.submit(calls.sleep, (300.0,)) for _ in range(3)]
        ray.drop(waiting)
        assert list(gathered(ray, calls.double, [(21,)])) == [42]
    finally:
        ray.close()


def test_pairs_are_the_same_through_a_client(address: str) -> None:
    measure = Measure("pairwise", remember=False)
    here = nybble.sensitivity(model(), images(), measure, (2, 8))
    there = nybble.sensitivity(model(), images(), measure, (2, 8), workers=address)
    assert there.losses.keys() == here.losses.keys()
    for layer, losses in here.losses.items():
        assert there.losses[layer] == pytest.approx(losses, rel=1e-4, abs=1e-9)
    assert there.pairs == pytest.approx(here.pairs, rel=1e-4, abs=1e-9)
