"""The measuring itself: turns, ratios, and that a race runs real engines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.output import cpu
from benchmarks.peers import Peer, Timing, race


def test_ratio_is_the_median_within_rounds() -> None:
    ours = Timing("ours", (1.0, 2.0, 30.0))  # the machine slowed down in the third round …
    theirs = Timing("theirs", (2.0, 4.0, 60.0))  # … for both
    assert ours.ratio(theirs) == pytest.approx(0.5)
    assert ours.median == 2.0


def test_cpu_has_a_name() -> None:
    assert cpu().strip()


@pytest.mark.whole
def test_race_times_every_peer_every_round(example: Path) -> None:
    one = np.zeros((1, 1, 28, 28), np.float32)
    many = np.zeros((64, 1, 28, 28), np.float32)
    path = example / "resnet.onnx"
    peers = [Peer(n, "onnxruntime", path, x, 1) for n, x in (("one", one), ("many", many))]
    few, lots = race(peers, rounds=3, warmup=1)
    assert (few.name, lots.name) == ("one", "many")
    assert len(few.seconds) == len(lots.seconds) == 3
    assert lots.ratio(few) > 5  # 64 images cost more than one
