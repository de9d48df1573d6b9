"""Each tutorial runs as a user would run it, and its own asserts hold."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LESSONS = sorted((ROOT / "tutorials").glob("[0-9][0-9]_*.py"))


# Two C++ programs are compiled; a network is quantized at many widths, and by many corrections.
SLOW = ("03_deploy_cpp", "06_mixed_widths", "07_corrections")


@pytest.mark.whole
@pytest.mark.parametrize(
    "lesson",
    [
        pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (path.stem in SLOW))
        for path in LESSONS
    ],
)
def test_lesson(lesson: Path, tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(lesson)],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "agree in every bit" in done.stdout
    assert list(tmp_path.iterdir()) == []  # a lesson leaves nothing behind


def test_lessons_are_numbered_without_gaps() -> None:
    assert [path.stem[:2] for path in LESSONS] == [f"{i + 1:02}" for i in range(len(LESSONS))]
    assert len(LESSONS) >= 2
