"""What every way to a Ray cluster must answer."""

from __future__ import annotations

from typing import Any

import pytest

from nybble.executors.interface import each, gathered
from tests.executors import calls


def assert_two_workers_answer_and_fail(ray: Any) -> None:
    """Values, errors, crashes and hangs of an executor of two workers."""
    assert ray.workers == 2
    assert list(gathered(ray, calls.double, [(i,) for i in range(8)])) == list(range(0, 16, 2))
    with pytest.raises(ValueError, match="seven is no even number"):
        list(each(ray, calls.refuse, [(0,)]))
    ((_, done),) = each(ray, calls.die, [(0,)])
    assert done.failure is not None
    assert (done.failure.kind, "SIGSEGV" in done.failure.detail) == ("crash", True)
    slept = ray.submit(calls.sleep, (60.0,), limit=3).result()
    assert slept.failure is not None
    assert slept.failure.kind == "hang"
