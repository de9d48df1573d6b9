"""Records as lines of a file: nothing is lost on the way, and what is none is counted."""

from __future__ import annotations

import json
from dataclasses import replace
from math import inf, prod
from pathlib import Path
from typing import Any

import pytest

from nybble import cpuinfo, known
from nybble.errors import NybbleError
from nybble.schedules import problems
from nybble.schedules.kernel import Epilogue, Problem, TensorSpec
from nybble.schedules.machine import Machine
from nybble.schedules.records import SURE, Records
from nybble.schedules.target import resolve
from nybble.tuning import memory
from tests import cases
from tests.schedules.recording import CONV, LINEAR, V3, decided, record
from tests.weight_only_cases import CASES as WEIGHT_ONLY

FEW = 6_000  # weights, about which everything is proven quickly
ROWS = [
    case
    for rows in vars(cases).values()
    if isinstance(rows, tuple) and rows and isinstance(rows[0], cases.Case)
    for case in rows
]


def again(problem: Problem) -> Problem:
    """What becomes of a problem in a file."""
    return problems.from_dict(json.loads(json.dumps(problems.to_dict(problem), allow_nan=False)))


def test_the_problem_of_every_case_comes_back() -> None:
    rows = [case for case in ROWS if prod(case.w) < FEW]
    assert len(rows) > 50
    for problem in (case.problem() for case in (*rows, *WEIGHT_ONLY)):
        assert again(problem) == problem


@pytest.mark.slow
def test_the_problem_of_every_large_case_comes_back() -> None:
    for problem in (case.problem() for case in ROWS if prod(case.w) >= FEW):
        assert again(problem) == problem


def test_bounds_come_back_with_their_type() -> None:
    for lo, hi in ((-inf, inf), (0.0, 6.0), (0, 6), (-1.5, inf)):
        problem = replace(CONV, epilogue=Epilogue("float", lo, hi, other=CONV.output))
        assert repr(again(problem)) == repr(problem)


def test_symbolic_extents_have_names_of_no_meaning() -> None:
    def named(name: str) -> Problem:
        spec = TensorSpec((name, 8), "uint8")
        epilogue = Epilogue("add", 0, 255, other=replace(spec, dtype="int8"))
        return Problem("linear", (spec,), spec, epilogue=epilogue)

    assert problems.renamed(named("batch")) == problems.renamed(named("n"))
    assert problems.renamed(LINEAR) is LINEAR
    assert problems.words(named("b")) == "linear uint8[b, 8] -> uint8[b, 8]"


def test_distance_counts_octaves_and_knows_its_limits() -> None:
    def cut(rows: int, channels: int) -> Problem:
        shape = ("n", rows, rows, channels)
        given = replace(CONV.inputs[0], shape=shape)
        weights = replace(CONV.weights, shape=(64, 3, 3, channels))  # type: ignore[type-var]
        return replace(CONV, inputs=(given,), weights=weights)

    assert problems.distance(CONV, CONV) == 0
    assert problems.distance(CONV, cut(14, 64)) == 0.5
    assert problems.distance(CONV, cut(28, 32)) == 1
    near, far = (problems.distance(CONV, replace(CONV, flush=f)) for f in (0, 8))
    assert (near, far) == (0, problems.DIFFERENT)
    strides = tuple(
        ("strides", (2, 2)) if name == "strides" else (name, v) for name, v in CONV.attrs
    )
    assert problems.distance(CONV, replace(CONV, attrs=strides)) is None
    assert problems.distance(CONV, LINEAR) is None
    rows = TensorSpec(("m", 64), "uint8")  # rows that are open are cut in another way
    assert problems.distance(LINEAR, replace(LINEAR, inputs=(rows,))) is None


def test_a_record_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    given = [
        record(),
        record(0.5, problem=CONV, decisions=decided(tile="1x2x3", rows=(1, 2), parallel=True)),
        record(1.25, weights=None, reference=None, turns=31, date="2026-01-02", version="9"),
    ]
    Records.open(path).append(*given)
    found = Records.open(path)
    assert list(found) == given
    assert not found.skipped
    found.append(given[0])
    assert list(Records.read([path, path])) == [*given, given[0]] * 2


