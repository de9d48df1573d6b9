"""``nybble records …``, and compiling by records: what a person gives, sees, and gets wrong."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import nybble
from nybble import __main__, costs
from nybble.errors import NybbleError
from nybble.model import QuantizedModel
from nybble.place import Place
from nybble.report import html, tables
from nybble.report.data import Report, Variant, facts, layer_rows
from nybble.runtime.manifest import Manifest
from nybble.schedules.lower import plan_steps
from nybble.schedules.records import Record, Records
from nybble.schedules.select import Planner
from nybble.tuning.space import Variant as Space
from tests.report.test_pages import text_of
from tests.schedules.recording import ELSEWHERE, HERE, LINEAR, V3, decided, record
from tests.schedules.test_replay import drawn, small

NEAR = replace(LINEAR, flush=8)


def call(monkeypatch: pytest.MonkeyPatch, *args: object) -> int:
    """Runs the command line in this process; returns the exit code."""
    monkeypatch.setattr(sys, "argv", ["nybble", *map(str, args)])
    with pytest.raises(SystemExit) as ended:
        __main__.main()
    return int(ended.value.code or 0)


def written(path: Path, *records: Record) -> Path:
    Records.open(path).append(*records)
    return path


# ---------------------------------------------------------------- the commands


def test_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(
        tmp_path / "r", record(date="2026-01-01"), record(1.5, problem=NEAR, date="2026-02-01"),
        record(machine=ELSEWHERE, sources="old"),
    )  # fmt: skip
    with path.open("a") as file:
        file.write("{\n{")
    assert call(monkeypatch, "records", "list", path, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["skipped"] == {"corrupt": 1, "torn": 1}
    first, second = told["groups"]
    assert (first["layers"], first["candidates"], first["won"], first["current"]) == (2, 2, 1, True)
    assert (first["first"], first["last"]) == ("2026-01-01", "2026-02-01")
    assert (second["cpu"], second["current"]) == ("another CPU", False)
    assert call(monkeypatch, "records", "list", path) == 0
    assert "lines skipped: 1 corrupt, 1 torn" in capsys.readouterr().out


def test_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fast = record(0.5, decisions=decided(rows=4))
    path = written(tmp_path / "r", record(0.9), fast, record(0.7, problem=NEAR, threads=2))
    assert call(monkeypatch, "records", "best", path, "--json") == 0
    assert [one["ratio"] for one in json.loads(capsys.readouterr().out)] == [0.5, 0.7]
    assert call(monkeypatch, "records", "best", path, "--layer", "conv2d*", "--json") == 0
    assert json.loads(capsys.readouterr().out) == []
    assert call(monkeypatch, "records", "best", path) == 0
    assert "0.50" in capsys.readouterr().out


def test_merge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b, both = written(tmp_path / "a", record(0.5)), tmp_path / "b", tmp_path / "both"
    written(b, record(0.5), record(0.6))
    assert call(monkeypatch, "records", "merge", a, b, "-o", both) == 0
    assert call(monkeypatch, "records", "merge", a, b, "-o", both) == 0
    assert [one.ratio for one in Records.read([both])] == [0.5, 0.6]
    shown = " ".join(capsys.readouterr().out.split())
    assert "2 records added to 0" in shown
    assert "0 records added to 2" in shown


def test_prune(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def found() -> list[float]:
        return [one.ratio for one in Records.read([path])]

    decisions = [decided(rows=i) for i in range(1, 5)]
    several = [record(0.9 - i / 10, decisions=d) for i, d in enumerate(decisions)]
    others = [record(0.7, problem=NEAR), record(0.95, kernel="k"), record(0.3, sources="old")]
    path = written(tmp_path / "r", *several, *others)
    with path.open("a") as file:
        file.write('{"torn')
    assert call(monkeypatch, "records", "prune", path, "-o", tmp_path / "short", "--keep", 2) == 0
    assert len(found()) == 7
    assert [one.ratio for one in Records.read([tmp_path / "short"])] == pytest.approx(
        [0.7, 0.6, 0.7, 0.95, 0.3]
    )
    assert call(monkeypatch, "records", "prune", path, "--current") == 0
    assert found() == pytest.approx([0.6, 0.7, 0.95])
    assert not Records.read([path]).skipped
    path = written(tmp_path / "w", *several, record(0.99, noise=0.1), record(0.5, turns=9))
    assert call(monkeypatch, "records", "prune", path, "--keep", 9, "--won") == 0
    assert found() == pytest.approx([0.9, 0.8, 0.7, 0.6])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["records", "list", "absent"], "Cannot read the records absent"),
        (["records", "prune", "absent"], "Cannot read the records absent"),
        (["records", "prune", "r", "-o", "absent/r"], "Cannot write the records absent/r"),
        (["records", "merge", "r", "-o", "."], "Cannot write the records .: Is a directory"),
        (["compile", "net.onnx", "--float", "-o", "net.so", "--records", "absent"],
         "Cannot read the records absent"),
        (["report", "net.onnx", "--calibration", ".", "-o", "page", "--records", "absent"],
         "Cannot read the records absent"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_told_at_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    written(Path("r"), record())
    Path("net.onnx").write_text("text")
    before = sorted(tmp_path.iterdir())
    assert call(monkeypatch, *arguments) == 1
    assert told in " ".join(capsys.readouterr().err.replace("│", "").split())
    assert sorted(tmp_path.iterdir()) == before


# ---------------------------------------------------------------- compiling


@pytest.fixture(scope="module")
def network() -> QuantizedModel:
    module = small()
    return QuantizedModel(module, module, nybble.Recipe())


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory, network: QuantizedModel) -> Manifest:
    """Compiled by records of its first layer, and of one like its second."""
    first, second = drawn(network.integer, 1)
    near = replace(second, problem=replace(second.problem, flush=second.problem.flush + 4))
    path = written(tmp_path_factory.mktemp("records") / "r", first, near)
    return nybble.compile(network, "x86-64-v3", records=path, threads=1).manifest


@pytest.mark.isa("avx2")
def test_the_manifest_says_where_decisions_are_from(
    network: QuantizedModel, manifest: Manifest
) -> None:
    first, second = drawn(network.integer, 1)
    one, two = (layer["tuned"] for layer in manifest.layers if layer["symbol"])
    assert one is not None
    assert (one["kind"], one["ratio"], one["threads"]) == ("exact", 0.5, 1)
    assert one["decisions"] == dict(first.decisions)
    assert manifest.layers[0]["kernel"] == first.kernel
    if second.reference == (second.kernel, second.weights):  # else it cannot put its kernel there
        assert two is not None
        assert (two["kind"], two["decisions"]) == ("nearest", dict(second.decisions))
    assert Manifest.from_json(manifest.to_json()).layers == manifest.layers


@pytest.mark.isa("avx2")
def test_reports_say_where_decisions_are_from(manifest: Manifest) -> None:
    rows = layer_rows(manifest)
    shown = text_of(tables.decided(rows))
    assert "exact" in shown
    assert "0.50" in shown
    page = html.render(Report("net", facts(manifest), (Variant("float"),), rows))
    assert "Decisions of the kernels" in page
    assert "exact" in page
    assert "layers by records of their own" in dict(facts(manifest))["kernels' decisions"]
    plain = tuple(replace(row, tuned=None) for row in rows)
    assert text_of(tables.decided(plain)).strip() == ""
    assert "Decisions of the kernels" not in html.render(Report("net", (), (Variant("f"),), plain))


@pytest.mark.isa("avx2")
def test_what_was_left_aside_is_told(tmp_path: Path, network: QuantizedModel) -> None:
    step = plan_steps(network.integer, V3, Planner())[0][0]
    assert step.kernel is not None
    what: dict[str, Any] = {"problem": step.problem, "kernel": step.kernel.name}
    path = written(
        tmp_path / "r", record(0.5, decisions=decided(gone=1), **what),
        record(machine=replace(ELSEWHERE, arch="aarch64"), **what),
    )  # fmt: skip
    with path.open("a") as file:
        file.write('{"torn')
    made = nybble.compile(network, "x86-64-v3", records=path)
    assert made.notes == (
        "records read: 2; lines skipped: 1 torn",
        "kernels for x86-64-v3 are decided for 1 thread(s), like the records (threads=…, or "
        "--threads, for another number)",
        "records left aside for x86-64-v3: 1 for other targets, 1 with decisions that the kernels "
        "do not offer today",
    )
    assert all(layer.get("tuned") is None for layer in made.manifest.layers)


def test_records_of_several_numbers_of_threads_leave_it_open() -> None:
    one, two = record(), record(threads=2)
    place = Place(V3, Records([one, two]))
    assert place.threads is None
    assert place.notes()[0].startswith("the records for x86-64-v3 are of 1, 2 threads: say for")
    assert Place(V3, Records([two])).threads == 2
    assert Place(V3, Records([one, two]), 4).threads == 4
    assert Place(V3, Records([record(threads=2, machine=replace(HERE, arch="a"))])).notes() == [
        "records left aside for x86-64-v3: 1 for other targets"
    ]


def test_numbers_of_threads_are_checked(network: QuantizedModel) -> None:
    with pytest.raises(NybbleError, match="threads=0 is not at least 1"):
        nybble.compile(network, "x86-64-v3", threads=0)


def test_manifests_of_older_libraries_say_nothing(manifest: Manifest) -> None:
    told: dict[str, Any] = json.loads(manifest.to_json())
    for layer in told["layers"]:
        del layer["tuned"]
    old = Manifest.from_json(json.dumps(told))
    assert [row.tuned for row in layer_rows(old)] == [None] * len(old.layers)
    assert "kernels' decisions" not in dict(facts(old))


# ---------------------------------------------------------------- latencies


@pytest.mark.isa("avx2")
def test_latency_tables_follow_a_tuning(
    network: QuantizedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ruler(_cache: Any, threads: int | None) -> Any:
        assert threads in (None, 1)
        return lambda candidates, _target: [float(i + 1) for i in range(len(candidates))]

    monkeypatch.setattr(costs, "Ruler", ruler)
    step = plan_steps(network.integer, V3, Planner())[0][0]
    assert step.kernel is not None
    name = (step.kernel.name, "int8")
    tuned = record(0.25, problem=step.problem, kernel=name[0], reference=name)
    legal = Space(step.kernel, step.problem, V3).default().decisions  # type: ignore[arg-type]
    for ratio in (0.25, 0.125):
        known_here = Records([replace(tuned, ratio=ratio, decisions=legal)])
        seconds = costs._seconds(network.integer, Place(V3, known_here), None)
        assert next(iter(seconds.values())) == ratio
    assert next(iter(costs._seconds(network.integer, Place(V3), None).values())) == 1.0
