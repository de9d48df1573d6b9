"""Measures the candidates of this folder: python run.py. Times go to times.jsonl beside it.

Needs Python, NumPy, and the TVM runtime (pip install apache-tvm-ffi, and libtvm_runtime.so of
apache-tvm: installed, or named by TVM_RUNTIME). Stop it at any time; started again, it goes on.
A candidate that crashes or hangs takes along a process of its own.
"""

# Runs where Nybble is not installed, beside copies of its runner.py and cpuinfo.py.
from __future__ import annotations

import ctypes
import hashlib
import importlib
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
TIMES, BATCH = "times.jsonl", "batch.json"
ALIGNMENT = 64  # bytes, which kernels count on
SHARE_ALL_CPUS = -3  # TVM's ThreadGroup::kSpecifyThreadShareAllCore


def main() -> int:
    """Measures what is not yet measured."""
    sys.path.insert(0, str(HERE))
    batch = json.loads((HERE / BATCH).read_text())
    if len(sys.argv) == 3 and sys.argv[1] == "--one":
        print(json.dumps(measured(batch, batch["candidates"][int(sys.argv[2])])))  # noqa: T201
        return 0
    done, start = known(batch), time.time()
    left = [i for i in range(len(batch["candidates"])) if i not in done]
    for count, index in enumerate(left):
        rate = (time.time() - start) / count if count else 0.0
        minutes = f", about {rate * (len(left) - count) / 60:.0f} min left" if count else ""
        say(f"\r{len(done) + count} of {len(batch['candidates'])}{minutes}   ")
        found = one(index, batch["limit"])
        if found.get("failure") == "setup":
            say(f"\n{found['detail']}\n")
            return 1
        note({"candidate": index, **found})
    say(f"\nMeasured. Take {TIMES} back: nybble tune … --import-times FOLDER.\n")
    return 0


def known(batch: dict[str, Any]) -> set[int]:
    """Candidates that an earlier run has measured; a first run says what machine this is."""
    path = HERE / TIMES
    if not path.exists():
        cpuinfo = importlib.import_module("cpuinfo")
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = cpuinfo.name(lines) or platform.machine()
        machine = {"cpu": name, "caches": cpuinfo.caches()}
        missing = set(batch["features"]) - cpuinfo.parse(lines)
        if platform.machine() != batch["arch"] or missing:
            lacks = ", ".join(sorted(missing)) or platform.machine()
            sys.exit(f"Compiled for {batch['target']}; this machine is or lacks: {lacks}.")
        if batch.get("gpu"):
            gpu = importlib.import_module("offline_gpu")
            machine = gpu.described(batch["gpu"], batch["target"])
        note({"batch": batch["id"], **machine})
    found = set()
    for line in path.read_text().splitlines():
        try:
            found.add(json.loads(line).get("candidate"))
        except ValueError:  # torn: it is measured again
            continue
    return found


def one(index: int, limit: float) -> dict[str, Any]:
    """A candidate in a process of its own."""
    command = [sys.executable, str(HERE / "run.py"), "--one", str(index)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return {"failure": "hang", "detail": f"more than {limit:g} seconds"}
    if done.returncode == 0:
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found
    tail = done.stderr.strip().splitlines()[-1:]
    failure = "crash" if done.returncode < 0 else "setup"
    return {"failure": failure, "detail": f"ended with {done.returncode}: {''.join(tail)}"}


def measured(batch: dict[str, Any], candidate: dict[str, Any]) -> dict[str, Any]:
    """Checks and times one candidate against its task's reference, in this process."""
    runner = importlib.import_module("runner")
    task = batch["tasks"][candidate["task"]]
    make = made_on_gpu if batch.get("gpu") else made
    if not batch.get("gpu"):
        start_threads(task["threads"])
    sides = [make(runner, task, side) for side in (candidate, task["reference"])]
    if is_wrong(task, sides[1].first()):
        return {"failure": "setup", "detail": "The default kernel is wrong here: a defect."}
    if is_wrong(task, sides[0].first()):
        return {"failure": "wrong", "detail": "the output is not the law's"}
    turns = runner.race(*sides, batch["turns"])
    if is_wrong(task, sides[0].read()):
        return {"failure": "wrong", "detail": "the output is not the law's after many calls"}
    return {"turns": turns.tolist()}


def operands(task: dict[str, Any], side: dict[str, Any]) -> list[Any]:
    """Inputs and constants."""
    with np.load(HERE / task["inputs"]) as file:
        arrays = [file[f"x{i}"] for i in range(len(file))]
    with np.load(HERE / side["constants"]) as file:
        return [*arrays, *(file[f"c{i}"] for i in range(len(file)))]


def made_on_gpu(runner: Any, task: dict[str, Any], side: dict[str, Any]) -> Any:
    """Code with its operands on the GPU."""
    gpu = importlib.import_module("offline_gpu")
    output = runner.garbage(np.empty(task["shape"], task["dtype"]))
    return gpu.GpuRunner(str(HERE / side["library"]), operands(task, side), output)


def made(runner: Any, task: dict[str, Any], side: dict[str, Any]) -> Any:
    """Code with its operands."""
    arrays = operands(task, side)
    output = np.empty(task["shape"], task["dtype"])
    buffers = [Buffer(array) for array in (*arrays, runner.garbage(output))]
    load = ffi().get_global_func("ffi.Module.load_from_file.so")
    module = load(str(HERE / side["library"]), "so")
    return runner.Runner(
        module, [b.tensor for b in buffers], buffers[-1].array.copy,
        ffi().get_global_func(runner.EVALUATOR), alone=task["threads"] == 1,
    )  # fmt: skip


def is_wrong(task: dict[str, Any], got: Any) -> bool:
    """Whether an output is not what the law says."""
    if "expected" in task:
        wanted = np.load(HERE / task["expected"])
        largest = float(np.abs(wanted).max(initial=0))
        rounded = task["rounded"]
        return not np.allclose(got, wanted, rtol=rounded, atol=rounded * largest)
    return bool(hashlib.sha256(got.tobytes()).hexdigest() != task["sha256"])


class Buffer:
    """An array where the runtime reads and writes it."""

    def __init__(self, array: Any):
        room = np.empty(array.nbytes + ALIGNMENT, np.uint8)
        start = -room.ctypes.data % ALIGNMENT
        self.array = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
        self.array[...] = array
        self.tensor = ffi().from_dlpack(self.array)


def ffi() -> Any:
    """The runtime's Python side."""
    if "tvm_ffi" not in sys.modules:
        sys.modules.setdefault("torch", None)  # type: ignore[arg-type]  # it would be imported
        package = importlib.util.find_spec("tvm")
        found = Path(package.origin).parent / "lib" if package and package.origin else HERE
        library = os.environ.get("TVM_RUNTIME", str(found / "libtvm_runtime.so"))
        importlib.import_module("tvm_ffi")
        ctypes.CDLL(library, ctypes.RTLD_GLOBAL)
    return sys.modules["tvm_ffi"]


def start_threads(count: int) -> None:
    """Lets kernels use that many threads."""
    names = [str(cpu) for cpu in sorted(os.sched_getaffinity(0))]
    ffi().get_global_func("runtime.config_threadpool")(SHARE_ALL_CPUS, count, names)


def note(found: dict[str, Any]) -> None:
    """Adds a line to the times."""
    with (HERE / TIMES).open("a") as file:
        file.write(f"{json.dumps(found)}\n")


def say(words: str) -> None:
    """Shows progress."""
    sys.stderr.write(words)
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
