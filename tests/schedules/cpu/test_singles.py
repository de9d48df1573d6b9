"""Rescaling in float32 equals the law wherever it says that it does."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nybble.errors import ScheduleError
from nybble.ir import numerics
from nybble.schedules.cpu import scaling, singles
from nybble.schedules.kernel import Epilogue, Problem, TensorSpec

pytestmark = pytest.mark.sweep


def layer(
    ratios: np.ndarray, weight: int, bounds: tuple[int, int], other: tuple[np.ndarray, str] | None
) -> tuple[Problem, dict[str, Any]]:
    """A linear layer of 64 equal weights a channel, so that accumulators reach 64·255·weight."""
    channels = len(ratios)
    data: dict[str, Any] = {
        "w": np.full((channels, 64), weight, np.int8),
        "bias": np.zeros(channels, np.int32),
    }
    suffix, add = ("_a", other) if other else ("", None)
    data |= {f"multiplier{suffix}": numerics.dyadic(ratios)[0]}
    data |= {f"shift{suffix}": numerics.dyadic(ratios)[1]}
    tail = Epilogue("requantize", *bounds)
    if add:
        data |= dict(zip(("multiplier_b", "shift_b"), numerics.dyadic(add[0]), strict=True))
        tail = Epilogue("add", *bounds, TensorSpec((1, channels), add[1]), zero_point_other=3)
    spec = TensorSpec((1, 64), "uint8")
    output = TensorSpec((1, channels), "int8")
    weights = TensorSpec(data["w"].shape, "int8")
    return Problem("linear", (spec,), output, weights=weights, epilogue=tail), data


def rounded(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """What one fused multiply-add beside 1.5·2^23 gives; products are exact in float64."""
    return np.rint(x.astype(np.float32).astype(np.float64) * scale).astype(np.int64)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32), ratio=st.floats(-11, 1), weight=st.integers(1, 127),
    bounds=st.sampled_from([(0, 15), (-8, 7), (0, 255), (-128, 127), (-1, 1)]),
    dtype=st.sampled_from([None, "uint8", "int8", "uint4", "int1"]),
)  # fmt: skip
def test_every_accumulator_gives_what_the_law_says(
    seed: int, ratio: float, weight: int, bounds: tuple[int, int], dtype: str | None
) -> None:
    rng = np.random.default_rng(seed)
    first, second = (np.exp2(rng.uniform(-1, 1, 3) + e) for e in (ratio, rng.uniform(-6, 3)))
    problem, data = layer(first, weight, bounds, (second, dtype) if dtype else None)
    found = singles.rows(problem, data, 3)
    if found is None:
        return
    scales = [row.astype(np.int32).view(np.float32).astype(np.float64)[:, None] for row in found]
    most = 64 * 255 * weight
    acc = np.unique(np.concatenate([np.arange(-70_000, 70_000), [most, 1 - most, -most]]))
    acc = acc[np.abs(acc) <= most][None]
    suffix = "_a" if dtype else ""
    m, c = (data[name + suffix][:, None] for name in ("multiplier", "shift"))
    got, law = rounded(acc, scales[0]), numerics.scaled(acc, m, c, "half_up")
    reaches = np.zeros(2, np.int64)
    if dtype:
        ends = numerics.limits(dtype)
        x = np.arange(ends[0], ends[1] + 1)[None] - 3
        m, c = (data[name][:, None] for name in ("multiplier_b", "shift_b"))
        other = numerics.scaled(x, m, c, "half_up")
        np.testing.assert_array_equal(rounded(x, scales[1]), other)
        reaches = np.array([other.min(), other.max()])
    for reach in reaches:  # clamping what is added to it, whatever that is
        np.testing.assert_array_equal(
            np.clip(got + reach, *bounds), np.clip(law + reach, *bounds)
        )  # fmt: skip
    assert np.abs(got).max() < singles.REACH


def test_four_bits_are_always_exact_and_eight_by_eight_are_not() -> None:
    ratios = np.exp2(-np.linspace(8, 12, 512))
    problem, data = layer(ratios, 127, (0, 15), None)
    assert singles.is_exact(problem, data)
    wide = replace(problem, epilogue=replace(problem.epilogue, hi=255))
    assert not singles.is_exact(wide, data)


def test_what_is_not_proven_is_refused() -> None:
    problem, data = layer(np.exp2(-np.linspace(8, 12, 512)), 127, (0, 255), None)
    forced = replace(problem, epilogue=replace(problem.epilogue, singles=True))
    with pytest.raises(ScheduleError, match="float32"):
        scaling.rows(forced, data, 512)
    zero = data | {"multiplier": np.zeros(512, np.int32)}
    assert not singles.is_exact(problem, zero)
    even = replace(problem, epilogue=replace(problem.epilogue, rounding="half_even", hi=15))
    assert not singles.is_exact(even, data)


def test_exact_halves_round_up_as_in_the_law() -> None:
    """A ratio of 1/2 ties at every odd accumulator; float32 alone would round them to even."""
    problem, data = layer(np.full(1, 0.5), 1, (0, 255), None)
    rows: Any = singles.rows(problem, data, 1)
    (scale,) = rows
    acc = np.arange(-600, 600)
    got = rounded(acc, scale.astype(np.int32).view(np.float32).astype(np.float64))
    np.testing.assert_array_equal(np.clip(got, 0, 255), np.clip((acc + 1) >> 1, 0, 255))
