"""``nybble tune`` on other machines: what goes together, and a batch that goes and comes back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import nybble
from nybble.errors import NybbleError
from nybble.schedules.records import Records
from nybble.tune_elsewhere import Batches, exchange, measuring
from nybble.tune_run import TuneOptions
from nybble.tuning.memory import SURE
from nybble.tuning.pool import LocalPool

EXAMPLE = Path(__file__).resolve().parent.parent.parent / "examples/fashion_mnist/resnet.onnx"


def test_processes_of_this_machine_measure_by_default() -> None:
    with measuring(workers="3") as measurer:
        assert isinstance(measurer, LocalPool)
        assert measurer.executor.workers == 3


@pytest.mark.parametrize("options", [{"key": "pi"}, {"workers": "ray"}])
def test_what_belongs_to_a_tracker_needs_one(options: dict[str, str]) -> None:
    with pytest.raises(NybbleError, match="belong to --tracker"), measuring(**options):
        pass


def test_threads_of_the_other_machine_are_asked_for(tmp_path: Path) -> None:
    batches = Batches(None, tmp_path / "batch")
    with pytest.raises(NybbleError, match="need --threads"):
        exchange(nybble.Model(None), tmp_path / "r", "native", TuneOptions(), batches)


@pytest.mark.slow
def test_the_next_batch_follows_from_the_times_of_the_last(tmp_path: Path) -> None:
    model, records = nybble.load_onnx(EXAMPLE), tmp_path / "net.records"
    options = TuneOptions(trials=21, threads=1, folder=tmp_path / "tasks")
    first = Batches(None, tmp_path / "one", "2")
    _, made = exchange(model, records, "native", options, first)
    assert made is not None
    script = [sys.executable, "-I", str(tmp_path / "one" / "run.py")]
    subprocess.run(script, check=True, capture_output=True, timeout=500)
    second = Batches(tmp_path / "one", tmp_path / "two", "2")
    times, again = exchange(model, records, "native", options, second)
    assert times is not None
    assert times.missing == 0
    assert times.turns == SURE
    right = [outcome for _, outcome in times.outcomes if outcome.failure is None]
    assert len(Records.open(records).settled()) == len(right) == made.candidates
    assert again is not None
    following = json.loads((tmp_path / "two" / "batch.json").read_text())
    references = [task["reference"]["point"] for task in following["tasks"].values()]
    new = [c for c in following["candidates"] if c["point"] not in references]
    known = [(key, outcome.point.as_dict()) for key, outcome in times.outcomes]
    assert len(new) >= 7
    assert [c for c in new if (c["task"], c["point"]) in known] == []
    sample = np.random.default_rng(0).normal(size=(1, 1, 28, 28)).astype(np.float32)
    other = nybble.quantize(model, [sample])
    with pytest.raises(NybbleError, match="layers are not in this network"):
        exchange(other, records, "native", options, Batches(tmp_path / "one", None))
