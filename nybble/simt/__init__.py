"""CUDA kernels without a GPU: lowered TensorIR, executed thread by thread in NumPy, and checked.

    report = simt.run(prim_func, [a, b, out])    # writes out; raises SimtError on a defect
    assert report.conflicts == 0

What is checked: bounds, alignment, reads of what was never written, races between barriers, data
of asynchronous copies and products used too early, barriers that not all threads reach, deadlocks.
What it stands on is in ``docs/decisions/0006-simt.md``.
"""

from nybble.simt.errors import (
    DeadlockError,
    DivergenceError,
    InFlightError,
    MisalignedError,
    OutOfBoundsError,
    RaceError,
    SimtError,
    UninitializedError,
    UnsupportedError,
)
from nybble.simt.launch import Trial, run
from nybble.simt.report import Report

__all__ = [
    "DeadlockError",
    "DivergenceError",
    "InFlightError",
    "MisalignedError",
    "OutOfBoundsError",
    "RaceError",
    "Report",
    "SimtError",
    "Trial",
    "UninitializedError",
    "UnsupportedError",
    "run",
]
