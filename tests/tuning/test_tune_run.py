"""`nybble.tune` and its command, from a network to records that a compilation uses."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from nybble.commands_tune import Elsewhere, TuneJob, run, seconds_of
from nybble.errors import NybbleError
from nybble.options import RecipeOptions
from nybble.place import Place
from nybble.runtime import engine, host
from nybble.schedules.records import Records
from nybble.schedules.target import resolve
from nybble.tune_run import TuneOptions, tune
from nybble.tuning import view
from nybble.tuning.memory import progress_of
from tests.tuning.synthetic import Formula

TARGET = "x86-64-v3"
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "fashion_mnist"


@cache
def network() -> Any:
    """A convolution and a linear layer, float and quantized to 8 bits."""
    torch = pytest.importorskip("torch")
    import nybble  # noqa: PLC0415

    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(8, 32, 3, padding=1), torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(32, 10),
    )  # fmt: skip
    model = nybble.load_torch(net.eval(), torch.zeros(1, 8, 10, 10), dynamic_batch=False)
    data = np.random.default_rng(0).normal(size=(4, 8, 10, 10)).astype(np.float32)
    return model, nybble.quantize(model, data), data


@pytest.mark.parametrize("quantized", [True, False])
def test_a_network_is_tuned_and_shown(tmp_path: Path, quantized: bool) -> None:
    model, made, _ = network()
    options = TuneOptions(40, threads=1, batch=8, folder=tmp_path / "tasks")
    written, terminal = io.StringIO(), io.StringIO()
    plain = view.View(Console(file=written, width=120))
    live = view.View(Console(file=terminal, width=120, force_terminal=True))

    def watch(state: Any) -> None:
        plain.watch(state)
        live.watch(state)

    with plain, live:
        found = tune(
            made if quantized else model, tmp_path / "net.jsonl", TARGET, options,
            measurer=Formula(), progress=plain.prepared, watch=watch,
        )  # fmt: skip
    assert found.state.trials == 40
    assert found.speedup is not None
    assert found.speedup > 1
    assert found.correlation is None  # two tasks, too few candidates
    assert len(Records.open(tmp_path / "net.jsonl")) >= 40
    assert progress_of(tmp_path / "net.jsonl").exists()
    assert "layers prepared: 1 of" in written.getvalue()
    assert "conv2d 3x3" in terminal.getvalue()
    shown = io.StringIO()
    Console(file=shown, width=160).print(view.table(found.state))
    width = "int8" if quantized else "float32"
    assert f"conv2d 3x3 {width}" in shown.getvalue()
    assert "10x10x" in shown.getvalue()
    line = view.line(found.state)
    assert line.startswith("40 of 40 trials in ")
    assert f"{found.speedup:.3f}x" in line
    assert "left" not in line  # the session is over


@pytest.mark.slow
def test_what_was_found_is_compiled_and_gives_the_same_bits(tmp_path: Path) -> None:
    import nybble  # noqa: PLC0415

    cpu = resolve(TARGET)
    if host.arch() != cpu.arch or not cpu.features <= host.features():
        pytest.skip(f"this CPU does not run {TARGET}")
    _, made, data = network()
    options = TuneOptions(30, threads=1, batch=8, folder=tmp_path / "tasks")
    found = tune(made, tmp_path / "net.jsonl", TARGET, options)
    assert found.state.trials == 30
    assert not found.state.failures
    tuned = nybble.compile(made, TARGET, records=tmp_path / "net.jsonl", threads=1)
    default = nybble.compile(made, TARGET, records=())
    results: list[Any] = [
        nybble.load(artifact.save(tmp_path / f"{name}.so"), threads=1)(data[:1])
        for name, artifact in (("tuned", tuned), ("default", default))
    ]
    np.testing.assert_array_equal(results[0], results[1])
    again = tune(made, tmp_path / "net.jsonl", TARGET, options)
    assert again.state.resumed == again.state.trials == 30


@pytest.mark.parametrize("said", ["1", None])
def test_where_nobody_names_threads_tuning_compiling_and_loading_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str | None
) -> None:
    monkeypatch.delenv("TVM_NUM_THREADS", raising=False)
    if said is not None:
        monkeypatch.setenv("TVM_NUM_THREADS", said)
    options, file = TuneOptions(8, batch=4, folder=tmp_path / "tasks"), tmp_path / "net.jsonl"
    tune(network()[0], file, TARGET, options, measurer=Formula())
    measured = {record.threads for record in Records.read([file])}
    assert measured == {engine.default_threads()}
    assert Place(resolve(TARGET), Records.read([file])).threads == engine.default_threads()


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("2.5", 2.5), ("90s", 90), ("30m", 1800), ("1h30m", 5400)]
)
def test_times_are_read(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "30 m", "1d", "m30", "-3s", "1h30"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(NybbleError, match="such as 90s, 30m or 1h30m"):
        seconds_of(text)


def job(folder: Path, **changed: Any) -> TuneJob:
    given: dict[str, Any] = {
        "model": folder / "net.onnx", "records": folder / "net.jsonl", "calibration": None,
        "recipe": RecipeOptions(), "keep_float": False, "target": "native", "trials": 1,
        "time": None, "threads": None,
    }  # fmt: skip
    return TuneJob(**(given | changed))


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"model": EXAMPLE / "resnet.onnx"}, "Give --calibration FILE"),
        ({"keep_float": True, "calibration": Path("x.npy")}, "Give --calibration FILE"),
        ({"keep_float": True, "target": "z80"}, "Unknown target 'z80'"),
        ({"keep_float": True, "time": "soon"}, "--time soon"),
        ({"keep_float": True, "threads": 0}, "threads=0 is not positive"),
        ({"keep_float": True, "elsewhere": Elsewhere("h:1", "k")}, "--tracker needs --threads"),
    ],
)
def test_bad_arguments_are_told(tmp_path: Path, changed: dict[str, Any], reason: str) -> None:
    with pytest.raises(NybbleError, match=reason):
        run(job(tmp_path, **changed))


def test_records_that_cannot_be_written_are_told_first(tmp_path: Path) -> None:
    with pytest.raises(NybbleError, match="Cannot write the records"):
        tune(network()[0], tmp_path / "no" / "net.jsonl")
