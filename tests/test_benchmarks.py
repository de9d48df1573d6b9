"""The measuring itself: turns, ratios, what a held process sees, and that real engines run."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from benchmarks import ggml, hold, limits, prepare, results
from benchmarks.cases import CONTENDERS, OWN, Case, cases
from benchmarks.cpu import Files, elsewhere, main, measure
from benchmarks.engines import Job
from benchmarks.output import cpu
from benchmarks.peers import Timing, race
from benchmarks.problems import linear
from benchmarks.results import Row

ROOT = Path(__file__).resolve().parent.parent
TINY = linear(8, 256, 96)
ROW = Row(
    case="tiny-w8a8", threads=1, isa="native", nybble_ms=2.0, peer="ORT int8", kind="int8",
    peer_ms=3.0, ratio=1.5, goal=1.2, gops=10.0, share=0.5, error=0.01, peer_error=0.02,
    cpu="some", date="2026-01-01",
)  # fmt: skip


def test_ratio_is_the_median_within_rounds() -> None:
    ours = Timing("ours", (1.0, 2.0, 30.0))  # the machine slowed down in the third round …
    theirs = Timing("theirs", (2.0, 4.0, 60.0))  # … for both
    assert ours.ratio(theirs) == pytest.approx(0.5)
    assert ours.median == 2.0


def test_cpu_has_a_name() -> None:
    assert cpu().strip()


def test_every_case_has_its_own_name_and_known_peers() -> None:
    found = cases()
    assert len({case.name for case in found}) == len(found)
    for case in found:
        kinds = {"own" if p == OWN else CONTENDERS[p].kind for p in case.peers}
        assert set(case.goals) <= kinds, case.name  # no goal without a peer to reach it over


def test_race_times_onnxruntime_and_survives_a_contender_that_cannot_start() -> None:
    path = prepare.ort_int8(TINY)
    good = Job("good", "onnxruntime", (path,), prepare.inputs(TINY))
    bad = replace(good, peer="bad", files=(prepare.inputs(TINY),))  # no ONNX file
    first, second = race([good, bad], rounds=3)
    assert (first.name, len(first.seconds)) == ("good", 3)
    assert all(seconds > 0 for seconds in first.seconds)
    reference = np.load(prepare.reference_path(TINY))
    assert first.output is not None
    assert np.linalg.norm(first.output - reference) < 0.05 * np.linalg.norm(reference)
    assert (second.name, second.seconds) == ("bad", ())


@pytest.mark.whole
def test_case_gives_a_row_for_every_peer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ggml, "path", lambda isa: tmp_path / isa)  # as if it were not built
    recipe = {"weights": 8, "activations": 8, "first_last": None}
    case = Case(TINY, recipe, ("ORT int8", "ggml Q8_0"), {"int8": 1.0})
    bound = limits.Limits({"int8": 1e12}, {"int8": "x"}, dict.fromkeys(limits.SIZES, 1e12))
    ran, missing = measure(case, Files("native", "all", 1), {1: bound}, rounds=2)
    assert (ran.peer, ran.kind, ran.goal, ran.note) == ("ORT int8", "int8", 1.0, "")
    assert ran.nybble_ms is not None
    assert ran.peer_ms is not None
    assert ran.ratio == pytest.approx(ran.peer_ms / ran.nybble_ms, rel=0.8)
    assert ran.error is not None
    assert ran.error < 0.05
    assert (missing.peer, missing.peer_ms, missing.ratio) == ("ggml Q8_0", None, None)
    assert missing.note.startswith("not built")


@pytest.mark.whole
@pytest.mark.sweep
@pytest.mark.parametrize("name", [name for name in CONTENDERS if name != "ORT 2 bits LUT"])
def test_peer_computes_the_layer(name: str) -> None:
    peer = CONTENDERS[name]
    needs = {"openvino": ("openvino", "nncf"), "onnxruntime": ("onnxruntime",)}
    for module in needs.get(peer.engine, ()):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    if peer.engine == "ggml" and not ggml.path("native").exists():
        pytest.skip("ggml is not built")
    path = elsewhere(partial(peer.make, TINY))
    assert isinstance(path, Path), path
    job = Job(name, peer.engine, (path,), prepare.inputs(TINY), option=peer.option)
    (timing,) = race([job], rounds=1)
    reference = np.load(prepare.reference_path(TINY))
    assert timing.output is not None
    error = np.linalg.norm(timing.output - reference) / np.linalg.norm(reference)
    assert error < {"float": 1e-5, "int8": 0.03, "int4": 0.15}.get(peer.kind, 1.0)


def test_what_cannot_be_made_says_why(tmp_path: Path) -> None:
    assert elsewhere(Path.cwd) == Path.cwd()
    assert str(elsewhere((tmp_path / "none").readlink)).startswith("FileNotFoundError: ")


def _held(isa: str, code: str) -> str:
    """Runs code in a fresh process that is held to ``isa`` first."""
    lines = f"from benchmarks import hold\nhold.hold({isa!r})\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", lines], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout.strip()


needs_faulting = pytest.mark.skipif(not hold.possible(), reason="no cpuid_fault in /proc/cpuinfo")


@needs_faulting
@pytest.mark.parametrize("isa", sorted(hold.LEVELS))
def test_held_process_sees_only_its_level(isa: str) -> None:
    allowed = {"avx2"}
    if isa != "x86-64-v3":
        allowed.add("avx512f")
    if isa == "x86-64-v4-vnni":
        allowed.add("avx512_vnni")
    seen = eval(_held(isa, "print(set(hold.features()))"))  # a set of names
    assert seen == hold.features() & allowed


@needs_faulting
def test_threads_of_a_held_process_are_held_too() -> None:
    code = (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "print('avx512f' in ThreadPoolExecutor(1).submit(hold.features).result())"
    )
    assert _held("x86-64-v3", code) == "False"


@needs_faulting
def test_real_libraries_believe_it() -> None:
    code = "import torch; print(torch.backends.cpu.get_cpu_capability())"
    assert _held("x86-64-v3", code) == "AVX2"


@needs_faulting
def test_held_peer_is_still_right() -> None:
    path = prepare.ort_int8(TINY)
    job = Job("ORT", "onnxruntime", (path,), prepare.inputs(TINY))
    native, held = race([job, replace(job, isa="x86-64-v3")], rounds=1)
    assert native.output is not None
    assert held.output is not None
    # Not equal: without VNNI, ONNX Runtime's sums saturate.
    difference = np.linalg.norm(held.output - native.output)
    assert difference < 0.05 * np.linalg.norm(native.output)


def test_native_is_never_held() -> None:
    before = hold.features()
    hold.hold("native")
    assert hold.features() == before


def test_the_limit_is_the_larger_of_work_and_reading() -> None:
    bound = limits.Limits({"int8": 1e9}, {"int8": "x"}, dict.fromkeys(limits.SIZES, 1e9))
    assert bound.seconds("int8", 2_000_000_000, 1) == 2.0  # bound by arithmetic
    assert bound.seconds("int8", 1, 3_000_000_000) == 3.0  # bound by memory


def test_a_new_page_keeps_the_notes(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    assert results.notes(page) == "\n"
    page.write_text(f"| old | table |\n{results.NOTES}Why so slow.\n")
    assert results.notes(page) == f"\n{results.NOTES}Why so slow.\n"


def test_rows_survive_json(tmp_path: Path) -> None:
    results.save([ROW], tmp_path / "rows.json")
    assert results.load(tmp_path / "rows.json") == [ROW]


def test_merging_replaces_what_was_measured_again() -> None:
    old = [replace(ROW, peer="gone"), replace(ROW, case="other")]
    assert results.merged(old, [ROW]) == [old[1], ROW]


def test_regressions_are_what_lost_a_tenth_or_vanished() -> None:
    rows = [replace(ROW, peer=p, ratio=r) for p, r in (("a", 1.0), ("b", 1.2), ("c", None))]
    before = [replace(ROW, peer=p, ratio=1.3) for p in ("a", "b", "c")]
    found = results.regressions(rows, before)
    assert [key[3] for key in found] == ["a", "c"]


def test_best_peer_of_each_kind_decides() -> None:
    slower = replace(ROW, peer="other", peer_ms=4.0, ratio=2.0)
    missing = replace(ROW, peer="gone", peer_ms=None, ratio=None, note="not installed")
    page = results.markdown([slower, ROW, missing], "the command", {"native, 1": ["a limit"]})
    assert "ORT int8 3 ms | 1.50 | 1.2 met" in page
    assert "other 4 ms" not in page
    assert "gone: not installed" in page  # never silently left out


def test_list_names_the_cases_of_several_patterns(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--list", "--only", "resnet18-w4a8", "resnet5*w8a8"])
    assert capsys.readouterr().out.split() == ["resnet18-w4a8", "resnet50-w8a8"]


def test_command_refuses_levels_without_faulting(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hold, "possible", lambda: False)
    with pytest.raises(SystemExit):
        main(["--isa", "x86-64-v3"])
    assert "only --isa native" in capsys.readouterr().err
