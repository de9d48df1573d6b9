"""Whole sessions of `nybble tune --tracker`, typed as a person types them, and what they leave."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

import nybble
from nybble.schedules.records import Records
from tests.executors.ray_head import client_server
from tests.tuning.farm import LOOPBACK, ROOT, farming

EXAMPLE = ROOT / "examples" / "fashion_mnist"


def typed(*words: object) -> str:
    """What a command prints; it must succeed."""
    done = subprocess.run(
        [sys.executable, "-m", "nybble", *map(str, words)],
        cwd=ROOT, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return " ".join((done.stdout + done.stderr).split())  # whatever the width of lines


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # Ray's own
@pytest.mark.parametrize("builders", ["2", "ray"])
def test_a_session_behind_a_tracker_and_its_records_in_a_library(
    tmp_path: Path, builders: str
) -> None:
    images = np.load(EXAMPLE / "calibration.npz")["images"][:16, None].astype(np.float32) / 255
    np.save(tmp_path / "images.npy", images)
    records = tmp_path / "net.jsonl"
    network = (EXAMPLE / "resnet.onnx", "--calibration", tmp_path / "images.npy")
    with ExitStack() as stack:
        farm = stack.enter_context(farming(tmp_path))
        for name in "ab":
            farm.serve(name)
        workers = stack.enter_context(client_server()) if builders == "ray" else builders
        farm.wait(2, seconds=400)
        tracker = ("--tracker", f"{LOOPBACK}:{farm.port}")
        assert "box" in typed("devices", *tracker)
        told = typed(
            "tune", *network, "--records", records, *tracker, "--key", "box", "--threads", 1,
            "--workers", workers, "--trials", 16, "--seed", 1,
        )  # fmt: skip
    assert "16 of 16 trials" in told
    known = Records.read([records])
    assert len(known) >= 12  # some candidates are illegal
    assert {record.threads for record in known} == {1}
    outputs, kinds = {}, set[str]()
    for name, given in (("tuned", ["--records", records]), ("default", [])):
        told = typed("compile", *network, "-o", tmp_path / f"{name}.so", *given)
        assert ("for 1 thread(s), like the records" in told) == (name == "tuned")
        session = nybble.load(tmp_path / f"{name}.so", threads=1)
        outputs[name] = np.asarray(session(images))
        if name == "tuned":
            found = (layer.get("tuned") for layer in session.manifest.layers)
            kinds = {one["kind"] for one in found if one}
    assert "exact" in kinds or not any(record.is_sure and record.wins for record in known)
    np.testing.assert_array_equal(outputs["tuned"], outputs["default"])
