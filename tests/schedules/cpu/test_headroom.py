"""Windows of 16-bit sums: proven to their very limit, and what is too much is split off."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nybble.schedules.cpu import headroom
from nybble.schedules.cpu.headroom import Limits
from tests.cases import LINEAR

pytestmark = pytest.mark.sweep

ROW = next(case for case in LINEAR if case.name == "rows")


def problem(k: int, x: str = "uint8"):
    return replace(ROW, x=(9, k), w=(8, k), dtypes=(x, "uint8"), flush=0).problem()


def worst(kept: np.ndarray, flush: int, most: int) -> tuple[int, int]:
    """Smallest and largest 16-bit sum that any activations of 0..most can make in a window."""
    low = high = 0
    for start in range(0, kept.shape[2], flush):
        window = kept[:, :, start : start + flush].astype(np.int64)
        lanes = window.reshape(*window.shape[:3], 2, 2)
        high = max(high, most * int(np.maximum(lanes, 0).sum((2, 4)).max()))
        low = min(low, most * int(np.minimum(lanes, 0).sum((2, 4)).min()))
    return low, high


@pytest.mark.parametrize(("value", "whole"), [(8, 8), (-8, 8), (4, 16), (-4, 16), (1, 64)])
def test_the_window_reaches_its_very_limit(value: int, whole: int) -> None:
    """2·255·8·8 = 32640 fits; one more step would not."""
    w = np.full((8, 4 * whole), value, np.int8)
    assert headroom.flush_of(problem(4 * whole), w) == whole
    w = np.full((8, 4 * (whole + 1)), value, np.int8)
    shorter = headroom.flush_of(problem(4 * (whole + 1)), w)
    assert shorter == 2 or whole // 2 <= shorter <= whole  # two need no accumulators in memory


@pytest.mark.parametrize(("value", "limit"), [(8, 8), (-8, 8), (4, 16), (1, 64)])
def test_windows_are_safe_up_to_their_very_limit(value: int, limit: int) -> None:
    w = np.full((8, 512), value, np.int8)
    assert headroom.is_safe(replace(problem(512), flush=limit), w)
    assert not headroom.is_safe(replace(problem(512), flush=limit + 1), w)
    assert not headroom.is_safe(problem(512), w)  # no windows at all


def test_narrow_activations_have_long_windows() -> None:
    w = np.full((8, 1024), 7, np.int8)
    assert headroom.flush_of(problem(1024, "uint4"), w) == 128  # 2·15·7·156 = 32760
    assert headroom.flush_of(problem(600, "uint4"), w[:, :600]) == 150


def test_weights_that_never_fit_have_no_window() -> None:
    assert headroom.flush_of(problem(64), np.full((8, 64), 127, np.int8)) == 0
    assert headroom.flush_of(problem(64), np.full((8, 64), 64, np.int8)) == 1


@given(st.integers(0, 2**32), st.integers(1, 9), st.integers(1, 20), st.sampled_from([1, 15, 255]))
@settings(max_examples=60)
def test_splitting_keeps_the_sum_and_makes_windows_safe(
    seed: int, flush: int, steps: int, most: int
) -> None:
    rng = np.random.default_rng(seed)
    spread = rng.choice([3, 30, 128])
    w = rng.integers(-spread, min(spread, 127), (8, 2, steps, 4), np.int8, endpoint=True)
    limits = Limits(32767 // most, 32768 // most)
    kept, first, second = headroom.split(w, flush, limits)
    np.testing.assert_array_equal(kept.astype(int) + first + second, w)
    for part, window in ((kept, flush), (first, 1), (second, 1)):
        low, high = worst(part, window, most)
        assert low >= -32768
        assert high <= 32767
