"""The command line: quick, and every failure is one message with exit code 1."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from nybble import __main__, commands
from nybble.errors import NybbleError
from nybble.runtime import artifact
from nybble.runtime.manifest import Port, read
from tests.runtime.tiny import tiny_executable, tiny_manifest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "fashion_mnist"


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "net.so"
    artifact.export(tiny_executable(), tiny_manifest(), path)
    return path


def nybble(*args: object, debug: bool = False) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    env.pop("NYBBLE_DEBUG", None)
    return subprocess.run(
        [sys.executable, "-m", "nybble", *map(str, args)],
        env={**env, "NYBBLE_DEBUG": "1"} if debug else env,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def call(monkeypatch: pytest.MonkeyPatch, *args: object) -> int:
    """Runs the command line in this process; returns the exit code."""
    monkeypatch.setattr(sys, "argv", ["nybble", *map(str, args)])
    with pytest.raises(SystemExit) as ended:
        __main__.main()
    return int(ended.value.code or 0)


def test_help_is_light_and_names_every_command() -> None:
    code = (
        "import sys; sys.argv = ['nybble', '--help']\n"
        "import atexit; atexit.register(lambda: print([m for m in "
        "('numpy', 'tvm', 'tvm_ffi', 'torch', 'onnx') if m in sys.modules]))\n"
        "from nybble.__main__ import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip().endswith("[]")
    for command in ("compile", "report", "run", "bench", "inspect", "demo"):
        assert command in done.stdout


@pytest.mark.parametrize("command", ["compile", "report", "run", "bench", "inspect", "demo"])
def test_every_command_has_help(monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    assert call(monkeypatch, command, "--help") == 0


def test_inspect_json(
    monkeypatch: pytest.MonkeyPatch, net: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "inspect", net, "--json", "--time") == 0
    told = json.loads(capsys.readouterr().out)
    assert [layer["name"] for layer in told["layers"]] == ["first", "view", "second"]
    first, view, _ = told["layers"]
    assert (first["op"], first["kernel"]) == ("scale", "test.scale")
    assert first["widths"] == "float32 x float32"
    assert 0 <= first["time"] < 0.1
    assert view["time"] is None
    assert told["float_ops"] == []
    assert told["inputs"][0]["shape"] == ["n", 4]
    assert told["times_missing_because"] is None


def test_inspect_works_for_another_machines_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "net.so"
    artifact.export(tiny_executable(), tiny_manifest(features=("avx1024",)), path)
    assert call(monkeypatch, "inspect", path, "--json", "--time") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["layers"][0]["time"] is None
    assert "lacks avx1024" in told["times_missing_because"]


def test_inspect_prints_layers(net: Path) -> None:
    done = nybble("inspect", net)
    assert done.returncode == 0, done.stderr
    assert "test.scale" in done.stdout
    assert "3 layers" in done.stdout
    assert "x: float32[n, 4]" in done.stdout  # not eaten as markup


def test_run_writes_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, net: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "x.npz", x=x)
    expected = x * np.arange(1, 5, dtype=np.float32) ** 2
    for name in ("x.npy", "x.npz"):
        assert call(monkeypatch, "run", net, tmp_path / name, "-o", tmp_path / "y.npz") == 0
        with np.load(tmp_path / "y.npz") as stored:
            np.testing.assert_array_equal(stored["y"], expected)
    assert "float32" in capsys.readouterr().out


def test_bench(
    monkeypatch: pytest.MonkeyPatch, net: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "bench", net, "--threads", "1,2", "--repeats", 3, "--batch", 4) == 0
    shown = capsys.readouterr().out
    assert "images/s" in shown
    assert "batch 4" in shown


def test_errors_are_one_block_and_exit_code_1(tmp_path: Path) -> None:
    text = tmp_path / "text.so"
    text.write_text("no library")
    done = nybble("inspect", text)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "not a shared library" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Traceback" in nybble("inspect", text, debug=True).stderr


@pytest.mark.parametrize("arguments", [["run", "NET", "X"], ["bench", "NET", "--threads", "two"]])
def test_wrong_use_is_an_error(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    net: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 4)))  # float64
    places = {"NET": str(net), "X": str(tmp_path / "x.npy")}
    assert call(monkeypatch, *(places.get(a, a) for a in arguments)) == 1
    shown = " ".join(capsys.readouterr().err.split())
    assert ("expected float32" in shown) or ("expected positive numbers" in shown)


def test_unwritable_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, net: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 4), np.float32))
    assert call(monkeypatch, "run", net, tmp_path / "x.npy", "-o", "/proc/y.npz") == 1


def test_compile_wants_calibration_or_float(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = EXAMPLE / "resnet.onnx"
    assert call(monkeypatch, "compile", model, "-o", tmp_path / "net.so") == 1
    assert "--calibration" in capsys.readouterr().err


def test_random_inputs_fit_any_manifest() -> None:
    ports = (Port("a", ("n", 3), "float32"), Port("b", (2, "m"), "uint8"))
    made = commands.random_inputs(tiny_manifest(inputs=ports), batch=5)
    assert {k: (v.shape, str(v.dtype)) for k, v in made.items()} == {
        "a": ((5, 3), "float32"),
        "b": ((2, 5), "uint8"),
    }


def test_samples_of_files_and_folders(tmp_path: Path) -> None:
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    np.save(tmp_path / "1.npy", x)
    np.savez(tmp_path / "2.npz", a=x, b=x + 1)
    assert [np.asarray(s).tolist() for s in commands.Samples(tmp_path / "1.npy")] == [
        [[0, 1]],
        [[2, 3]],
        [[4, 5]],
    ]
    both = list(commands.Samples(tmp_path))
    assert len(both) == len(commands.Samples(tmp_path)) == 6
    last = both[-1]
    assert isinstance(last, dict)
    assert {k: v.tolist() for k, v in last.items()} == {"a": [[4, 5]], "b": [[5, 6]]}


def test_samples_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(NybbleError, match=r"no \.npy or \.npz"):
        commands.Samples(tmp_path)
    (tmp_path / "x.npy").write_text("text")
    with pytest.raises(NybbleError, match="not a NumPy file"):
        commands.Samples(tmp_path)
    np.savez(tmp_path / "x.npz", a=np.zeros((2, 1)), b=np.zeros((3, 1)))
    with pytest.raises(NybbleError, match="differ in length"):
        commands.Samples(tmp_path / "x.npz")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["compile", "absent.onnx", "--float", "-o", "net.so"], "no such file"),
        (["compile", ".", "--float", "-o", "net.so"], "a folder"),
        (["compile", "net.pt", "--float", "-o", "net.so"], "torch.export.save"),
        (["compile", "net.pt2", "--float", "-o", "net.so"], "not what torch.export.save writes"),
        (["compile", "zip.pt2", "--float", "-o", "net.so"], "cannot read it"),
        (["compile", "net.pt", "--float", "-o", "absent/net.so"], "no directory"),
        (["compile", "net.pt", "--float", "-o", "net.so", "--target", "z80"], "Unknown target"),
        (["compile", "net.pt", "--calibration", ".", "-o", "net.so", "--recipe", "bytes.json"],
         "not even text"),
        (["compile", "net.pt", "--calibration", ".", "-o", "net.so", "--weights", "nine"],
         "weights='nine' is not one of: 1 to 8, 'ternary'"),
        (["compile", "net.pt", "--calibration", ".", "-o", "net.so", "--layer", "a*=4"],
         "Write PATTERN=w4a8"),
        (["compile", "net.pt", "--calibration", ".", "-o", "net.so", "--activations", "float"],
         "just one of them"),
        (["run", "NET", "absent.npy"], "no such file"),
        (["run", "NET", "x.npy", "--threads", "99999"], "threads=99999: this process may use"),
        (["run", "NET", "x.npy", "-o", "."], "it is a directory"),
        (["demo", "--report", "absent/page.html"], "no directory"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_told_at_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    net: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.zeros((2, 4), np.float32))
    np.savez("zip.npz", x=np.zeros(2))
    Path("zip.npz").rename("zip.pt2")
    Path("bytes.json").write_bytes(b"\xff\xfe")
    for name in ("net.pt", "net.pt2"):
        Path(name).write_text("text")
    before = sorted(tmp_path.iterdir())
    assert call(monkeypatch, *(str(net) if a == "NET" else a for a in arguments)) == 1
    shown = capsys.readouterr()
    assert told in " ".join(shown.err.replace("│", "").split())
    assert "Traceback" not in shown.err
    assert sorted(tmp_path.iterdir()) == before


def test_compile_an_exported_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch = pytest.importorskip("torch", reason="needs the extra nybble[torch]")
    layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2)).eval()
    example = (torch.zeros(2, 4),)
    torch.export.save(torch.export.export(layers, example), tmp_path / "net.pt2")
    path = tmp_path / "net.so"
    done = ["compile", tmp_path / "net.pt2", "--float", "-o", path, "--target", "x86-64-v3"]
    assert call(monkeypatch, *done) == 0
    assert "float model" in capsys.readouterr().out
    assert read(path).inputs[0].shape == (2, 4)


@pytest.mark.whole
def test_compile_inspect_and_run_the_example(tmp_path: Path) -> None:
    with np.load(EXAMPLE / "calibration.npz") as stored:
        images = stored["images"][:32, None].astype(np.float32) / 255
    np.save(tmp_path / "images.npy", images)
    net = tmp_path / "net.so"
    model = EXAMPLE / "resnet.onnx"
    done = nybble(
        "compile", model, "-o", net, "--calibration", tmp_path / "images.npy",
        "--calibrator", "mse",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Integer-only" in done.stdout
    told = json.loads(nybble("inspect", net, "--json", "--no-time").stdout)
    assert told["recipe"]["calibrator"] == "mse"
    assert told["float_ops"] == []
    assert nybble("run", net, tmp_path / "images.npy", "-o", tmp_path / "y.npz").returncode == 0
    with zipfile.ZipFile(tmp_path / "y.npz") as archive:
        assert archive.namelist() == ["logits.npy"]


@pytest.mark.whole
def test_demo(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    done = nybble("demo", "--report", page)
    assert done.returncode == 0, done.stderr
    assert "zero differences" in done.stdout
    assert "Integer-only" in done.stdout
    assert str(page) in done.stdout
    assert "✓ equal to the law" in page.read_text()
