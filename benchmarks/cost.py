"""What the compiler costs its user: ResNet-18 from ONNX to a loaded ``.so``, in fresh processes.

python -m benchmarks.cost
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.output import ROOT, console, record, table

SHAPE = (3, 224, 224)


def peak_rss() -> int:
    """Largest resident size of this process so far, in bytes.

    Not ``ru_maxrss``: a child process inherits that from the parent that started it.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def cpu_seconds() -> float:
    """User and system time of this process and its finished children (the C compiler)."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in usages)


def build(source: Path, calibration: Path, path: Path) -> dict[str, float]:
    """Child process: import, quantize, compile, save; CPU seconds of each and the peak memory."""
    marks = [cpu_seconds()]
    import nybble  # its cost is part of the measurement  # noqa: PLC0415

    model = nybble.load_onnx(source)
    marks.append(cpu_seconds())
    quantized = nybble.quantize(model, np.load(calibration)[:, None])
    marks.append(cpu_seconds())
    nybble.compile(quantized).save(path)
    marks.append(cpu_seconds())
    steps = zip(("import", "quantize", "compile"), np.diff(marks), strict=True)
    found = {f"{name} (CPU s)": float(seconds) for name, seconds in steps}
    return {**found, "all (CPU s)": marks[-1], "peak memory (MB)": peak_rss() / 1e6}


def load(path: Path) -> dict[str, float]:
    """Child process: seconds of ``nybble.load``, with the runtime's own start-up."""
    import nybble  # noqa: PLC0415

    wall, cpu = time.perf_counter(), time.process_time()
    nybble.load(path)
    return {
        "load (s)": time.perf_counter() - wall,
        "load (CPU s)": time.process_time() - cpu,
        "memory loaded (MB)": peak_rss() / 1e6,
    }


def child(*arguments: str) -> dict[str, float]:
    """Runs this module again in a fresh process and reads the JSON that it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.cost", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(samples: int) -> dict[str, float]:
    """All figures of ResNet-18."""
    import torch  # the children must not pay for it  # noqa: PLC0415

    from tests.models import export_onnx, images, resnet18  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, data, path = folder / "net.onnx", folder / "calibration.npy", folder / "net.so"
        source.write_bytes(export_onnx(resnet18(64), torch.zeros(1, *SHAPE)))
        np.save(data, images(samples, SHAPE))
        found = child("build", str(source), str(data), str(path))
        found["file (MB)"] = path.stat().st_size / 1e6
        loads = [child("load", str(path)) for _ in range(3)]
        return {**found, **{key: min(one[key] for one in loads) for key in loads[0]}}


def main(argv: list[str] | None = None) -> None:
    """Without arguments: measures and prints. With ``build`` or ``load``: a child process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", nargs="?", choices=("build", "load"))
    parser.add_argument("paths", nargs="*", type=Path)
    parser.add_argument("--samples", type=int, default=32)
    args = parser.parse_args(argv)
    if args.step is not None:
        found = build(*args.paths) if args.step == "build" else load(*args.paths)
        sys.stdout.write(json.dumps(found) + "\n")
        return
    found = measure(args.samples)
    table(
        f"ResNet-18, {args.samples} calibration images",
        [{"what": key, "value": f"{value:.2f}"} for key, value in found.items()],
    )
    console.print(f"written: {record('cost', [found])}")


if __name__ == "__main__":
    main()
