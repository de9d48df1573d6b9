"""The table as data and on the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

import nybble
from nybble import Sensitivity, __main__
from nybble.errors import NybbleError
from nybble.sensitivity_table import Effort

TABLE = Sensitivity(
    {"a": {2: 0.1, "ternary": 0.2, 8: 0.0}, "b": {2: 1 / 3, "ternary": 0.5, 8: 1e-9}},
    {(("a", 2), ("b", "ternary")): -0.01},
    "pairwise",
    Effort(64, 10, 2, 1.5, 0.25),
)


def test_json_keeps_everything() -> None:
    assert Sensitivity.from_json(TABLE.to_json()) == TABLE
    assert TABLE.widths == [2, "ternary", 8]
    assert Sensitivity.from_json('{"losses": {"a": {"4": 1}}}').losses == {"a": {4: 1.0}}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "not JSON"),
        ("[]", "expected an object"),
        ('{"measure": "hessian"}', "expected an object"),
        ('{"losses": {}, "colour": 1}', "expected an object"),
        ('{"losses": {"a": 3}}', "not what to_json writes"),
        ('{"losses": {"a": {"4": "x"}}}', "not what to_json writes"),
        ('{"losses": {}, "pairs": [[1, 2]]}', "not what to_json writes"),
        ('{"losses": {}, "effort": {"hours": 1}}', "not what to_json writes"),
    ],
)
def test_what_is_no_table(text: str, why: str) -> None:
    with pytest.raises(NybbleError, match=why):
        Sensitivity.from_json(text)


def test_the_table_is_what_allocate_takes() -> None:
    size = {layer: {2: 2.0, "ternary": 1.6, 8: 8.0} for layer in TABLE.losses}
    best = nybble.allocate(TABLE, {"size": size}, {"size": 10.0}, solver="iqp")
    assert best.widths == {"a": 2, "b": 8}


def test_the_command_measures_shows_and_writes(
    example: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    images = np.load(example / "calibration.npz")["images"][:4]
    np.save(tmp_path / "x.npy", (images[:, None] / 255).astype(np.float32))
    monkeypatch.setenv("NYBBLE_CACHE", str(tmp_path))
    asked = ["--calibration", tmp_path / "x.npy", "--measure", "influence", "--widths", "3,t"]
    command = ["nybble", "sensitivity", example / "resnet.onnx", *asked]
    monkeypatch.setattr(sys, "argv", [str(a) for a in [*command, "-o", tmp_path / "s.json"]])
    with pytest.raises(SystemExit) as ended:
        __main__.main()
    assert not ended.value.code
    told = capsys.readouterr()
    assert "Loss by influence" in told.out
    assert "/fc/Gemm" in told.out
    assert "at most 1 pass forward over 4 samples" in told.err
    table = Sensitivity.from_json((tmp_path / "s.json").read_text())
    assert table.widths == [3, "ternary"]
    assert len(table.losses) == 14
    assert json.loads((tmp_path / "s.json").read_text())["measure"] == "influence"


def test_the_command_refuses_early(
    example: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    np.save(tmp_path / "x.npy", np.zeros((1, 1, 28, 28), np.float32))
    command = ["nybble", "sensitivity", example / "resnet.onnx", "--calibration"]
    for extra, why in (
        (["--measure", "trace"], "is not one of"),
        (["--widths", "2,x"], "weights='x'"),
        (["--output", tmp_path / "none" / "s.json"], "no directory"),
    ):
        asked = [*command, tmp_path / "x.npy", *extra]
        monkeypatch.setattr(sys, "argv", [str(a) for a in asked])
        with pytest.raises(SystemExit) as ended:
            __main__.main()
        assert ended.value.code == 1
        assert why in capsys.readouterr().err
