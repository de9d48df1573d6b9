"""Observers, calibration and its errors; memory that does not grow with the data."""

import tracemalloc

import numpy as np
import pytest
from tvm import relax

from nybble.errors import CalibrationError
from nybble.ir import graph
from nybble.passes import pipeline
from nybble.passes.calibrate import Ranges, calibrate
from nybble.passes.observers import (
    BINS,
    Entropy,
    MeanSquaredError,
    MinMax,
    Percentile,
    observer,
)
from nybble.recipe import CALIBRATORS, Recipe
from tests.passes.nets import SHAPE, Net, images, layer


def seen_by(kind, values):
    for part in np.array_split(np.asarray(values, np.float32), 7):
        kind.update(part)
    return kind


def normal(count=100_000, seed=0):
    return np.random.default_rng(seed).standard_normal(count).astype(np.float32)


def test_minmax_includes_zero():
    assert seen_by(MinMax(), np.linspace(1, 3, 50)).range() == (0.0, 3.0)
    assert seen_by(MinMax(), np.linspace(-3, -1, 50)).range() == (-3.0, 0.0)


def test_histogram_grows_by_powers_of_two_and_loses_nothing():
    growing = MeanSquaredError()
    for largest in (0.0, 1e-3, 0.3, 5.0, 1000.0):
        growing.update(np.linspace(-largest, largest, 1000, dtype=np.float32))
    assert growing.reach == 1024
    assert growing.counts.sum() == 5000
    fresh = MeanSquaredError()
    fresh.update(np.linspace(-1000, 1000, 1000, dtype=np.float32))
    growing_tail = growing.counts[100:]
    np.testing.assert_array_equal(growing_tail, fresh.counts[100:])


def test_percentile_matches_numpy():
    x = normal()
    lo, hi = seen_by(Percentile(percent=99.0), x).range()
    exact = np.percentile(np.abs(x), 99)
    assert hi == pytest.approx(exact, abs=2 * 8 / BINS)
    assert lo == -hi


@pytest.mark.parametrize("non_negative", [False, True])
def test_mse_is_the_least_error_of_all_thresholds(non_negative):
    x = np.abs(normal()) if non_negative else normal()
    x = np.concatenate([x, [40.0]]).astype(np.float32)  # an outlier not worth its range
    _, hi = seen_by(MeanSquaredError(), x).range()

    def error(limit):
        levels = 255 if non_negative else 127
        step = limit / levels
        return np.mean((np.clip(np.rint(x / step), -levels, levels) * step - x) ** 2)

    best = min(error(limit) for limit in np.linspace(1, 40, 200))
    assert error(hi) <= best * 1.05
    assert non_negative or hi < 30  # 127 levels are too few for the outlier, 255 are not


def test_entropy_clips_an_outlier_and_keeps_a_plain_distribution():
    plain = np.random.default_rng(0).uniform(-1, 1, 200_000).astype(np.float32)
    assert seen_by(Entropy(), plain).range()[1] > 0.95
    assert seen_by(Entropy(), np.append(normal(), 100)).range()[1] < 50


@pytest.mark.parametrize("calibrator", CALIBRATORS)
@pytest.mark.parametrize("value", [0.0, 3.5, -2.0, 1e-30, 1e30])
def test_constant_activations_have_a_range(calibrator, value):
    lo, hi = seen_by(observer(Recipe(calibrator=calibrator)), np.full(100, value)).range()
    assert lo <= 0 <= hi
    assert max(-lo, hi) == pytest.approx(abs(value), rel=1e-3)


@pytest.mark.parametrize("calibrator", CALIBRATORS)
def test_every_calibrator_quantizes_a_network(calibrator):
    canonical = pipeline.canonicalize(layer("relu"))
    recipe = Recipe(calibrator=calibrator)
    done = []
    batches = [{"x": images(*SHAPE, count=2, seed=s)} for s in range(3)]
    ranges = calibrate(canonical, batches, recipe, done.append)
    assert done == [1, 2, 3, 4, 5, 6]
    assert ranges["x.nhwc"][0] < -1
    assert ranges["r"][0] == 0
    pipeline.to_integer(pipeline.quantize(canonical, ranges, recipe), recipe)


@pytest.mark.parametrize("calibrator", CALIBRATORS)
def test_memory_is_the_same_for_100_and_10_000_samples(calibrator):
    x = relax.Var("x", relax.TensorType((50, 256), "float32"))  # 50 at a time, for speed
    emitter = graph.Emitter([x])
    mod = emitter.finish([emitter.emit(relax.op.nn.relu(x), "r")], ["y"], "float")

    def peak(count):
        stream = ({"x": images(256, count=50, seed=seed)} for seed in range(count // 50))
        tracemalloc.start()
        calibrate(mod, stream, Recipe(calibrator=calibrator))
        result = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return result

    peak(100)  # what is loaded on first use is not ours
    assert peak(10_000) <= peak(100) + 2**16  # all samples would be 10 MB


def bad(**changes):
    return {"x": images(*SHAPE), **changes}


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "calibration data is empty"),
        ([bad(), {}], r"batch 1: expected the inputs \['x'\], got \[\]"),
        ([bad(y=images(1))], r"expected the inputs \['x'\], got \['x', 'y'\]"),
        ([bad(x=images(9, 7, 8))], r"'x': expected shape \('n', 8, 9, 7\), got \(3, 9, 7, 8\)"),
        ([bad(x=images(*SHAPE)[0])], r"got \(8, 9, 7\)"),
        ([bad(x=images(*SHAPE).astype(np.float64))], "expected dtype float32, got float64"),
        ([bad(x=images(*SHAPE, count=0))], "the array is empty"),
        ([bad(), bad(x=images(*SHAPE) * np.float32(np.inf))], "batch 1, input 'x': sample 0"),
        ([bad(x=np.full((2, *SHAPE), np.nan, np.float32))], "NaN or infinity"),
    ],
)  # fmt: skip
def test_bad_data_is_refused(batches, message):
    with pytest.raises(CalibrationError, match=message), np.errstate(invalid="ignore"):
        calibrate(pipeline.canonicalize(layer("relu")), batches, Recipe())


def test_two_inputs_must_agree_on_the_batch():
    net = Net(4, inputs=("a", "b"))
    mod = net.done(net.emit("sum", relax.op.add(*net.params)))
    with pytest.raises(CalibrationError, match="input 'b': expected shape"):
        calibrate(mod, [{"a": images(4, count=2), "b": images(4, count=3)}], Recipe())


def test_a_model_that_overflows_is_named():
    net = Net(4)
    huge = net.emit("huge", relax.op.matmul(net.x, net.normal(4, 4, scale=1e37)))
    mod = net.done(net.relu("r", huge))
    data = [{"x": images(4) * np.float32(1e30)}]
    with (
        pytest.raises(CalibrationError, match="'r' is NaN or infinite"),
        np.errstate(all="ignore"),
    ):
        calibrate(mod, data, Recipe())


def test_a_missing_range_says_what_to_do():
    with pytest.raises(CalibrationError, match="'conv' has no calibrated range"):
        Ranges({})["conv"]
