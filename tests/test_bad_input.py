"""Bad input at the public surface: every refusal says what, where, why and what to do.

Each room refuses what it is given, and tests that in all its forms:

- truncated ONNX, no ONNX at all, unknown operators, NaN in weights:
  tests/frontend/test_onnx_errors.py and (operators, NaN) tests/frontend/test_torch.py;
- empty calibration data, wrong shape or dtype, NaN: tests/passes/test_calibrate.py;
- inputs of a call that do not fit: tests/runtime/test_session.py;
- unwritable path, full disk (a really full one too), no C compiler: tests/runtime/test_artifact.py;
- text, foreign, cut or damaged files given as `.so`: tests/runtime/test_manifest.py.

Here stands what a user meets: the command line for each of these, and the public calls where they
check before a room does.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm

import nybble
from nybble import __main__
from nybble.errors import ArtifactError, CalibrationError, NybbleError, UnsupportedOpError
from tests.frontend.onnx_models import model, node, values

SHAPE = (3, 9, 7)


def network(weight: Any = None, *more: Any) -> bytes:
    w = values(4, 3, 3, 3) if weight is None else weight
    nodes = [node("Conv", "x w", "h"), *more, node("Relu", "h" if not more else "g")]
    return bytes(model(nodes, weights={"w": w}).SerializeToString())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with a good network, good samples, and bad ones of each kind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "2000")  # a message on one line
    monkeypatch.delenv("NYBBLE_DEBUG", raising=False)
    nan = values(4, 3, 3, 3)
    nan[1, 2] = np.nan
    unknown = (node("Det", "h", "e"), node("Bernoulli", "e", "f"), node("Multinomial", "f", "g"))
    files = {
        "good.onnx": network(),
        "cut.onnx": network()[:-40],
        "nan.onnx": network(nan),
        "unknown.onnx": network(None, *unknown),
        "text.so": b"no library",
    }
    for name, content in files.items():
        Path(name).write_bytes(content)
    x = values(4, *SHAPE)
    bad = x.copy()
    bad[2, 0, 0, 0] = np.nan
    arrays = {"x": x, "none": x[:0], "shape": x[:, :, :5], "double": x.astype("f8"), "nan": bad}
    for name, array in arrays.items():
        np.save(f"{name}.npy", array)
    return tmp_path


def refusal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: str
) -> str:
    """What the command line says; it must end with exit code 1 and leave no new file."""
    before = sorted(os.listdir())
    monkeypatch.setattr(sys, "argv", ["nybble", *arguments.split()])
    with pytest.raises(SystemExit) as ended:
        __main__.main()
    assert ended.value.code == 1
    assert sorted(os.listdir()) == before
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


COMPILE = "compile {} -o net.so --calibration {}"
REFUSED = {
    "truncated": (
        COMPILE.format("cut.onnx", "x.npy"),
        "'cut.onnx' (|bytes) is no ONNX file, or a truncated one|Check that it was copied",
    ),
    "missing": (COMPILE.format("gone.onnx", "x.npy"), "gone.onnx"),
    "unknown_ops": (
        COMPILE.format("unknown.onnx", "x.npy"),
        "3 node(s)|Det 'the_Det_e': |Bernoulli 'the_Bernoulli_f': |Multinomial 'the_Multinomial_g'",
    ),
    "nan_in_weights": (
        COMPILE.format("nan.onnx", "x.npy"),
        "weight 'w' of shape (4, 3, 3, 3)|9 value|NaN",
    ),
    "empty_calibration": (
        COMPILE.format("good.onnx", "none.npy"),
        "calibration data is empty|Give at least one batch",
    ),
    "calibration_shape": (
        COMPILE.format("good.onnx", "shape.npy"),
        "Calibration batch 0, input 'x': expected shape|3, 9, 7)|got (1, 3, 5, 7)",
    ),
    "calibration_dtype": (
        COMPILE.format("good.onnx", "double.npy"),
        "input 'x': expected dtype float32, got float64|.astype('float32')",
    ),
    "nan_in_calibration": (
        COMPILE.format("good.onnx", "nan.npy"),
        "Calibration batch 2, input 'x'|NaN or infinity",
    ),
    "target": (
        COMPILE.format("good.onnx", "x.npy") + " --target z80",
        "Unknown target 'z80'|Use 'native', 'x86-64'",
    ),
    "no_such_folder": (
        COMPILE.format("good.onnx", "x.npy").replace("net.so", "gone/net.so"),
        "Cannot write gone/net.so: there is no directory gone",
    ),
    "preference": (
        COMPILE.format("good.onnx", "x.npy") + " --prefer tiny",
        "prefer='tiny' is neither 'speed' nor 'size'",
    ),
    "unwritable": (
        COMPILE.format("good.onnx", "x.npy").replace("net.so", "/proc/net.so"),
        "Cannot write /proc/net.so: ",
    ),
    "text_as_library": ("run text.so x.npy", "text.so: not a shared library; it starts with|no li"),
}  # fmt: skip


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("case", REFUSED)
def test_command_line_says_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    arguments, parts = REFUSED[case]
    said = refusal(monkeypatch, capsys, arguments)
    assert [part for part in parts.split("|") if part not in said] == []


def test_full_disk_keeps_the_older_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (folder / "net.so").write_text("older")
    monkeypatch.setattr(os, "fsync", full)
    said = refusal(monkeypatch, capsys, COMPILE.format("good.onnx", "x.npy"))
    assert "Cannot write net.so: no space left on the device. Nothing was written." in said
    assert (folder / "net.so").read_text() == "older"


def test_no_c_compiler(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CC", raising=False)
    said = refusal(monkeypatch, capsys, COMPILE.format("good.onnx", "x.npy"))
    assert "No C compiler" in said
    assert "apt install gcc" in said
    monkeypatch.setenv("CC", "gone-cc")
    said = refusal(monkeypatch, capsys, COMPILE.format("good.onnx", "x.npy"))
    assert "CC='gone-cc' is not on the PATH" in said


def test_ctrl_c_inside_of_tvm_ends_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(mod: tvm.IRModule, _context: Any) -> tvm.IRModule:
        signal.raise_signal(signal.SIGINT)
        return mod

    step = tvm.ir.transform.module_pass(interrupted, opt_level=0, name="interrupted")
    monkeypatch.setattr(__main__, "app", lambda: step(tvm.IRModule()))
    usual = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as ended:
        __main__.main()
    assert ended.value.code == 130
    assert signal.getsignal(signal.SIGINT) is usual


# ---------------------------------------------------------------- the public calls


def test_every_unknown_node_is_in_the_error() -> None:
    more = (node("Det", "h", "e"), node("Bernoulli", "e", "g"))
    with pytest.raises(UnsupportedOpError) as caught:
        nybble.load_onnx(network(None, *more))
    assert [(n.op, n.name) for n in caught.value.nodes] == [
        ("Det", "the_Det_e"),
        ("Bernoulli", "the_Bernoulli_g"),
    ]
    assert all(n.reason for n in caught.value.nodes)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "data is a NoneType; give an iterable of arrays"),
        ("x.npy", "data is a str; give an iterable of arrays"),
        ({"x": values(2, *SHAPE)}, r"data is a dict; .*\[array\] for a single batch"),
        ([], "data is empty"),
        (iter(()), "data is empty"),
        ([1.0], r"batch 0, input 'x': expected dtype float32, got float64"),
        ([np.float32(1)], r"batch 0, input 'x': expected shape .*, got \(\)"),
        ([values(2, *SHAPE), [[1], [2, 3]]], "batch 1, input 'x': not readable as an array"),
        ([(values(2, *SHAPE), np.arange(2))], r"Leave labels out: \(images for images, labels"),
        ([values(2, 3, 9)], r"expected shape \('\w+', 3, 9, 7\), got \(1, 2, 3, 9\)"),
        ([{}], r"batch 0: expected the inputs \['x'\], got \[\]"),
        ([{"y": values(2, *SHAPE)}], r"expected the inputs \['x'\], got \['y'\]"),
    ],
)
@pytest.mark.parametrize("progress", [None, lambda *_: None], ids=["silent", "with_progress"])
def test_calibration_data_that_is_none(data: Any, message: str, progress: Any) -> None:
    imported = nybble.load_onnx(network())
    with pytest.raises(CalibrationError, match=message):
        nybble.quantize(imported, data, progress=progress)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (values(2, 3, 9), r"Input 'x': expected float32 \(.*3, 9, 7\), got float32 \(2, 3, 9\)"),
        (values(2, *SHAPE).astype("f8"), "expected float32 .*, got float64 .*cast the array"),
        ({"y": values(2, *SHAPE)}, r"takes the inputs \['x'\], got \['y'\]"),
        ([values(2, *SHAPE)] * 2, r"takes the inputs \['x'\]"),
        (None, "Input 'x': expected float32"),
    ],
)
def test_inputs_of_the_law_that_do_not_fit(inputs: Any, message: str) -> None:
    imported = nybble.load_onnx(network())
    quantized = nybble.quantize(imported, [values(2, *SHAPE)])
    for run in (imported.run, quantized.run, quantized.simulate):
        with pytest.raises(NybbleError, match=message):
            run(inputs)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("z80", r"Unknown target 'z80'\. Use 'native'"),
        (None, "Unknown target None"),
        ({"kind": "cuda"}, "only LLVM targets"),
        ({"kind": "llvm", "mcpu": "znver99"}, "LLVM knows no CPU 'znver99' for '"),
        ({"kind": "llvm", "mtriple": "bogus"}, "LLVM knows no CPU 'generic' for 'bogus'"),
        ({"kind": "llvm", "speed": 1}, "Unknown config option 'speed'"),
    ],
)
def test_targets_that_do_not_exist(target: Any, message: str) -> None:
    imported = nybble.load_onnx(network())
    with pytest.raises(NybbleError, match=message):
        nybble.compile(imported, target)


def test_what_is_no_model_and_no_recipe(tmp_path: Path) -> None:
    path: Any = "net.onnx"
    calls: list[Callable[[], Any]] = [
        lambda: nybble.compile(path),
        lambda: nybble.tune(path, tmp_path / "x.jsonl"),
        lambda: nybble.quantize(path, []),
        lambda: nybble.sensitivity(path, []),
    ]
    for call in calls:
        with pytest.raises(NybbleError, match=r"The model is a str; pass what nybble\.load_onnx"):
            call()
    assert list(tmp_path.iterdir()) == []
    imported = nybble.load_onnx(network())
    no_recipe: Any = {"weights": 4}
    with pytest.raises(NybbleError, match=r"The recipe is a dict; give a nybble\.Recipe"):
        nybble.quantize(imported, [], no_recipe)


def test_a_text_file_is_no_library(folder: Path) -> None:
    with pytest.raises(ArtifactError, match=r"text\.so: not a shared library; it starts with b'no"):
        nybble.load(folder / "text.so")
