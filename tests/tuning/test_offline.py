"""A batch goes as a folder, is measured where Nybble is not, and its times come back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from nybble.errors import NybbleError
from nybble.executors.local import Processes
from nybble.schedules.machine import Machine
from nybble.schedules.target import resolve
from nybble.tuning.offline import Exported, export_batch, import_times
from nybble.tuning.tasks import Point, Task
from tests.tuning import faults
from tests.tuning.layers import SMALL, task_of

GENERIC = Point("cpu.generic", "int8")


def exported(folder: Path, task: Task, points: list[Point]) -> Exported:
    builders = Processes(1)
    try:
        return export_batch(folder, [(task, points)], builders, 3, faults.built)
    finally:
        builders.close()


def measure(batch: Path) -> subprocess.CompletedProcess[str]:
    """Runs the script as on a machine without Nybble."""
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(
        [sys.executable, "-I", str(batch / "run.py")],
        env=environment, cwd="/", capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def test_times_come_back(tmp_path: Path) -> None:
    task = task_of(SMALL, tmp_path)
    faults.add()
    asked = [GENERIC, Point("cpu.none", "int8"), faults.point("wrong"), faults.point("trap")]
    made = exported(tmp_path / "batch", task, asked)
    assert made.candidates == 4
    assert [(o.point, o.failure) for _, o in made.failed] == [(asked[1], "illegal")]
    elsewhere = tmp_path / "elsewhere"
    with tarfile.open(made.archive) as archive:
        archive.extractall(elsewhere, filter="data")
    batch = elsewhere / "batch"
    done = measure(batch)
    assert done.returncode == 0, done.stderr
    assert "4 min left" not in done.stderr

    times = import_times(batch, task.target)
    assert times.machine == Machine.here(task.target)
    assert times.missing == 0
    found = {outcome.point: outcome for key, outcome in times.outcomes if key == task.key}
    assert set(found) == {task.reference, *asked} - {asked[1]}
    slow = found[GENERIC].ratio
    assert slow is not None
    assert slow > 1.5
    assert found[asked[2]].failure == "wrong"
    assert found[asked[3]].failure == "crash"

    log = (batch / "times.jsonl").read_text().splitlines(keepends=True)
    (batch / "times.jsonl").write_text("".join(log[:2]) + log[2][:9])  # killed in mid-line
    assert import_times(batch, task.target).missing == 3
    (batch / "times.jsonl").write_text("".join(log) + '{"candidate": 1, "tu')
    assert len(import_times(batch, task.target).outcomes) == 4


def test_times_of_something_else_are_refused(tmp_path: Path) -> None:
    native = resolve("native")
    with pytest.raises(NybbleError, match="Expected the folder that --export-batch wrote"):
        import_times(tmp_path, native)
    (tmp_path / "batch.json").write_text(json.dumps({"id": "one", "target": "aarch64"}))
    with pytest.raises(NybbleError, match=r"times\.jsonl"):
        import_times(tmp_path, native)
    (tmp_path / "times.jsonl").write_text('{"batch": "two"}\n')
    with pytest.raises(NybbleError, match="measured with another batch"):
        import_times(tmp_path, native)
    (tmp_path / "times.jsonl").write_text('{"batch": "one"}\n')
    with pytest.raises(NybbleError, match="Give --target aarch64"):
        import_times(tmp_path, native)


def test_a_batch_does_not_replace_another(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    with pytest.raises(NybbleError, match="it is there already"):
        export_batch(tmp_path, [], Processes(1))
