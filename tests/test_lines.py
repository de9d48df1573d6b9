"""Files of lines: what a crash tears stays apart, what several processes write is all there."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from nybble import lines

ROOT = Path(__file__).resolve().parent.parent
WRITER = """
import sys
from pathlib import Path
from nybble import lines
path, name, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
for i in range(count):
    lines.append(path, [{"by": name, "i": i, "pad": "x" * 5000}])
"""


def writer(path: Path, name: str, count: int) -> subprocess.Popen[str]:
    """A process that appends once it is told to."""
    arguments = [sys.executable, "-c", WRITER, str(path), name, str(count)]
    made = subprocess.Popen(
        arguments, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert made.stdout is not None
    assert made.stdout.readline() == "ready\n"
    return made


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def end(process: subprocess.Popen[str]) -> int:
    process.communicate(timeout=60)
    return process.returncode


def test_what_is_no_object_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    deep = b"[" * 100_000
    path.write_bytes(b'{"a": 1}\n\n[1]\n\xff\xfe\n{"b":\n' + deep + b'\n{"c": 3}\n{"d": 4')
    skipped = Counter[str]()
    assert list(lines.read(path, skipped)) == [{"a": 1}, {"c": 3}]
    assert skipped == {lines.CORRUPT: 4, lines.TORN: 1}


def test_lines_behind_a_torn_one_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{"tor')
    lines.append(path, [{"b": 2}, {"c": 3}])
    skipped = Counter[str]()
    assert list(lines.read(path, skipped)) == [{"a": 1}, {"b": 2}, {"c": 3}]
    assert skipped == {lines.CORRUPT: 1}


def test_a_last_line_without_its_end_is_taken_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}')
    lines.append(path, [{"b": 2}])
    assert list(lines.read(path)) == [{"a": 1}, {"b": 2}]


def test_processes_append_and_rewrite_at_once_and_nothing_is_lost(tmp_path: Path) -> None:
    path, count = tmp_path / "a.jsonl", 60
    writers = [writer(path, name, count) for name in "abc"]
    lines.append(path, [])
    for process in writers:
        go(process)
    rewritten = 0
    while any(process.poll() is None for process in writers):
        lines.rewrite(path, lambda objects, _skipped: objects)
        rewritten += 1
    assert [end(process) for process in writers] == [0, 0, 0]
    skipped = Counter[str]()
    found = [(one["by"], one["i"]) for one in lines.read(path, skipped)]
    assert sorted(found) == [(name, i) for name in "abc" for i in range(count)]
    assert [i for by, i in found if by == "b"] == list(range(count))  # in order
    assert not skipped
    assert rewritten > 1


def test_a_killed_process_tears_at_most_its_last_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    process = writer(path, "a", 100_000)
    go(process)
    while not path.exists() or path.stat().st_size < 50_000:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert end(process) == -signal.SIGKILL
    skipped = Counter[str]()
    found = [one["i"] for one in lines.read(path, skipped)]
    assert found == list(range(len(found)))
    assert len(found) >= 8
    assert skipped.total() <= 1
    lines.append(path, [{"i": "next"}])
    assert [one["i"] for one in lines.read(path)] == [*found, "next"]


def test_a_rewrite_that_fails_leaves_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines.append(path, [{"a": 1}])
    before = path.read_bytes()
    with pytest.raises(TypeError):
        lines.rewrite(path, lambda _objects, _skipped: [{"a": object()}])
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_full_disk_is_an_error() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(OSError, match="No space left"):
        lines.append(full, [{"a": json.dumps(1)}])