def test_what_is_no_record_is_counted(tmp_path: Path) -> None:
    path, good = tmp_path / "r.jsonl", record().to_dict()
    problem, machine = good["problem"], good["machine"]
    wrong: list[dict[str, Any]] = [
        {"ratio": "fast"}, {"ratio": float("nan")}, {"seconds": -1.0}, {"seconds": None},
        {"noise": float("inf")}, {"ratio": 0}, {"threads": "two"}, {"decisions": []},
        {"decisions": {"a": {"b": 1}}}, {"reference": "k"}, {"reference": []},
        {"machine": {}}, {"machine": {**machine, "more": 1}}, {"machine": {**machine, "cpu": []}},
        {"problem": {}}, {"problem": []}, {"problem": {**problem, "op": 1}},
        {"problem": {**problem, "inputs": [{"shape": [0], "dtype": "int8"}]}},
        {"problem": {**problem, "inputs": [{"shape": [1.5], "dtype": "int8"}]}},
        {"problem": {**problem, "flush": "x"}}, {"problem": {**problem, "other": 1}},
        {"problem": {**problem, "epilogue": {"kind": []}}},
    ]  # fmt: skip
    lines = [json.dumps({**good, **change}) for change in wrong]
    lines += [
        json.dumps({k: v for k, v in good.items() if k != gone}) for gone in good if gone != "op"
    ]
    lines += [json.dumps({**good, "schema": 2}), json.dumps(good), json.dumps(good)[:99]]
    path.write_text("\n".join(lines))
    found = Records.read([path])
    assert list(found) == [record()]
    assert found.skipped == {"corrupt": len(lines) - 3, "of another format": 1, "torn": 1}
    told = known.notes(found, ())
    assert told == (
        f"records read: 1; lines skipped: {len(lines) - 3} corrupt, 1 of another format, 1 torn",
    )


@pytest.mark.parametrize("name", [".", "absent/r.jsonl", "file/r.jsonl"])
def test_a_file_that_cannot_be_written_is_told_at_once(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NybbleError, match=r"Cannot write the records .*: (Is|No|Not) a|No such"):
        Records.open(tmp_path / name)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_file_that_is_not_there_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(NybbleError, match=r"Cannot read the records .*absent\.jsonl: No such file"):
        known.gather(tmp_path / "absent.jsonl")


def test_of_one_candidate_the_longer_measurement_counts() -> None:
    first, longer, later = record(0.7, turns=5), record(0.9, turns=31), record(0.8, turns=31)
    other = record(0.6, decisions=decided(rows=2), turns=5)
    assert Records([first, longer, later, other, first]).settled() == [later, other]


def test_upper_and_wins() -> None:
    assert record(0.9, noise=0.1).upper == pytest.approx(0.99)
    assert record(0.9, noise=0.1).wins
    assert not record(0.95, noise=0.1).wins
    assert not record(0.9, noise=0.1, turns=SURE - 1).wins
    assert memory.SURE >= SURE  # what a session takes for sure is trusted


def test_files_of_the_environment_stand_before_what_ships(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, ratio in (("a", 0.5), ("b", 0.6)):
        Records.open(tmp_path / name).append(record(ratio))
    monkeypatch.setenv(known.RECORDS, f"{tmp_path / 'a'}:{tmp_path / 'b'}")
    found = known.gather()
    assert [one.ratio for one in found] == [0.5, 0.6]
    assert found.behind is known.shipped()
    assert len(known.gather([])) == 0
    assert known.gather(found) is found
    monkeypatch.delenv(known.RECORDS)
    assert known.notes(known.gather(), ()) == ()


def test_what_ships_can_be_read() -> None:
    assert known.FOLDER.is_dir()  # it is package data
    found = Records.read(sorted(known.FOLDER.glob("*.jsonl")))
    assert not found.skipped
    assert all(one.wins for one in found)


def test_machines() -> None:
    here = Machine.here(V3)
    assert here.fits(V3)
    assert not here.fits(resolve("x86-64"))
    assert not here.fits(resolve("aarch64"))
    assert here.is_like(replace(here, caches=(*here.caches[:2], 1)))  # others share the last one
    assert not here.is_like(replace(here, caches=(1,)))
    assert not here.is_like(replace(here, cpu="another"))
    assert not Machine.of(resolve("c"), here.cpu, here.caches).fits(resolve("x86-64"))


def test_names_and_caches_of_cpus(tmp_path: Path) -> None:
    assert cpuinfo.name(["processor : 0", "model name : A  B", "model name : C"]) == "A  B"
    assert cpuinfo.name(["CPU implementer\t: 0x41", "CPU part\t: 0xd0c"]) == "0x41 0xd0c"
    assert cpuinfo.name([]) == ""
    for i, (level, kind, size) in enumerate(
        (("1", "Data", "48K"), ("1", "Instruction", "32K"), ("2", "Unified", "2M"))
    ):
        folder = tmp_path / f"index{i}"
        folder.mkdir()
        for part, text in (("level", level), ("type", kind), ("size", size)):
            (folder / part).write_text(f"{text}\n")
    assert cpuinfo.caches(tmp_path) == (48 << 10, 2 << 20)
    assert cpuinfo.caches(tmp_path / "none") == ()
